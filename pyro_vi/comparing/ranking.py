"""Rankings of the fits of a comparison, by each of their numbers.

* `standings` ranks them by the numbers that have an error; `plain_ranks` by those that have none; `spread_of` gives the mean
  of any number over seeds.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import torch

from pyro_vi.comparing.differences import Sample, Spread, Standing, compared
from pyro_vi.comparing.results import Comparison, Result
from pyro_vi.elbo import ELBO, standard_error

QUANTITIES = {"elbo": True, "evidence": True, "gap": False, "lpd": True}
"""Numbers that have an error; True if higher is better."""


def standings(comparison: Comparison, quantities: Iterable[str] = tuple(QUANTITIES)) -> dict[str, Standing]:
    """Return the fits ranked by ``"elbo"``, ``"evidence"``, ``"gap"`` and ``"lpd"``, as far as they have these numbers.

    ELBO, evidence and gap are paired over data. If all data share latents, the ELBO is paired over draws, and evidence and gap
    have independent Monte Carlo errors.

    Args:
        comparison: the comparison.
        quantities: the numbers that are wanted.
    """
    found = {}
    for quantity in quantities:
        seeds = [_samples(one, quantity) for one in comparison.every]
        if any(seeds):
            found[quantity] = compared(seeds, higher=QUANTITIES[quantity])
    return found


def plain_ranks(values: Mapping[str, float]) -> dict[str, int]:
    """Return ranks of numbers without an error, the lowest first; equal numbers share a rank, and NaN has none.

    Example:
        >>> plain_ranks({"a": 3.0, "b": 1.0, "c": 1.0})
        {'a': 3, 'b': 1, 'c': 1}
    """
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    return {name: 1 + sum(other < value for other in known.values()) for name, value in known.items()}


def spread_of(comparison: Comparison, name: str, read: Callable[[Result], float | None]) -> Spread | None:
    """Return a number of a fit over the seeds; None if no seed has it.

    Args:
        comparison: the comparison.
        name: the estimator or the guide.
        read: the number of a result, or None.
    """
    found = [read(one.results[name]) for one in comparison.every if name in one.results]
    values = [value for value in found if value is not None and not math.isnan(value)]
    return Spread.of(values) if values else None


def _samples(comparison: Comparison, quantity: str) -> dict[str, Sample]:
    found = {name: _sample(result, quantity) for name, result in comparison.results.items()}
    return {name: sample for name, sample in found.items() if sample is not None}


def _sample(result: Result, quantity: str) -> Sample | None:
    evaluation, evidence = result.evaluation, result.evidence
    if quantity == "lpd":
        return None if result.lpd is None else Sample(float(result.lpd.mean()), result.lpd)
    if result.objective != ELBO or (quantity != "elbo" and evidence is None):
        return None
    if quantity == "elbo":
        paired = evaluation.of_draws if result.shared else evaluation.elbo_per_datum
        return Sample(result.elbo_mean, paired)
    assert evidence is not None
    value = float(evidence.attrs["value"])
    if not result.shared:
        each = torch.as_tensor(evidence.log_evidence.values)
        each = each if quantity == "evidence" else each - evaluation.elbo_per_datum.to(each).cpu()
        return Sample(float(each.mean()), each)
    error = float(evidence.attrs["se"])
    if quantity == "evidence":
        return Sample(value, se=0.0 if math.isnan(error) and evidence.attrs["method"] != "iw" else error)
    draws = evaluation.of_draws
    return Sample(value - result.elbo_mean, se=math.hypot(error, math.nan if draws is None else standard_error(draws)))
