"""Pareto k-hat of importance weights: how heavy their tail is, from the largest weights alone.

* `Tail` keeps the largest log-weights of many draws; `khat` gives ArviZ's estimate of the tail's shape from them.
* `khat_error` is the standard error of the estimate, and `threshold` the k-hat up to which so many draws suffice.
"""

import math
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

UNRELIABLE = 0.7
"""k-hat above which neither the estimate nor its standard error can be trusted (Vehtari et al. 2024, arXiv:1507.02646)."""

LEAST = 25
"""Fewest draws with a k-hat: its tail has a fifth of them, and at least five."""


MOST = 500
"""Most data with a k-hat, evenly spaced: ArviZ takes more than a millisecond for each, often longer than the draws take."""


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
    count = math.floor(3 * draws**0.5) if draws > 225 else draws // 5
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
            self._parts = [self.top()]
            self._count = len(self._parts[0])

    def top(self) -> Tensor:
        """The largest log-weights so far, shape ``(size, rows)``, in falling order."""
        every = torch.cat(self._parts)
        return every.topk(min(self.size, len(every)), 0).values


def khat(top: Tensor, draws: int, most: int = MOST) -> Tensor:
    """The shape k of a generalised Pareto distribution fitted to the largest weights of each datum, by ArviZ.

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
    from arviz_stats.base import array_stats  # imported here because it takes long

    columns = top.double().T.cpu().numpy()
    for row in np.unique(np.linspace(0, len(columns) - 1, most).round().astype(int)):
        kept = columns[row]
        if not np.isfinite(kept).all() or kept[0] - kept[-1] < 1e-5:
            continue
        # The other weights count by their number only.
        every = np.concatenate([kept, np.full(draws - len(kept), kept[-1] - 1)])
        # Where latents are discrete, many weights of the tail may be one number: it has no shape then.
        with suppress(ValueError), np.errstate(all="ignore"):
            found[row] = float(array_stats.psislw(-every)[1])
    return found
