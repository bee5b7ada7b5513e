"""The gradient variance that is left when the draws of all other sites are held: which site the noise comes from.

* `SiteVariances` takes in the gradients of an audit as they come, and evaluates further draws where it must.
"""

import torch
from torch import Tensor

from pyro_vi.auditing.evaluator import Evaluator, stacked

PAIRS = 200
"""Pairs of draws for the share of each site in the variance."""
KEPT = 2**22
"""Most numbers of gradients that are kept until those come that they are compared with."""


class SiteVariances:
    """½ E|g(z) − g(z')|² by element, where z' has other draws at one site only (the total effect of Jansen 1999).

    Pair i is draw i with draw i + n, for n pairs. If all draws are for one site, z' is draw i + n itself.

    Args:
        evaluator: evaluates one estimator.
        seeds: of all draws.
        num_data: what gradients are divided by.

    Attributes:
        result: the variance by site; empty where draws cannot be told apart.
    """

    def __init__(self, evaluator: Evaluator, seeds: list[int], num_data: int) -> None:
        self.evaluator, self.seeds, self.num_data = evaluator, seeds, num_data
        self.pairs = min(PAIRS, len(seeds) // 2)
        captured = evaluator.captured
        draws = captured.draws if captured is not None else ()
        self._sites = [draw.site for draw in draws]
        named = dict.fromkeys(site for site in self._sites if site is not None)
        self.result = {site: torch.zeros(evaluator.size, dtype=torch.float64) for site in named}
        alone = len(set(self._sites)) == 1 and self.pairs * evaluator.size <= KEPT
        self._kept: list[Tensor] | None = [] if alone else None

    def add(self, start: int, gradients: Tensor) -> None:
        """Take in gradients per datum of the draws from number ``start`` on, shape ``(draws, size)``; in their order."""
        if not self.result:
            return
        first = gradients[: max(0, self.pairs - start)]
        if self._kept is None:
            if len(first):
                self._mix(start, first)
            return
        if len(first):
            self._kept.append(first)
        low, high = max(self.pairs, start), min(2 * self.pairs, start + len(gradients))
        if low < high:
            before = torch.cat(self._kept) if len(self._kept) > 1 else self._kept[0]
            self._kept = [before] if high < 2 * self.pairs else []
            (site,) = self.result
            self._take(site, gradients[low - start : high - start] - before[low - self.pairs : high - self.pairs])

    def _mix(self, start: int, gradients: Tensor) -> None:
        """Evaluate the draws from ``start`` on with those of each site taken from their partners."""
        evaluator, stop = self.evaluator, start + len(gradients)
        assert evaluator.captured is not None
        parts = (self.seeds[start:stop], self.seeds[self.pairs + start : self.pairs + stop])
        base, other = (stacked(evaluator.captured, part, evaluator.args) for part in parts)
        for site in self.result:
            mixed = [o if own == site else b for own, b, o in zip(self._sites, base, other, strict=True)]
            self._take(site, evaluator.at(mixed)[1].div_(self.num_data).sub_(gradients))

    def _take(self, site: str, difference: Tensor) -> None:
        self.result[site] += difference.square_().sum(0).mul_(0.5 / self.pairs)
