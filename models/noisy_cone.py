"""The noisy cone: a target without data whose posterior is a thin ring (Becker et al. 2024)."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError

POINTS = 200_001


class NoisyCone(nn.Module):
    """Noisy cone: x, y ~ N(0, 10²), h | x, y ~ N(r², (0.1 + r² / 100)²) with r² = x² + y², and h is observed.

    The posterior is a ring, which no normal covers: at h = 5 the log evidence is −5.323232, and the best ELBO of independent
    normals is −8.074537.

    Args:
        data: only its dtype is used; the model is fitted with ``data=None``.
        height: h.

    Raises:
        InputError: ``height`` is not positive.

    Example:
        >>> from pyro_vi.data import load
        >>> NoisyCone(load(None).spec).log_evidence()
        tensor(-5.3232)
    """

    def __init__(self, data: DataSpec, *, height: float = 5.0) -> None:
        super().__init__()
        if not height > 0:
            raise InputError(f"height must be positive, not {height!r}")
        self.register_buffer("height", torch.tensor(height, dtype=data.dtype))

    height: Tensor

    def start(self, *batch: Tensor) -> None:
        """Refuse data: the ELBO of a fit would be divided by their number."""
        raise InputError("noisy_cone is a target without data; give data=None, on the command line --data none")

    def forward(self, *_: Any) -> None:
        """Draw a point and score the height there."""
        wide = dist.Normal(torch.zeros_like(self.height), 10.0)
        x, y = pyro.sample("x", wide), pyro.sample("y", wide)
        pyro.sample("h", self._height(x**2 + y**2), obs=self.height)

    def log_evidence(self, *_: Any) -> Tensor:
        """log p(h), by quadrature: r² is exponential with mean 200."""
        most = 4 * (self.height.double() + 1)
        squares = torch.linspace(0, 1, POINTS, dtype=torch.float64, device=most.device) * most
        density = (self._height(squares).log_prob(self.height.double()) - squares / 200).exp() / 200
        return torch.trapezoid(density, squares).log().to(self.height.dtype)

    def log_density(self, grid: Tensor) -> Tensor:
        """log p(x, y, h) at points ``(..., 2)``."""
        wide = dist.Normal(torch.zeros_like(grid), 10.0).to_event(1)
        value: Tensor = wide.log_prob(grid) + self._height(grid.square().sum(-1)).log_prob(self.height)
        return value

    @staticmethod
    def _height(square: Tensor) -> Any:
        return dist.Normal(square, 0.1 + square / 100)
