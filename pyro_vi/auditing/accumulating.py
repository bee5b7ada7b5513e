"""Moments of gradients over many draws, accumulated as they come: memory does not grow with the number of draws.

* `Moments`: mean and variance of each element, and the variance within each of 40 groups of draws, whose spread is the
  standard error of the variance.
* `Difference`: whether the mean of two series of vectors differs, as a z-score for each block of elements.
"""

import numpy as np
import torch
from scipy import special
from torch import Tensor

GROUPS = 40
"""Groups into which the draws fall for the standard errors of variances: their spread is known to about 1 in 9."""


class Moments:
    """Mean and centred second moment of vectors, and of groups of them (Chan, Golub and LeVeque 1979).

    Args:
        size: length of a vector.
        groups: number of groups.
        draws: number of vectors that will come, one for each draw.

    Example:
        >>> moments = Moments(1, groups=2, draws=4)
        >>> moments.add(torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64))
        >>> float(moments.mean), round(float(moments.variance), 4)
        (2.5, 1.6667)
    """

    def __init__(self, size: int, groups: int, draws: int) -> None:
        self.bounds = np.linspace(0, draws, groups + 1).astype(int)[1:]
        self.mean, self.m2 = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        self.count = 0
        self.group_variances: list[Tensor] = []
        self._open: tuple[Tensor, Tensor, int] = (torch.zeros_like(self.mean), torch.zeros_like(self.m2), 0)

    def add(self, values: Tensor) -> None:
        """Take in vectors, of shape ``(n, size)``; they may fall into several groups."""
        while len(values):
            left = int(self.bounds[len(self.group_variances)]) - self.count - self._open[2]
            part, values = values[:left].double(), values[left:]
            mean = part.mean(0)
            self._open = _merge(self._open, (mean, (part - mean).square_().sum(0), len(part)))
            if len(part) == left:
                mean, m2, count = self._open
                self.mean, self.m2, self.count = _merge((self.mean, self.m2, self.count), self._open)
                self.group_variances.append(m2 / (count - 1))
                self._open = (torch.zeros_like(mean), torch.zeros_like(m2), 0)

    @property
    def variance(self) -> Tensor:
        """Unbiased variance of each element."""
        return self.m2 / (self.count - 1)


def _merge(one: tuple[Tensor, Tensor, int], two: tuple[Tensor, Tensor, int]) -> tuple[Tensor, Tensor, int]:
    (mean, m2, n), (other, other_m2, m) = one, two
    total, delta = n + m, other - mean
    return mean + delta * (m / total), m2 + other_m2 + delta.square() * (n * m / total), total


class Difference:
    """z-scores of E[a] − E[b] for blocks of elements, from pairs (a, b) of vectors.

    The first half of the pairs gives each block a direction, that of its mean difference; the second half is projected on it,
    which makes an ordinary z-score of one number that is normal where the means agree, however many elements a block has.

    Args:
        sizes: lengths of the blocks.
        draws: number of pairs that will come, one for each draw.
        resolution: differences below this part of a block's root mean square are rounding, and count as none.
    """

    def __init__(self, sizes: list[int], draws: int, resolution: float) -> None:
        self.sizes, self.half, self.resolution = sizes, draws // 2, resolution
        self._sum = torch.zeros(sum(sizes), dtype=torch.float64)
        self._seen = 0
        self._totals = torch.zeros(
            4, len(sizes), dtype=torch.float64
        )  # number, sum, sum of squares, |b|² of each block

    def add(self, one: Tensor, two: Tensor) -> None:
        """Take in pairs, each of shape ``(n, size)``."""
        two = two.double()
        difference = one.double() - two
        left = max(0, self.half - self._seen)
        self._sum += difference[:left].sum(0)
        self._seen += len(difference)
        rest = difference[left:]
        if not len(rest):
            return
        directions = [d / d.norm().clamp(min=1e-300) for d in self._sum.split(self.sizes)]
        numbers = torch.stack([part @ d for part, d in zip(rest.split(self.sizes, 1), directions, strict=True)], 1)
        scale = torch.stack([part.square().sum() for part in two[left:].split(self.sizes, 1)])
        self._totals += torch.stack([torch.full_like(scale, len(rest)), numbers.sum(0), numbers.square().sum(0), scale])

    @property
    def z(self) -> Tensor:
        """z-score of each block; 0 where the two are equal draw for draw, to rounding."""
        count, total, squares, scale = self._totals
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0) * count / (count - 1)
        z = mean / (variance / count).sqrt()
        return torch.where(mean.abs() <= self.resolution * (scale / count).sqrt(), torch.zeros_like(z), z)

    @property
    def p(self) -> np.ndarray:
        """Two-sided p-value of each block, by Student's t: the variance is that of the second half of the pairs."""
        count = self._totals[0].numpy()
        result: np.ndarray = 2 * special.stdtr(count - 1, -self.z.abs().numpy())
        return result


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted for their number (Holm 1979): below α, an error of any one has probability at most α.

    NaN entries are no tests and stay NaN.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03]))
        array([0.03, 0.06, 0.06])
    """
    flat = p.ravel()
    tests = np.flatnonzero(~np.isnan(flat))
    order = tests[np.argsort(flat[tests])]
    adjusted = np.full(flat.shape, np.nan)
    steps = flat[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.reshape(p.shape)
