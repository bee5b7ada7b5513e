"""Numbers that figures read from fitted pairs: traces, E[x | z] of what is observed, and moments of distributions.

* `of_each_pair` reads the same of each pair of a comparison; `posterior_of` and `prior_of` run a pair once, `draws_of` often.
* `observed` gives data and E[x | z]; `moment` gives means.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vi.comparing import Comparison
from pyro_vi.data import Batch, length_of, tensors_in
from pyro_vi.elbo import MEMORY, at_once, facts_of, nesting_of, posterior_trace
from pyro_vi.errors import InputError
from pyro_vi.programs import Give, Pair, evaluating, isolated, role_of
from pyro_vi.reporting.exported import Exported, exported

T = TypeVar("T")


def of_each_pair(comparison: Comparison, seed: int, read: Callable[[Pair], T]) -> dict[str, T]:
    """Apply ``read`` to each fitted pair, in evaluation mode and with the same seed; return the results by name.

    A guide to which the figure does not apply is left out if there are others. A guide with free parameters for each datum,
    for example, cannot be called with a few of them.
    """
    found: dict[str, T] = {}
    errors: list[Exception] = []
    for name, result in comparison.results.items():
        try:
            with evaluating(result.run.pair), isolated(seed, validation=False), torch.no_grad():
                found[name] = read(result.run.pair)
        except Exception as error:
            if comparison.across == "estimators":
                raise
            errors.append(error)
    if not found:
        raise next((e for e in errors if isinstance(e, InputError)), InputError(f"no guide can be drawn: {errors[0]}"))
    return found


def trace_of(program: Any, args: Batch) -> Any:
    """Return a trace of one run of a program."""
    return poutine.trace(program).get_trace(*args)


def rows_of(args: Batch, index: Iterable[int]) -> Batch:
    """Return some rows of a batch; arguments that are no columns stay as they are."""
    length, rows = length_of(args), list(index)
    return tuple(a[rows] if isinstance(a, Tensor) and a.dim() and len(a) == length else a for a in args)


def posterior_of(pair: Pair, args: Batch) -> Any:
    """Return a trace of the model on one draw of the guide; sites that are summed out are drawn from their posterior."""
    return posterior_trace(pair, args, facts_of(pair, args), None)


def prior_of(pair: Pair, args: Batch) -> Any:
    """Return a trace of the model on a draw from the prior."""
    return prune_subsample_sites(trace_of(pair.model, args))


@dataclass(frozen=True)
class Draws:
    """Draws of a pair, each of shape ``(draws, *shape of the site)``.

    Attributes:
        sites: the sites of the model, as they are exported.
        values: latent and deterministic sites.
        means: E[x | z] of observed sites.
        drawn: draws x ~ p(x | z) of observed sites.
        data: the observed values, of the site's shape.
    """

    sites: dict[str, Exported]
    values: dict[str, np.ndarray]
    means: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]
    data: dict[str, np.ndarray]


def draws_of(pair: Pair, args: Batch, count: int) -> Draws:
    """Draw z ~ q(z | x) and x ~ p(x | z) many times, at once where the programs allow it."""
    sites, single, traces = _runs(pair, args, count)
    found: tuple[dict[str, list[np.ndarray]], ...] = ({}, {}, {})
    for size, trace in traces:
        for name, site in sites.items():
            node = trace.nodes[name]
            if site.kind != "data":
                found[0].setdefault(name, []).append(site.values(node["value"], size))
                continue
            found[1].setdefault(name, []).append(
                replace(site, boolean=False).values(moment(node["fn"], "mean", 1), size)
            )
            found[2].setdefault(name, []).append(site.values(node["fn"].sample(), size))
    values, means, drawn = ({name: np.concatenate(parts) for name, parts in group.items()} for group in found)
    data = {n: site.masked(site.values(single.nodes[n]["value"], None)) for n, site in sites.items() if n in means}
    return Draws(sites, values, means, drawn, data)


def latents_of(pair: Pair, args: Batch, count: int) -> dict[str, np.ndarray]:
    """Draw latent and deterministic sites many times; see `Draws.values`."""
    sites, _, traces = _runs(pair, args, count, only_latents=True)
    found: dict[str, list[np.ndarray]] = {}
    for size, trace in traces:
        for name, site in sites.items():
            if site.kind != "data":
                found.setdefault(name, []).append(site.values(trace.nodes[name]["value"], size))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _runs(
    pair: Pair, args: Batch, count: int, only_latents: bool = False
) -> tuple[dict[str, Exported], Any, Iterator[tuple[int, Any]]]:
    """Sites, a single trace, and traces with the number of draws in each."""
    facts = facts_of(pair, args)
    single = posterior_trace(pair, args, facts, None)
    sites = exported(single)
    recorded = any(site.kind == "deterministic" for site in sites.values())

    def traces() -> Iterator[tuple[int, Any]]:
        # Python code that computes a deterministic site may sum over the draws.
        vectorized = not recorded and at_once(pair, args, facts)
        numbers = [a.numel() for a in tensors_in(args)] + [int(np.prod(site.shape)) for site in sites.values()]
        # Many models fail with a further dimension where their guides do not, and for latents the model adds nothing.
        alone = only_latents and not vectorized and not recorded and not facts.summed
        together = alone and _guide_at_once(pair, args)
        chunk = max(1, min(count, MEMORY // max([*numbers, 1]))) if vectorized or together else 1
        for start in range(0, count, chunk):
            size = min(chunk, count - start)
            if alone:
                yield size, _guide_trace(pair, args, size if together else None)
            else:
                yield size, posterior_trace(pair, args, facts, size if vectorized else None)

    return sites, single, traces()


def _guide_trace(pair: Pair, args: Batch, count: int | None) -> Any:
    guide: Any = pair.guide
    if count is not None:
        guide = pyro.plate("_draws", count, dim=-1 - nesting_of(pair, args))(guide)
    return prune_subsample_sites(trace_of(guide, args))


def _guide_at_once(pair: Pair, args: Batch) -> bool:
    """True if two draws of the guide at once have the densities that each has by itself."""
    try:
        many, one = _guide_trace(pair, args, 2), _guide_trace(pair, args, None)
        names = [name for name, node in one.nodes.items() if node["type"] == "sample" and not node["is_observed"]]
        for k in range(2):
            values = {n: many.nodes[n]["value"].reshape(2, -1)[k].reshape(one.nodes[n]["value"].shape) for n in names}
            with Give(values):
                alone = _guide_trace(pair, args, None)
            for name in names:
                sums = [trace.nodes[name] for trace in (many, alone)]
                here, there = (node["fn"].log_prob(node["value"]) for node in sums)
                if not torch.allclose(here.reshape(2, -1)[k], there.reshape(-1), rtol=1e-4, atol=1e-4):
                    return False
    except Exception:  # whatever a program raises in a form that it is not written for
        return False
    return True


def observed(pair: Pair, args: Batch, trace: Any, *, drawn: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return x and E[x | z] of a trace of the model, each of shape ``(B, features)``; if ``drawn``, x and a draw of p(x | z).

    x is the site that observes the first column. If no site does (the column is an input), all observed sites are
    concatenated.
    """
    n = len(args[0])
    plate = pair.layouts(args)[0].data_plate
    pairs = []
    for node in trace.nodes.values():
        if node["type"] != "sample" or role_of(node) != "observed":
            continue
        fn = node["fn"]
        axis = 0 if plate is None else plate.dim + len(fn.batch_shape)
        value, mean = (v.expand(fn.shape()) for v in (node["value"], fn.sample() if drawn else moment(fn, "mean", 1)))
        if not value.dim() or value.shape[axis] != n:
            raise InputError(
                f"an observed site of shape {tuple(value.shape)} does not have a row for each of {n} data; "
                "put it in the data plate"
            )
        pairs.append(tuple(v.movedim(axis, 0).reshape(n, -1).double().cpu() for v in (value, mean)))
    if not pairs:
        raise InputError("the model has no observed site, so there is nothing to draw; add one with obs=")
    first = args[0].reshape(n, -1).double().cpu()
    chosen = [p for p in pairs if p[0].shape == first.shape and torch.equal(p[0], first)][:1] or pairs
    data, means = (torch.cat(columns, 1).numpy() for columns in zip(*chosen, strict=True))
    return data, means


def moment(fn: Any, name: Literal["mean", "stddev"], draws: int) -> Tensor:
    """Mean or standard deviation of a distribution; from ``draws`` draws if it is not finite or has no closed form."""
    try:
        value: Tensor = getattr(fn, name)
        if bool(value.isfinite().all()):
            return value
    except (NotImplementedError, AttributeError):
        pass
    values = fn.sample((draws,)).double()
    return values.mean(0) if name == "mean" else values.std(0)
