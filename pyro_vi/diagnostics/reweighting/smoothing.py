"""Pareto-smoothed weights, and moments of draws with them.

* `smoothed` gives ArviZ's smoothed log-weights and k-hat of each column of log-weights.
* `moments_with` gives means and standard deviations of draws, plain and weighted, with their Monte Carlo errors.
"""

from contextlib import suppress

import numpy as np
import torch
from torch import Tensor


def smoothed(log_weight: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return normalised Pareto-smoothed log-weights, (draws, rows), and k-hat, (rows,), by `arviz_stats`.

    Columns whose largest weights are equal are not smoothed, and have no k-hat (NaN); where weights are no finite numbers,
    k-hat is infinite and the weights are equal.

    Args:
        log_weight: log-weights, (draws, rows), float64.
    """
    from arviz_stats.base import array_stats  # imported here because it takes long

    found = log_weight.T.cpu().numpy().copy()
    k = np.full(len(found), np.nan)
    tail = max(5, min(int(3 * log_weight.shape[0] ** 0.5), log_weight.shape[0] // 5))
    for row, values in enumerate(found):
        top = values.max()
        if not np.isfinite(top):
            found[row], k[row] = 0.0, np.inf
            continue
        if top - np.partition(values, -tail)[-tail] >= 1e-5:
            # Where latents are discrete, many weights of the tail may be one number: it has no shape then.
            with suppress(ValueError), np.errstate(all="ignore"):
                new, shape = array_stats.psislw(-values)
                if np.isfinite(new.max()):
                    found[row], k[row] = new, float(shape)
    smooth = torch.from_numpy(found).T
    return smooth - smooth.logsumexp(0), k


def moments_with(values: Tensor, log_weight: Tensor) -> dict[str, Tensor]:
    """Return moments of draws, each (rows, D), and their standard errors.

    With normalised weights w and deviations d of the draws from the mean, the variance of the mean is Σ w² d², and that of the
    standard deviation s is Σ w² (d² − s²)² / (2 s)², by the delta method. Shift and ratio are of the same draws, so that what
    both have in common is not counted twice.

    Where all draws are one number, as of a discrete state, both standard deviations are 0, and shift and ratio are NaN.

    Args:
        values: (draws, rows, D).
        log_weight: normalised log-weights, (draws, rows).
    """
    same = (values == values[0]).all(0)
    w, even = log_weight.exp().unsqueeze(-1), 1 / len(values)

    def of(weights: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean = (weights * values).sum(0)
        away = values - mean
        # Of one and the same number, a discrete state, rounding of the mean alone is left.
        sd = (weights * away.square()).sum(0).sqrt().masked_fill(same, 0.0)
        # The influence of each draw on the mean, and on the logarithm of the standard deviation.
        return mean, sd, weights * away, weights * (away.square() / sd.square() - 1) / 2

    mean, sd, on_mean, on_log_sd = of(even)
    psis_mean, psis_sd, psis_on_mean, psis_on_log_sd = of(w)
    ratio = psis_sd / sd

    def error(influence: Tensor) -> Tensor:
        return influence.square().sum(0).sqrt()

    shift = (psis_mean - mean) / sd
    return {
        "guide_mean": mean,
        "guide_mean_se": error(on_mean),
        "guide_sd": sd,
        "guide_sd_se": sd * error(on_log_sd),
        "psis_mean": psis_mean,
        "psis_mean_se": error(psis_on_mean),
        "psis_sd": psis_sd,
        "psis_sd_se": psis_sd * error(psis_on_log_sd),
        "mean_shift": shift,
        "mean_shift_se": error((psis_on_mean - on_mean) / sd - shift * on_log_sd),
        "sd_ratio": ratio,
        "sd_ratio_se": ratio * error(psis_on_log_sd - on_log_sd),
    }
