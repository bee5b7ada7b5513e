"""Pareto k-hat of importance weights: how heavy their tail is, from the largest weights alone.

* `Tail` keeps the largest log-weights of many draws; `khat` gives the estimate of the tail's shape from them that ArviZ gives.
* `khat_error` is the standard error of the estimate, and `threshold` the k-hat up to which so many draws suffice.
"""

import math

import numpy as np
import torch
from torch import Tensor

UNRELIABLE = 0.7
"""k-hat above which neither the estimate nor its standard error can be trusted (Vehtari et al. 2024, arXiv:1507.02646)."""

LEAST = 25
"""Fewest draws with a k-hat: its tail has a fifth of them, and at least five."""


MOST = 500
"""Most data with a k-hat, evenly spaced."""


def threshold(draws: int) -> float:
    """k-hat up to which this many draws suffice: min(1 − 1 / log10(S), 0.7) (Vehtari et al. 2024, arXiv:1507.02646).

    Example:
        >>> round(threshold(1000), 3), threshold(4000)
        (0.667, 0.7)
    """
    return min(1 - 1 / math.log10(draws), UNRELIABLE) if draws > 10 else 0.0


def khat_error(k: Tensor, draws: int) -> Tensor:
    """The standard error of k-hat from S draws: (1 + k) / √M for the M = 3 √S largest weights, or a fifth of few draws.

    It is the asymptotic error of the shape of a generalised Pareto distribution (Smith 1987) from M independent values. It does
    not include the bias: a tail that is not yet Pareto among the largest weights reads low, and few draws are drawn to 0.5.
    """
    count = _in_tail(draws)
    return (1 + k).clamp(min=0.5) / max(count, 1) ** 0.5


class Tail:
    """The largest log-weights of each datum, as the draws come, in memory that does not grow with their number.

    Args:
        draws: number of draws, K; k-hat rests on the largest 3 √K of their weights, or on a fifth of few draws.
    """

    def __init__(self, draws: int) -> None:
        self.size = min(draws, math.ceil(3 * draws**0.5) + 2)
        self._parts: list[Tensor] = []
        self._count = 0

    def add(self, log_weight: Tensor) -> None:
        """Take the log-weights of some draws, shape ``(draws, rows)``."""
        self._parts.append(log_weight)
        self._count += len(log_weight)
        if self._count > 4 * self.size + 1024:
            self._parts = [self._largest()]
            self._count = len(self._parts[0])

    def top(self) -> Tensor:
        """The largest log-weights so far, shape ``(size, rows)``, in falling order."""
        self._parts = [self._largest()]
        return self._parts[0].sort(0, descending=True).values

    def _largest(self) -> Tensor:
        every = torch.cat(self._parts)
        size = min(self.size, len(every))
        if every.device.type != "cpu":
            return every.topk(size, 0).values
        # NumPy selects along memory, in a fifth of the time of torch's topk.
        columns = every.detach().numpy().T.copy()
        return torch.from_numpy(np.partition(columns, len(every) - size, 1)[:, len(every) - size :].T)


def khat(top: Tensor, draws: int, most: int = MOST) -> Tensor:
    """The shape k of a generalised Pareto distribution fitted to the largest weights of each datum, as ArviZ fits it.

    Args:
        top: the largest log-weights, shape ``(size, rows)``, of a `Tail`.
        draws: number of draws, K.
        most: most rows, evenly spaced, for which it is computed.

    Returns:
        k-hat, shape ``(rows,)``; NaN where it is not computed: with fewer than 25 draws, or where the largest weights are
        equal, as those of an exact guide are.

    Example:
        >>> tail = Tail(10_000)
        >>> tail.add(0.3 * torch.distributions.Exponential(1.0).sample((10_000, 1)))  # weights with tail shape .3
        >>> bool((khat(tail.top(), 10_000) - 0.3).abs() < 0.3)
        True
    """
    found = torch.full((top.shape[1],), math.nan, dtype=torch.float64)
    if draws < LEAST:
        return found
    columns = top.double().T.cpu().numpy()
    rows = np.unique(np.linspace(0, len(columns) - 1, most).round().astype(int))
    kept = columns[rows]
    with np.errstate(all="ignore"):
        usable = np.isfinite(kept).all(1) & (kept[:, 0] - kept[:, -1] >= 1e-5)
        shapes = _shapes(kept[usable], draws)
    found[torch.from_numpy(rows[usable])] = torch.from_numpy(shapes)
    return found


def _shapes(top: np.ndarray, draws: int) -> np.ndarray:
    """k-hat of rows of largest log-weights in falling order: what ArviZ computes one by one, for all rows at once.

    The method is that of Zhang and Stephens (2009, Technometrics 51:316), with the prior of Vehtari et al. (2024).
    """
    count = _in_tail(draws)
    weights = np.exp(top - top[:, :1])
    tail = (
        weights[:, :count][:, ::-1] - weights[:, count : count + 1]
    )  # in rising order, above the largest that is not in it
    grid = 30 + int(count**0.5)
    steps = 1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))
    found = np.full(len(top), math.nan)
    for start in range(0, len(top), 64):
        part = tail[start : start + 64]
        shape = np.stack([step / (3 * part[:, int(count / 4 + 0.5) - 1]) + 1 / part[:, -1] for step in steps], 1)
        mean = np.log1p(-shape[:, :, None] * part[:, None, :]).mean(2)
        level = count * (np.log(-shape / mean) - mean - 1)
        share = np.exp(level - level.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        # A quarter of equal weights makes NaN of all; ArviZ then takes the mean of the prior and the shape 0, and so does this.
        left = share >= 10 * np.finfo(float).eps
        share, shape = np.where(left, share, 0), np.where(left, shape, 0)
        middle = np.divide((shape * share).sum(1), share.sum(1), out=np.zeros(len(part)), where=left.any(1))
        k = np.log1p(-middle[:, None] * part).mean(1)
        found[start : start + 64] = (count * k + 10 * 0.5) / (count + 10)
    # Where latents are discrete, many weights of the tail may be one number: it has no shape then.
    found[tail[:, 0] == tail[:, -1]] = math.nan
    return found


def _in_tail(draws: int) -> int:
    return math.floor(3 * draws**0.5) if draws > 225 else draws // 5
