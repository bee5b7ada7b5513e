"""The numbers of all units of a pair, site by site: those that the guide draws, and those that are summed out.

* `measured` makes runs of the pair until nothing depends on the draws any more, or the asked number is reached; `Measured`
  has their numbers.
* `table_of` lays out a column for each number of `Measured`; `summed_units` adds discrete sites that are left to enumeration.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyro_vi.data import Batch, fresh
from pyro_vi.diagnostics.collapsing.aggregate import Mixtures, information_of, information_of_units
from pyro_vi.diagnostics.collapsing.local_runs import LocalRun, local_run
from pyro_vi.diagnostics.collapsing.unit_numbers import UnitNumbers, UnitSums, unchanged, variance_of_means
from pyro_vi.diagnostics.collapsing.units import UnitSite, law_of, sites_of
from pyro_vi.elbo import Facts, nesting_of
from pyro_vi.programs import Give, Pair, data_plate_of

MIXED = 4000
"""Most data in a mixture over all of them."""

PRIORS = 10
"""Draws of the prior of all data, where its spread is not known."""

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """Numbers of the sites that the guide draws.

    Attributes:
        sites: the sites.
        numbers: the numbers of their units.
        information: I(x; z_u) from below and above, for each datum and unit, of the sites where q is known without draws.
        kl: KL of all local latents, by datum.
        of_sites: KL of each site, by datum.
        mixtures: log q(z_n | x_n) − log q(z_n) of each datum, all latents together, or None.
        divergence: log q(z_n | x_n) − log p(z_n) of the same draws, by datum.
        first: the first run.
    """

    sites: Mapping[str, UnitSite]
    numbers: Mapping[str, UnitNumbers]
    information: Mapping[str, tuple[Tensor, Tensor]]
    kl: Tensor
    of_sites: Mapping[str, Tensor]
    mixtures: Mixtures | None
    divergence: Tensor
    first: LocalRun


def measured(pair: Pair, args: Batch, facts: Facts, draws: int) -> Measured:
    """Measure the sites that the guide draws, with the generators as they are."""
    first, second = local_run(pair, args, facts), local_run(pair, args, facts)
    sites = sites_of(first.run)
    fixed = {name: unchanged(first.run, second.run, name) for name in sites}
    sums = {name: UnitSums(site, first.sampled.get(name, "")) for name, site in sites.items()}
    rows = len(first.log_q)
    enough = max(1, min(20, 1000 // rows)) if sites and rows <= MIXED else 0
    kept, kl, of_sites = (
        [first, second][:enough],
        torch.zeros(rows),
        {name: torch.zeros(rows) for name in first.of_sites},
    )
    count = 0
    for number in range(draws):
        drawn = (first, second)[number] if number < 2 else local_run(pair, args, facts)
        for part in sums.values():
            part.add(drawn.run)
        count, kl = count + 1, kl + drawn.kl
        of_sites = {name: of_sites[name] + value for name, value in drawn.of_sites.items()}
        if 1 < number < enough:
            kept.append(drawn)
        done = all(fixed[n] and part.source in ("closed", "marginal") for n, part in sums.items()) and torch.equal(
            first.kl, second.kl
        )
        if done:
            kept += [local_run(pair, args, facts) for _ in range(enough - len(kept))]
            break
    if any(part.unread for part in sums.values()):
        _add_priors(pair, args, sums)
    information: dict[str, tuple[Tensor, Tensor]] = {}
    for name, site in sites.items():
        law = law_of(first.run.guide_trace.nodes[name]["fn"], site)
        if fixed[name] and law is not None and kept:
            parts = [information_of_units(law, drawn.run.values[name], site) for drawn in kept]
            information[name] = tuple(torch.stack(part).mean(0) for part in zip(*parts, strict=True))  # type: ignore[assignment]
    mixtures, used = _mixed(pair, args, kept, sites, all(fixed.values()))
    return Measured(
        sites=sites,
        numbers={name: part.result() for name, part in sums.items()},
        information=information,
        kl=kl / count,
        of_sites={name: value / count for name, value in of_sites.items()},
        mixtures=mixtures,
        divergence=torch.stack([drawn.divergence for drawn in used]).mean(0) if used else first.divergence,
        first=first,
    )


def _add_priors(pair: Pair, args: Batch, sums: Mapping[str, UnitSums]) -> None:
    """Draw sites from the prior whose spread there cannot be read; a model that does not run from its prior has none."""
    with suppress(Exception):
        for _ in range(PRIORS):
            trace: Any = poutine.trace(pair.model).get_trace(*fresh(args))
            for name, part in sums.items():
                if part.unread:
                    part.add_prior(trace.nodes[name]["value"])


def _mixed(
    pair: Pair, args: Batch, kept: list[LocalRun], sites: Mapping[str, UnitSite], fixed: bool
) -> tuple[Mixtures | None, list[LocalRun]]:
    """The mean of the mixtures of some draws, and these draws."""
    if not kept:
        return None, []
    used = kept if fixed else kept[:1]
    found = [information_of(pair, args, drawn, sites, fixed) for drawn in used]
    good = [one for one in found if one is not None]
    if len(good) < len(found):
        return None, []
    lower, upper = (torch.stack([getattr(one, name) for one in good]).mean(0) for name in ("lower", "upper"))
    return Mixtures(lower, upper, good[0].count), used


def table_of(found: Measured) -> Columns:
    """A column for each number, over the units of all sites."""
    tables = []
    for name, site in found.sites.items():
        numbers, present = found.numbers[name], site.present
        lower, upper = found.information.get(name, (torch.full(present.shape, math.nan),) * 2)
        variance, variance_se, noise = variance_of_means(numbers, present)
        columns: Columns = {"unit": np.array(site.labels), "site": np.array([name] * len(site.labels))}
        every = {"kl": numbers.kl, "information_lower": lower, "information_upper": upper}
        for key, value in every.items():
            columns[key], columns[f"{key}_se"] = over_data(value)
        columns |= {"variance": variance.numpy(), "variance_se": variance_se.numpy(), "noise": noise.numpy()}
        columns["entropy"] = over_data(numbers.entropy)[0]
        columns["index"], columns["summed"] = np.arange(len(site.labels)), np.zeros(len(site.labels), dtype=bool)
        keep = present.any(0).numpy()
        tables.append({key: value[keep] for key, value in columns.items()})
    return {key: np.concatenate([table[key] for table in tables]) for key in tables[0]} if tables else {}


def over_data(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the data, the first dimension, and its standard error; NaN entries are left out."""
    values = values.double()
    count = (~values.isnan()).sum(0)
    mean = values.nanmean(0)
    variance = (values - mean).square().nansum(0) / (count - 1)
    return mean.numpy(), (variance / count).sqrt().masked_fill(count < 2, math.nan).numpy()


def summed_units(pair: Pair, args: Batch, facts: Facts, draws: int) -> Columns:
    """Columns of discrete sites that are summed out: their units have the posterior r_n given the guide's draws of the others.

    r_n is the mean of p(k | x_n, z) over draws of z. Its information is I = H(mean of r_n) − mean of H(r_n), in which the mean
    has x_n among its data; without x_n it is an upper bound. Where the prior of k depends on z, the KL is the mean over z.
    """
    names = [name for name in facts.summed if name not in facts.shared]
    if not names:
        return {}
    nesting, dim = nesting_of(pair, args), -1
    estimator = TraceEnum_ELBO(max_plate_nesting=nesting)
    sums: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}
    priors: dict[str, list[Tensor]] = {name: [] for name in names}
    for _ in range(draws):
        run = local_run(pair, args, facts).run
        plate = data_plate_of(run.model_trace)
        assert plate is not None
        dim = plate.dim - 1
        with Give(dict(run.values)):
            marginals = estimator.compute_marginals(pair.model, pair.guide, *fresh(args))
        for name in names:
            states = _probabilities(marginals[name])
            prior = _probabilities(run.model_trace.nodes[name]["fn"])
            kl = torch.full(states.shape[:-1], math.nan, dtype=torch.float64)
            if all(size == 1 for size in prior.shape[: -1 - nesting]):  # else it depends on a site that is summed out
                prior = prior.reshape(prior.shape[-1 - nesting :]).expand(states.shape)
                priors[name].append(prior)
                kl = _divergence(states, prior)
            sums[name] = sums[name] + states / draws if name in sums else states / draws
            given[name] = given[name] + kl / draws if name in given else kl / draws
    tables = []
    for name in names:
        known = priors[name]
        constant = bool(known) and all(torch.equal(known[0], other) for other in known)
        divergence = _divergence(sums[name], known[0]) if constant else given[name]
        states = sums[name].movedim(dim, 0)
        states = states.reshape(len(states), -1, states.shape[-1])  # (rows, units, states)
        count, units = states.shape[:2]
        outside = (states.sum(0) - states) / (count - 1)
        numbers = {
            "kl": divergence.movedim(dim + 1, 0).reshape(count, units),
            "information_lower": _divergence(states, states.mean(0)),
            "information_upper": _divergence(states, outside),
        }
        labels = [name] if units == 1 else [f"{name}[{i}]" for i in range(units)]
        columns: Columns = {"unit": np.array(labels), "site": np.array([name] * units)}
        for key, value in numbers.items():
            columns[key], columns[f"{key}_se"] = over_data(value)
        for key in ("variance", "variance_se", "noise"):
            columns[key] = np.full(units, np.nan)
        columns["entropy"] = over_data(-torch.xlogy(states, states).sum(-1))[0]
        columns["index"], columns["summed"] = np.arange(units), np.ones(units, dtype=bool)
        tables.append(columns)
    return {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}


def _divergence(one: Tensor, other: Tensor) -> Tensor:
    """KL of probabilities of states, which lie in the last dimension."""
    return (torch.xlogy(one, one) - torch.xlogy(one, other)).sum(-1)


def _probabilities(fn: Any) -> Tensor:
    """Probabilities of the states, in the last dimension, in double precision."""
    while not hasattr(fn, "probs"):
        fn = fn.base_dist
    probs: Tensor = fn.probs.double()
    # Those of Bernoulli distributions have no dimension of states.
    return torch.stack([1 - probs, probs], -1) if probs.dim() == len(fn.batch_shape) else probs
