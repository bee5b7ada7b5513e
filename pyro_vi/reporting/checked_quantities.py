"""Quantities of data by which predictive checks compare draws with what was observed.

`quantities` chooses those that tell something about some data.
"""

from collections.abc import Callable

import numpy as np

FEATURES = 100
"""Most features between which correlations are a test quantity."""


def quantities(x: np.ndarray, discrete: bool) -> dict[str, Callable[[np.ndarray], float]]:
    """Test quantities that tell something about these data; an array has the data first, and NaN where one is missing."""
    binary = discrete and bool(np.isin(x[np.isfinite(x)], (0, 1)).all())
    found: dict[str, Callable[[np.ndarray], float]] = {"mean": lambda v: float(np.nanmean(v))}
    if not binary:
        found |= {
            "sd": lambda v: float(np.nanstd(v)),
            "min": lambda v: float(np.nanmin(v)),
            "max": lambda v: float(np.nanmax(v)),
        }
    if (x == 0).any() and not binary:
        found["share of zeros"] = lambda v: float((v == 0).sum() / np.isfinite(v).sum())
    rows = x.reshape(len(x), -1) if x.ndim else x.reshape(1, 1)
    if rows.shape[0] > 2 and rows.shape[1] > 1:
        found["sd of the data's means"] = lambda v: float(np.nanstd(np.nanmean(v.reshape(len(v), -1), 1)))
        if rows.shape[1] <= FEATURES and np.isfinite(rows).all():
            # Of features that vary in the observed data.
            varying = rows.std(0) > 0
            if varying.sum() > 1:
                found["size of correlations"] = lambda v: _correlation(v.reshape(len(v), -1)[:, varying])
    return found


def _correlation(rows: np.ndarray) -> float:
    """Root of the mean square of the correlations between features; a feature without variation has none."""
    centred = rows - rows.mean(0)
    size = np.sqrt((centred**2).sum(0))
    unit = np.divide(centred, size, out=np.zeros_like(centred), where=size > 0)
    product, count = unit.T @ unit, rows.shape[1]
    return float(np.sqrt(((product**2).sum() - (np.diag(product) ** 2).sum()) / (count * (count - 1))))
