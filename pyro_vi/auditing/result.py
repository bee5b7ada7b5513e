"""The dataset of an audit: its dimensions, variables and coordinates."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import special
from torch import Tensor

from pyro_vi.auditing.accumulating import Difference, Moments, holm
from pyro_vi.auditing.evaluator import Evaluator
from pyro_vi.auditing.timing import Cost

PARTS = ("model", "guide")


@dataclass
class Record:
    """The measurements of one estimator in an audit."""

    evaluator: Evaluator
    target: str
    gradients: Moments
    values: Moments
    sources: dict[str, str]
    cost: Cost
    against: Difference | None = None
    site_var: dict[str, Tensor] = field(default_factory=dict)


def dataset_of(records: dict[str, Record], sizes: list[int], names: list[str], owners: list[str]) -> xr.Dataset:
    """The records of an audit as a dataset over ``elbo, parameter, part, site``.

    Args:
        records: the measurements of each estimator, by its name.
        sizes: number of elements of each parameter.
        names: names of the parameters.
        owners: ``"model"`` or ``"guide"`` for each parameter.
    """
    belongs = np.array([[owner == part for owner in owners] for part in PARTS], dtype=float).reshape(len(PARTS), -1)

    def per_parameter(vector: Tensor) -> np.ndarray:
        return np.array([float(piece.sum()) for piece in vector.split(sizes)]) if sizes else np.zeros(0)

    rows: dict[str, list[np.ndarray]] = {}
    for record in records.values():
        moments = record.gradients
        square, variance = per_parameter(moments.mean.square()), per_parameter(moments.variance)
        grouped = np.stack([per_parameter(v) for v in moments.group_variances])
        for prefix, weights in (("", np.eye(len(sizes))), ("part_", belongs)):
            for key, value in _columns(weights, square, variance, grouped).items():
                rows.setdefault(prefix + key, []).append(value)
            rows.setdefault(prefix + "work_var", []).append(weights @ variance * record.cost.seconds)
    variables: dict[str, Any] = {
        key: (("elbo", "part" if key.startswith("part_") else "parameter"), np.stack(value))
        for key, value in rows.items()
    }
    every = list(records.values())
    sd = np.array([float(r.values.variance.sqrt()) for r in every])
    nan = np.full(len(sizes), np.nan)
    z = np.stack([nan if r.against is None else r.against.z.numpy() for r in every])
    p = np.stack([nan if r.against is None else r.against.p for r in every])
    sites = list(dict.fromkeys(site for r in every for site in r.sources))
    nothing = torch.full((sum(sizes),), math.nan, dtype=torch.float64)
    site_var = [[belongs @ per_parameter(r.site_var.get(site, nothing)) for site in sites] for r in every]
    return xr.Dataset(
        {
            "value_mean": ("elbo", np.array([float(r.values.mean) for r in every])),
            "value_sd": ("elbo", sd),
            "value_se": ("elbo", sd / np.sqrt([r.values.count for r in every])),
            **variables,
            "bias_z": (("elbo", "parameter"), z),
            "bias_p": (("elbo", "parameter"), holm(p)),
            "site_var": (("elbo", "site", "part"), np.array(site_var).reshape(len(every), len(sites), len(PARTS))),
            "kl_source": (
                ("elbo", "site"),
                np.array([[r.sources.get(s, "") for s in sites] for r in every], dtype=str),
            ),
            "seconds": ("elbo", np.array([r.cost.seconds for r in every])),
            "seconds_iqr": ("elbo", np.array([r.cost.spread for r in every])),
            "seconds_se": ("elbo", np.array([r.cost.error for r in every])),
            "peak_bytes": ("elbo", np.array([r.cost.peak_bytes for r in every])),
            "method": ("elbo", np.array(["loop" if r.evaluator.captured is None else "vmap" for r in every])),
        },
        coords={
            "elbo": list(records),
            "target": ("elbo", np.array([r.target for r in every])),
            "parameter": np.array(names, dtype=str),
            "owner": ("parameter", np.array(owners, dtype=str)),
            "part": list(PARTS),
            "site": np.array(sites, dtype=str),
        },
    )


def _columns(
    weights: np.ndarray, square: np.ndarray, variance: np.ndarray, grouped: np.ndarray
) -> dict[str, np.ndarray]:
    mean, spread = np.sqrt(weights @ square), weights @ variance
    error = (grouped @ weights.T).std(0, ddof=1) / np.sqrt(len(grouped))
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = mean / np.sqrt(spread)
        # On the log scale, where the error of a variance is nearly normal and no bound falls below 0.
        width = np.exp(special.stdtrit(len(grouped) - 1, 0.975) * np.where(spread > 0, error / spread, 0))
    return {
        "grad_mean": mean,
        "grad_var": spread,
        "grad_var_se": error,
        "grad_var_low": spread / width,
        "grad_var_high": spread * width,
        "grad_snr": snr,
    }
