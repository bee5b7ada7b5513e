"""Tests that ranks are uniform, with exact p-values and bands.

* `p_value` tests ranks by their distribution function, and `band` is where it lies if they are uniform (Säilynoja, Bürkner and
  Vehtari 2022, arXiv:2103.10522). Both rest on one exact computation, `outside`.
* `edges` are the values at which the distribution function is compared.

ArviZ's bands are found by simulation, which gives no p-value below 1 in their number. Those here are exact, and agree with
them.
"""

from functools import lru_cache

import numpy as np
from scipy import special

EDGES = 99
"""Most values at which the distribution function is compared."""


def edges(draws: int) -> np.ndarray:
    """Return the counts j at which P(rank < j) is compared with j / (K + 1): at most 99 of them, evenly spaced.

    Args:
        draws: K, the number of draws among which each value is ranked.

    Example:
        >>> edges(3)
        array([1, 2, 3])
    """
    return np.unique(np.linspace(1, draws, EDGES).round().astype(int))


def p_value(ranks: np.ndarray, draws: int) -> float:
    """Return the exact p-value of the hypothesis that ranks are independent and uniform on 0, …, K.

    The statistic is the smallest, over the edges j, of the two-sided binomial probability of as many ranks below j, or as few.

    Args:
        ranks: whole numbers from 0 to K, of shape ``(n,)``.
        draws: K.

    Returns:
        A probability; NaN without ranks. It is exact also where it is as small as 1e-300.

    Example:
        >>> round(p_value(np.arange(100), 99), 6)
        1.0
        >>> p_value(np.arange(100) // 2, 99) < 1e-20
        True
    """
    count = len(ranks)
    if not count:
        return float("nan")
    below = np.searchsorted(np.sort(ranks), edges(draws), side="left")
    lower, upper = _tails(count, draws)
    columns = np.arange(len(below))
    least = float(np.minimum(lower[below, columns], upper[below, columns]).min())
    return outside(count, draws, least)


def band(count: int, draws: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the simultaneous band of the distribution function of uniform ranks: its lower and upper end at each edge.

    The share of ranks below each edge j lies within the band at all edges at once with a probability of at least ``level``.

    Args:
        count: n, the number of ranks.
        draws: K.
        level: the probability.

    Example:
        >>> lower, upper = band(1000, 199)
        >>> bool(((lower < edges(199) / 200) & (edges(199) / 200 < upper)).all())
        True
    """
    low, high = _ends(count, draws, _critical(count, draws, level))
    return low / count, high / count


@lru_cache(maxsize=4096)
def outside(count: int, draws: int, tail: float) -> float:
    """Return the probability that the number of ranks below some edge has a binomial tail of at most ``tail``.

    The numbers below the edges are those of a Poisson process given its total, so that the probability is a product of
    convolutions. What leaves the band at an edge is added up there: all terms are positive, and nothing cancels.

    Args:
        count: n, the number of ranks.
        draws: K.
        tail: the largest one-sided binomial probability that counts as outside.
    """
    low, high = _ends(count, draws, tail)
    cells = draws + 1
    places = edges(draws)
    steps = np.diff(places, prepend=0) * (count / cells)
    rest = count - places * (count / cells)
    total = float(_poisson(np.array([count]), float(count))[0])
    alive, first = np.ones(1), 0  # the probabilities of the numbers below the last edge, from the smallest number
    left = 0.0
    for lowest, highest, step, mean in zip(low, high, steps, rest, strict=True):
        after = np.convolve(alive, _poisson(np.arange(count - first + 1), step))[: count - first + 1]
        numbers = np.arange(first, first + len(after))
        gone = (numbers < lowest) | (numbers > highest)
        left += float((after[gone] * _poisson(count - numbers[gone], mean)).sum())
        alive, first = after[~gone], int(max(lowest, first))
        if not len(alive):
            break
    return min(1.0, left / total)


def _poisson(number: np.ndarray, mean: float) -> np.ndarray:
    return np.exp(special.xlogy(number, mean) - mean - special.gammaln(number + 1))


@lru_cache(maxsize=8)
def _tails(count: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """P(B ≤ r) and P(B ≥ r) of the number B of ranks below each edge, both of shape (n + 1, edges)."""
    numbers, share = np.arange(count + 1)[:, None], edges(draws)[None] / (draws + 1)
    lower = special.bdtr(numbers, count, share)
    upper = np.where(numbers == 0, 1.0, special.bdtrc(numbers - 1, count, share))
    return lower, upper


def _ends(count: int, draws: int, tail: float) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest number of ranks below each edge whose tails are above ``tail``; empty where none is."""
    lower, upper = _tails(count, draws)
    return (lower <= tail).sum(0), count - (upper <= tail).sum(0)


@lru_cache(maxsize=64)
def _critical(count: int, draws: int, level: float) -> float:
    """The largest tail at which the band still has its level."""
    low, high = -40.0, 0.0
    for _ in range(40):
        middle = (low + high) / 2
        if outside(count, draws, float(np.exp(middle))) <= 1 - level:
            low = middle
        else:
            high = middle
    return float(np.exp(low))
