"""Two moons: a density in the plane with two curved modes (Rezende and Mohamed 2015, arXiv:1505.05770, table 1)."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError

PRIOR, EDGE, POINTS = 2.0, 6.0, 601
"""Standard deviation of the base measure; half the side of the square of the quadrature, and its points along a side."""


class TwoMoons(nn.Module):
    """Two moons: p(z) ∝ exp(−U(z)), U(z) = ½ ((‖z‖ − 2) / 0.4)² − log(exp(−½ ((z_1 − 2) / 0.6)²) + exp(−½ ((z_1 + 2) / 0.6)²)).

    In the program, z ~ N(0, 2² I), and a factor makes the density exp(−U) of it, so that log Z = log ∫ exp(−U(z)) dz.

    Args:
        data: only its dtype is used; the model is fitted with ``data=None``.

    Example:
        >>> from pyro_vi.data import load
        >>> TwoMoons(load(None).spec).log_evidence()
        tensor(1.8775)
    """

    def __init__(self, data: DataSpec) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(2, dtype=data.dtype))

    zero: Tensor

    def start(self, *batch: Tensor) -> None:
        """Refuse data: the ELBO of a fit would be divided by their number."""
        raise InputError("two_moons is a target without data; give data=None, on the command line --data none")

    def forward(self, *_: Any) -> None:
        """Draw a point and weigh it."""
        prior = dist.Normal(self.zero, PRIOR).to_event(1)
        z = pyro.sample("z", prior)
        pyro.factor("moons", self.log_density(z) - prior.log_prob(z))

    def log_evidence(self, *_: Any) -> Tensor:
        """log ∫ exp(−U(z)) dz, by quadrature on a square grid beyond which the density is below 1e−20."""
        side = torch.linspace(-EDGE, EDGE, POINTS, dtype=torch.float64, device=self.zero.device)
        density = self.log_density(torch.cartesian_prod(side, side)).exp().reshape(POINTS, POINTS)
        value: Tensor = torch.trapezoid(torch.trapezoid(density, side), side).log()
        return value.to(self.zero.dtype)

    def log_density(self, grid: Tensor) -> Tensor:
        """−U at points ``(..., 2)``."""
        first = grid[..., 0]
        halves = torch.stack([-0.5 * ((first - 2) / 0.6) ** 2, -0.5 * ((first + 2) / 0.6) ** 2])
        return halves.logsumexp(0) - 0.5 * ((grid.norm(dim=-1) - 2) / 0.4) ** 2
