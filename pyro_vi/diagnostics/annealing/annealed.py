"""Annealed importance sampling, forward and reverse, with the transition as an argument.

* `Density` is what is annealed: log q and log w = log p(x, z) − log q(z) at positions; `Transition` moves positions.
* `forward` gives log-weights whose mean is p(x); `reverse` those whose inverse has the mean 1 / p(x), from exact draws.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Density(Protocol):
    """A path of densities π_β ∝ q w^β from a normalised start q to p(x, z) = q w, for R rows at once."""

    def draw(self, count: int) -> Tensor:
        """Draws from q, as positions (count, R, D)."""

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """log q and log w at positions (K, R, D): (K, R) each, in float64."""


Transition = Callable[[Tensor, int], Tensor]
"""Moves positions (K, R, D); the move of number t is reversible, and leaves the density at ``betas[t]`` as it is."""


def forward(density: Density, betas: Tensor, transition: Transition, chains: int) -> Tensor:
    """Return log w of K chains from q to p: log w = Σ_t (β_t − β_t−1) log w(z_t−1), with E[w] = p(x).

    The mean of log w is below log p(x), and so is that of the log of a mean of K weights (Jensen).

    Source: Neal 2001, Annealed importance sampling, Statistics and Computing 11 (arXiv:physics/9803008).

    Args:
        density: the path.
        betas: 0 = β_0 ≤ … ≤ β_T = 1 for each row, (T + 1, R) or (T + 1, 1).
        transition: moves number 1 to T − 1.
        chains: K.

    Returns:
        log-weights, (K, R), in float64.
    """
    positions = density.draw(chains)
    total = _increment(density, positions, betas, 1)
    for step in range(1, len(betas) - 1):
        positions = transition(positions, step)
        total = total + _increment(density, positions, betas, step + 1)
    return total


def reverse(density: Density, betas: Tensor, transition: Transition, exact: Tensor) -> Tensor:
    """Return log w of chains from exact draws of p(z | x) to q, with E[1 / w] = 1 / p(x): log w is too high on average.

    Exact draws are at hand only for data that were drawn together with their z. From other draws nothing is bounded.

    Source: Grosse, Ghahramani and Adams 2015, Sandwiching the marginal likelihood (arXiv:1511.02543).

    Args:
        density: the path.
        betas: as in `forward`.
        transition: moves number T − 1 to 1, in this order.
        exact: positions of the exact draws, (K, R, D); the K chains of a row may start from the same draw.

    Returns:
        log-weights, (K, R), in float64.
    """
    positions = exact
    total = _increment(density, positions, betas, len(betas) - 1)
    for step in range(len(betas) - 2, 0, -1):
        positions = transition(positions, step)
        total = total + _increment(density, positions, betas, step)
    return total


def _increment(density: Density, positions: Tensor, betas: Tensor, step: int) -> Tensor:
    with torch.no_grad():
        change, log_weight = betas[step] - betas[step - 1], density.at(positions)[1]
        # A row whose path has ended keeps its weight, also where that is not finite.
        return torch.where(change > 0, change * log_weight, 0.0)
