"""Means over standard normal draws, exact for quadratic functions and unbiased for all.

* `Draws` are pairs ε, −ε; `Draws.adjusted` takes from each pair what a quadratic in ε explains, whose mean is known.
* `mean_and_error` gives a mean over the pairs and its standard error; `matched` gives draws for a search, with covariance I.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

FOLDS = 4
"""Each fold of the pairs is adjusted by a quadratic that was fitted to the other folds, so that the mean stays unbiased."""
MOST = 1000
"""Most terms of a quadratic; beyond it, squares alone are taken, and beyond as many pairs none."""
EACH = 4
"""Least number of pairs for each term of the quadratic."""


@dataclass(frozen=True)
class Draws:
    """Standard normal draws ε and −ε, shared by all data, so that differences between two densities have little noise.

    Attributes:
        half: one of each pair, (pairs, D), in double precision.
    """

    half: Tensor

    @classmethod
    def made(cls, draws: int, size: int, seed: int) -> "Draws":
        """Return at least ``draws`` draws of vectors of length ``size``; more if the quadratic needs them."""
        terms = size * (size + 1) // 2
        pairs = max(draws // 2, 2 * FOLDS, EACH * size)
        if terms <= MOST:
            pairs = max(pairs, EACH * terms)
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randn(pairs, size, generator=generator, dtype=torch.float64))

    @property
    def both(self) -> Tensor:
        """All draws, (2 · pairs, D): ε first, then −ε."""
        return torch.cat([self.half, -self.half])

    @cached_property
    def _terms(self) -> Tensor:
        """The terms of a quadratic without its constant, each with mean 0: (pairs, terms)."""
        pairs, size = self.half.shape
        if size * (size + 1) // 2 <= min(MOST, pairs // EACH):
            row, column = torch.tril_indices(size, size)
            return self.half[:, row] * self.half[:, column] - (row == column).double()
        if size <= pairs // EACH:
            return self.half.square() - 1
        return self.half.new_zeros(pairs, 0)

    @cached_property
    def _folds(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each fold its pairs, the other pairs, and the matrix that gives the quadratic from values at the others."""
        found = []
        number = torch.arange(len(self.half)) % FOLDS
        for fold in range(FOLDS):
            here, others = (number == fold).nonzero()[:, 0], (number != fold).nonzero()[:, 0]
            rest = self._terms[others]
            found.append((here, others, torch.linalg.pinv(rest - rest.mean(0))))
        return found

    def adjusted(self, values: Tensor) -> Tensor:
        """Return the mean of each pair without what a quadratic explains, (pairs, …), from values at `both`, (2 · pairs, …).

        The mean of the result over the pairs is an unbiased estimate of the mean of the function, and has no error if the
        function is quadratic.
        """
        one, other = values.double().chunk(2)
        even = (one + other) / 2
        flat = even.flatten(1) if even.dim() > 1 else even.unsqueeze(1)
        result = flat.clone()
        for here, others, inverse in self._folds:
            rest = flat[others]
            result[here] = flat[here] - self._terms[here] @ (inverse @ (rest - rest.mean(0)))
        return result.reshape(even.shape)


def mean_and_error(adjusted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the first dimension and its standard error.

    Example:
        >>> draws = Draws.made(64, 2, seed=0)
        >>> mean, error = mean_and_error(draws.adjusted(draws.both.square().sum(1)))
        >>> round(float(mean), 6), round(float(error), 6)
        (2.0, 0.0)
    """
    return adjusted.mean(0), adjusted.std(0) / len(adjusted) ** 0.5


def matched(draws: int, size: int, seed: int) -> Tensor:
    """Return an even number of standard normal draws in pairs of opposite sign, with covariance I if there are enough.

    At a normal density their mean of any quadratic is exact; at others it has a small bias, so that they serve a search only.
    """
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(max(draws // 2, 1), size, generator=generator, dtype=torch.float64)
    enough = len(half) >= size
    half = torch.linalg.qr(half).Q * len(half) ** 0.5 if enough else half / half.square().mean(0).sqrt()
    return torch.cat([half, -half])
