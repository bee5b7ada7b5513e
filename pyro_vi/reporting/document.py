"""A comparison as one JSON document: plain numbers and words."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xarray as xr
from torch import Tensor

from pyro_vi.comparing import Comparison, Result
from pyro_vi.reporting.summary import conclude
from pyro_vi.support import versions


def to_dict(comparison: Comparison, plots: Iterable[Path] = ()) -> dict[str, Any]:
    """Return the comparison as the dictionary that the command line prints as JSON.

    ELBO, evidence and their parts are in nats per datum of the data that ``evaluated_on`` names. A number that a fit does not
    have is null: a point estimate has ``log_joint``, log p(x, z), in place of an ELBO; only latents that all data share have
    ``heldout_lpd``, the log predictive density of held-out data.

    Args:
        comparison: fits and audits.
        plots: paths of the figures that were written.
    """
    return {
        "model": comparison.model,
        "guide": comparison.guide,
        "data": comparison.data.spec.name,
        "num_data": comparison.data.spec.num_data,
        "seed": comparison.seed,
        "evaluated_on": comparison.on,
        "versions": versions(),
        "estimators": {name: _estimator(comparison, name, result) for name, result in comparison.results.items()},
        "conclusion": conclude(comparison),
        "plots": [str(path) for path in plots],
        "out": None if comparison.out is None else str(comparison.out),
    }


def _estimator(comparison: Comparison, name: str, result: Result) -> dict[str, Any]:
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
        "audits": [_audit(step, dataset.sel(elbo=name)) for step, dataset in comparison.audits.items()],
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
