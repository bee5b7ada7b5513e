"""A comparison as one JSON document: plain numbers and words."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import xarray as xr
from torch import Tensor

from pyro_vi.comparing import Comparison, Difference, Result, Standing, plain_ranks, spread_of, standings
from pyro_vi.reporting.summary import conclude
from pyro_vi.support import versions


def to_dict(comparison: Comparison, plots: Iterable[Path] = ()) -> dict[str, Any]:
    """Return the comparison as the dictionary that the command line prints as JSON.

    ELBO, evidence and their parts are in nats per datum of the data that ``evaluated_on`` names. A number that a fit does not
    have is null: a point estimate has ``log_joint``, log p(x, z), in place of an ELBO; only latents that all data share have
    ``heldout_lpd``, the log predictive density of held-out data.

    Of several guides, ``guides`` takes the place of ``estimators``. Of several seeds, the numbers are those of the first, and
    each fit has ``over_seeds``: mean, standard deviation, standard error and values of its numbers.

    Args:
        comparison: fits and audits.
        plots: paths of the figures that were written.
    """
    of_guides = comparison.across == "guides"
    return {
        "model": comparison.model,
        "guide": comparison.guide,
        "data": comparison.data.spec.name,
        "num_data": comparison.data.spec.num_data,
        "seed": comparison.seed,
        **({"seeds": list(comparison.seeds)} if comparison.repeats else {}),
        "evaluated_on": comparison.on,
        "versions": versions(),
        **(
            {"estimator": comparison.estimator, "guides": _guides(comparison)} if of_guides else _estimators(comparison)
        ),
        "conclusion": conclude(comparison),
        "plots": [str(path) for path in plots],
        "out": None if comparison.out is None else str(comparison.out),
    }


def _estimators(comparison: Comparison) -> dict[str, Any]:
    found = {name: _estimator(comparison, name, result) for name, result in comparison.results.items()}
    if comparison.repeats:
        standing = standings(comparison)
        for name, entry in found.items():
            entry |= {"behind": _behind(standing, name), "over_seeds": _over_seeds(comparison, name)}
    return {"estimators": found}


def _guides(comparison: Comparison) -> dict[str, Any]:
    """The guides that have a result, and those that were refused, each with the reason."""
    standing = standings(comparison)
    times = {name: spread_of(comparison, name, lambda result: result.run.seconds) for name in comparison.results}
    seconds = plain_ranks({name: spread.mean for name, spread in times.items() if spread is not None})
    sizes = {name: float(result.parameters.get("guide", 0)) for name, result in comparison.results.items()}
    parameters, found = plain_ranks(sizes), {}
    for name, result in comparison.results.items():
        ranks = {key: one.ranks[name] for key, one in standing.items() if name in one.ranks}
        found[name] = {
            **_numbers(result),
            "parameters": dict(result.parameters),
            "behind": _behind(standing, name),
            "ranks": {**ranks, "parameters": parameters[name], "train_seconds": seconds[name]},
            **({"over_seeds": _over_seeds(comparison, name)} if comparison.repeats else {}),
        }
    return found | {name: {"refused": why} for name, why in comparison.refused.items()}


def _behind(standing: dict[str, Standing], name: str) -> dict[str, Any]:
    """The distance of a fit behind the best one, by each number; null for the best."""
    return {
        key: None if name == one.best else {"best": one.best, **_difference(one.differences[name])}
        for key, one in standing.items()
        if name in one.means
    }


def _difference(one: Difference) -> dict[str, Any]:
    found = {key: _number(getattr(one, key)) for key in ("value", "se", "low", "high", "p")}
    if one.seeds is not None:
        found |= {
            "sd_over_seeds": _number(one.seeds.sd),
            "se_over_seeds": _number(one.seeds.se),
            "p_over_seeds": _number(one.seeds.p),
        }
    return {**found, "apart": one.apart}


def _over_seeds(comparison: Comparison, name: str) -> dict[str, Any]:
    reads: dict[str, Callable[[Result], float | None]] = {
        "elbo": lambda result: result.elbo_mean,
        "reconstruction": lambda result: float(result.evaluation.reconstruction.mean()),
        "kl": lambda result: float(result.evaluation.kl.mean()),
        "log_joint": lambda result: _mean(result.evaluation.log_joint),
        "heldout_lpd": lambda result: _mean(result.lpd),
        "evidence": lambda result: None if result.evidence is None else float(result.evidence.attrs["value"]),
        "gap": lambda result: result.gap,
        "train_seconds": lambda result: result.run.seconds,
    }
    spreads = {key: spread_of(comparison, name, read) for key, read in reads.items()}
    return {
        key: {"mean": one.mean, "sd": _number(one.sd), "se": _number(one.se), "values": list(one.values)}
        for key, one in spreads.items()
        if one is not None
    }


def _mean(values: Tensor | None) -> float | None:
    return None if values is None else float(values.mean())


def _estimator(comparison: Comparison, name: str, result: Result) -> dict[str, Any]:
    return {**_numbers(result), "audits": [_audit(step, one.sel(elbo=name)) for step, one in comparison.audits.items()]}


def _numbers(result: Result) -> dict[str, Any]:
    found, evaluation = result.evidence, result.evaluation
    return {
        "class": result.cls,
        "objective": result.objective,
        "elbo": _number(result.elbo_mean),
        "elbo_se": _number(evaluation.elbo_se),
        "reconstruction": _number(evaluation.reconstruction),
        "kl": _number(evaluation.kl),
        "log_joint": _number(evaluation.log_joint),
        "heldout_lpd": _number(result.lpd),
        "evidence": None if found is None else {key: _number(found.attrs[key]) for key in ("method", "value", "se")},
        "gap": result.gap,
        "train_seconds": result.run.seconds,
        "compiled": result.run.compiled,
        "kl_source": result.kl_source,
    }


def _number(value: Tensor | float | str | None) -> float | str | None:
    """The mean of a tensor, or a number; None for NaN, which JSON does not have."""
    number = float(value.mean()) if isinstance(value, Tensor) else value
    return None if isinstance(number, float) and math.isnan(number) else number


def _audit(step: int, one: xr.Dataset) -> dict[str, Any]:
    return {
        "step": step,
        "value_sd": float(one.value_sd),
        "grad_var": {str(part): float(one.part_grad_var.sel(part=part)) for part in one.part.values},
        "grad_snr": {str(part): float(one.part_grad_snr.sel(part=part)) for part in one.part.values},
        "seconds": float(one.seconds),
    }
