"""The evidence of each datum by importance sampling from what a search has found.

* `evidence_by_normals` draws from all of them in equal shares, and weighs each draw by the whole mixture (the balance
  heuristic: Veach and Guibas 1995), so that a place that one of them misses is covered by another.
* `evidence_by_flows` draws from flows, and `higher` takes the better of two estimates.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vi.diagnostics.splitting.local_flows import Flows
from pyro_vi.diagnostics.splitting.normals import Normals
from pyro_vi.diagnostics.splitting.targets import LOG_2PI, Target
from pyro_vi.diagnostics.tails import MOST, Tail, khat

Evidence = tuple[Tensor, Tensor, Tensor]
"""log p(x), its standard error by the delta method, and k-hat of the weights, (R,) each."""


def evidence_by_normals(target: Target, parts: list[Normals], particles: int, seed: int, most: int = MOST) -> Evidence:
    """Return the evidence by draws from a mixture of normals.

    Args:
        target: the densities.
        parts: normals, each (R, …).
        particles: number of draws, a multiple of the number of normals at least.
        seed: seed of the draws.
        most: most rows with a k-hat.
    """
    generator = torch.Generator().manual_seed(seed)
    each = math.ceil(particles / len(parts))
    sums = _Sums(each * len(parts))
    for part in parts:
        for noise in _noise(target, each, generator):
            u = part.loc + torch.einsum("rde,kre->krd", part.root, noise)
            mixture = torch.stack([other.log_prob(u) for other in parts]).logsumexp(0) - math.log(len(parts))
            sums.add(target.value(u) - mixture)
    return sums.evidence(most)


def evidence_by_flows(target: Target, flows: Flows, particles: int, seed: int, most: int = MOST) -> Evidence:
    """Return the evidence by draws from flows; arguments as in `evidence_by_normals`."""
    generator = torch.Generator().manual_seed(seed)
    sums = _Sums(particles)
    for noise in _noise(target, particles, generator):
        u, ladj = flows.at(noise)
        normal = -0.5 * (noise.square() + LOG_2PI).sum(-1)
        sums.add(target.value(u) - (normal - ladj))
    return sums.evidence(most)


def higher(one: Evidence, other: Evidence) -> Evidence:
    """Return the first estimate, and the other where it is higher by more than three standard errors.

    Both are too low on average, so that the higher of two different estimates is the better one. Where they agree, taking the
    higher would be too high.
    """
    take = other[0] > one[0] + 3 * one[1].hypot(other[1])
    return tuple(torch.where(take, b, a) for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


class _Sums:
    """Sums of weights, and their tail."""

    def __init__(self, draws: int) -> None:
        self.draws, self.tail = draws, Tail(draws)
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, weight: Tensor) -> None:
        """Take log-weights, (K, R); where log p is not a number the weight is 0."""
        weight = weight.nan_to_num(-math.inf, math.inf, -math.inf)
        self.parts.append((weight.logsumexp(0), (2 * weight).logsumexp(0)))
        self.tail.add(weight)

    def evidence(self, most: int) -> Evidence:
        """The evidence from all of them."""
        first, second = (torch.stack(column).logsumexp(0) for column in zip(*self.parts, strict=True))
        error = ((second - 2 * first).exp() - 1 / self.draws).clamp(min=0).sqrt()
        return first - math.log(self.draws), error, khat(self.tail.top(), self.draws, most)


def _noise(target: Target, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Standard normal draws of each datum, (k, R, D), in chunks."""
    for start in range(0, draws, target.chunk):
        count = min(target.chunk, draws - start)
        yield torch.randn(count, target.rows, target.size, generator=generator, dtype=torch.float64)
