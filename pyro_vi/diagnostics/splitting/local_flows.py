"""A normalizing flow for each of many densities at once, with parameters of its own.

* `best_flows` fits flows that start at given normals; `Flows` evaluates them at draws.

u = loc + root T(ε), ε ~ N(0, I). T is a monotone spline of each number (Durkan et al. 2019, arXiv:1906.04032), and then two
autoregressive shifts and scales in opposite orders (Kingma et al. 2016, arXiv:1606.04934). It starts at the identity.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vi.amortized.flows import MonotonicRQSTransform
from pyro_vi.diagnostics.splitting.descent import descend
from pyro_vi.diagnostics.splitting.normals import Normals
from pyro_vi.diagnostics.splitting.targets import LOG_2PI, Target

BINS, HIDDEN = 8, 16
STEPS, DRAWS, RATE = 400, 32, 0.02
LONGEST = 1e4
"""Longest gradient of a draw, in units of the normal that the flow starts from; a longer one comes from a draw far out."""


@dataclass(frozen=True)
class Flows:
    """Flows of R data: the normals that they start from, and the numbers of T by name, each (R, …)."""

    base: Normals
    numbers: dict[str, Tensor]

    def at(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """u, (K, R, D), and log |du/dε|, (K, R), at draws ε that all data share, (K, D), or of each datum, (K, R, D)."""
        rows, size = self.base.loc.shape
        numbers = self.numbers
        noise = noise.to(numbers["widths"])
        value = noise.transpose(0, 1) if noise.dim() == 3 else noise.expand(rows, -1, -1)
        spline = MonotonicRQSTransform(*(numbers[name].unsqueeze(1) for name in ("widths", "heights", "slopes")))
        value, ladj = spline.call_and_ladj(value)
        total = ladj.sum(-1)
        for layer in range(2 if size > 1 else 0):
            first, last = (mask.to(value) for mask in _masks(size, layer))
            hidden = torch.baddbmm(numbers[f"bias{layer}"].unsqueeze(1), value, (numbers[f"in{layer}"] * first).mT)
            both = torch.baddbmm(
                numbers[f"own{layer}"].unsqueeze(1), torch.tanh(hidden), (numbers[f"out{layer}"] * last).mT
            )
            shift, stretch = both.chunk(2, -1)
            stretch = 2 * torch.tanh(stretch / 2)
            value, total = value * stretch.exp() + shift, total + stretch.sum(-1)
        u = self.base.loc.unsqueeze(1) + value.double() @ self.base.root.mT
        return u.transpose(0, 1), total.double().mT + self.base.log_scale

    def integrand(self, target: Target, noise: Tensor) -> Tensor:
        """A function of ε, (K, R), whose mean is the ELBO."""
        with torch.no_grad():
            found = []
            for part in noise.split(max(1, target.chunk)):
                u, ladj = self.at(part)
                found.append(target.value(u) + ladj)
        return torch.cat(found) + 0.5 * self.base.loc.shape[-1] * (1 + LOG_2PI)


def best_flows(target: Target, base: Normals, seed: int, steps: int = STEPS) -> Flows:
    """Return flows that start at normals and rise in ELBO: Adam on fresh draws, the same of all data."""
    generator = torch.Generator().manual_seed(seed)
    start = _start(target.rows, target.size, generator)
    numbers = {name: value.to(target.dtype).requires_grad_() for name, value in start.items()}
    flows = Flows(base, numbers)

    def loss() -> Tensor:
        half = torch.randn(DRAWS // 2, target.size, generator=generator, dtype=torch.float64)
        u, ladj = flows.at(torch.cat([half, -half]))
        slope = target.value_and_gradient(u.detach())[1].nan_to_num(0.0, 0.0, 0.0)
        length = torch.einsum("krd,rde->kre", slope, base.root).norm(dim=-1, keepdim=True)
        slope = slope * (LONGEST / length.clamp(min=LONGEST))
        return -((u * slope).sum(-1) + ladj).mean(0).sum()

    descend(list(numbers.values()), loss, steps, RATE)
    return Flows(base, {name: value.detach() for name, value in numbers.items()})


def _masks(size: int, layer: int) -> tuple[Tensor, Tensor]:
    """Masks of the two matrices of a layer, in which a number depends on those before it, or after it in the second layer."""
    order = torch.arange(size) if layer == 0 else torch.arange(size).flip(0)
    degree = torch.arange(HIDDEN) % max(size - 1, 1)
    first = (degree[:, None] >= order[None, :]).double()
    last = (order[:, None] > degree[None, :]).double()
    return first, torch.cat([last, last])


def _start(rows: int, size: int, generator: torch.Generator) -> dict[str, Tensor]:
    layers = range(2 if size > 1 else 0)
    zeros: dict[str, tuple[int, ...]] = {"widths": (size, BINS), "heights": (size, BINS), "slopes": (size, BINS - 1)}
    for layer in layers:
        zeros |= {f"out{layer}": (2 * size, HIDDEN), f"own{layer}": (2 * size,)}
    found = {name: torch.zeros(rows, *shape, dtype=torch.float64) for name, shape in zeros.items()}
    for layer in layers:
        # The same for all data, so that a datum has the same result whatever data are beside it.
        weights = torch.randn(HIDDEN, size + 1, generator=generator, dtype=torch.float64)
        found[f"in{layer}"] = (weights[:, 1:] / size**0.5).expand(rows, -1, -1).clone()
        found[f"bias{layer}"] = weights[:, 0].expand(rows, -1).clone()
    return found
