"""log p(x, z) and its gradient at many points, for a model whose latents are all shared by the data.

`Density` evaluates the programs under `torch.func.vmap`. From the third call on it replays a recorded graph of that instead, if
this gives the same bits at another point. The programs then do not run.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import vmap

from pyro_vi.amortized.density import log_joint
from pyro_vi.amortized.frame import Call, Frame
from pyro_vi.programs import isolated
from pyro_vi.support import leaves_of
from pyro_vi.tracing import Replay, record

AT_ONCE = 2**20
"""Numbers that are kept for gradients at once."""
UNRECORDED = 2
"""Calls for a number of points before its graph is recorded, which takes as long as about three of them."""


class Density:
    """log p(x, z) + log |dz/du| of all sites' u in one vector."""

    def __init__(self, frame: Frame, call: Call, names: Sequence[str], sizes: Sequence[int], like: Tensor) -> None:
        self.frame, self.call, self.names, self.sizes, self.like = frame, call, names, list(sizes), like
        self.size = 1  # numbers that one draw keeps for gradients
        self._calls: dict[int, int] = defaultdict(int)  # by the number of points
        self._replays: dict[int, Replay | None] = {}

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density and its gradient at points, in double precision: (n,) and (n, D) for (n, D)."""
        values, gradients = [], []
        for part in points.to(self.like).split(max(1, AT_ONCE // self.size)):
            value, gradient = self._evaluated(part)
            values.append(value.double())
            gradients.append(gradient.double())
        return torch.cat(values), torch.cat(gradients)

    def _evaluated(self, points: Tensor) -> tuple[Tensor, Tensor]:
        count = len(points)
        self._calls[count] += 1
        if self._calls[count] > UNRECORDED and count not in self._replays:
            self._replays[count] = self._recorded(points)
        replay = self._replays.get(count)
        if replay is None:
            return self._eager(points)
        with torch.no_grad():
            value, gradient = replay(points)
        return value, gradient

    def _recorded(self, points: Tensor) -> Replay | None:
        """Return a graph of the evaluation; None if there is none, or if it gives other bits at another point."""
        other = points + 0.01 * (1 + points.abs())
        try:
            replay = Replay(record(self._eager, points), 0)
            with torch.no_grad():
                replay.fix()
                found = replay(other)
        except Exception:  # the programs read values, or write to tensors outside
            return None
        return replay if all(map(torch.equal, found, self._eager(other))) else None

    def _eager(self, points: Tensor) -> tuple[Tensor, Tensor]:
        u = points.detach().requires_grad_()
        value = vmap(self.one, randomness="error")(u)
        (gradient,) = torch.autograd.grad(value.sum(), u)
        return value.detach(), gradient

    def one(self, u: Tensor) -> Tensor:
        """The log density at one point."""
        parts = zip(self.names, u.split(self.sizes), strict=True)
        local, shared = log_joint(self.frame, self.call, {k: self.frame.shapes[k].to_site(v) for k, v in parts})
        return local.sum() + shared

    def fixed(self, u: Tensor) -> bool:
        """True if the value is finite, does not depend on random numbers, and has a gradient in u and nothing else."""
        found: list[Tensor] = []
        kept: dict[int, int] = {}

        def keep(value: Tensor) -> Tensor:
            kept[value.data_ptr()] = value.numel()
            return value

        for seed in (0, 1):
            kept.clear()
            with isolated(seed, validation=False), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
                u = u.detach().requires_grad_()
                found.append(self.one(u))
        self.size = max(1, len(u), sum(kept.values()))
        same = bool(found[0].isfinite()) and torch.equal(*found)
        return same and all(leaf is u for leaf in leaves_of(found[1]))
