"""Neal's funnel: a target without data, whose log Z is 0 and whose scale is a latent (Neal 2003, Slice sampling)."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError


class Funnel(nn.Module):
    """Funnel: v ~ N(0, s²), x_i | v ~ N(0, e^v), i = 1, …, ``dim``. Nothing is observed, so that log Z = 0.

    The best ELBO of independent normals is −½ log(1 + ``dim`` s² / 2): a normal of fixed width fits neither end of the funnel.

    Args:
        data: only its dtype is used; the model is fitted with ``data=None``.
        dim: number of the x_i.
        scale: s.

    Raises:
        InputError: an option is out of range.

    Example:
        >>> from pyro_vi.data import load
        >>> model = Funnel(load(None).spec, dim=2)
        >>> float(model.log_evidence()), round(model.best_mean_field(), 4)
        (0.0, -1.1513)
    """

    def __init__(self, data: DataSpec, *, dim: int = 9, scale: float = 3.0) -> None:
        super().__init__()
        if not (isinstance(dim, int) and dim > 0):
            raise InputError(f"dim must be a whole number of at least 1, not {dim!r}")
        if not scale > 0:
            raise InputError(f"scale is a standard deviation and must be positive, not {scale!r}")
        self.dim, self.scale = dim, scale
        self.register_buffer("zero", torch.zeros((), dtype=data.dtype))

    zero: Tensor

    def start(self, *batch: Tensor) -> None:
        """Refuse data: the ELBO of a fit would be divided by their number."""
        raise InputError("funnel is a target without data; give data=None, on the command line --data none")

    def forward(self, *_: Any) -> None:
        """Draw v and x."""
        v = pyro.sample("v", dist.Normal(self.zero, self.scale))
        with pyro.plate("dimensions", self.dim):
            pyro.sample("x", dist.Normal(torch.zeros_like(v), (v / 2).exp()))

    def log_evidence(self, *_: Any) -> Tensor:
        """log Z = 0."""
        return self.zero.clone()

    def log_density(self, grid: Tensor) -> Tensor:
        """log p(v, x_1) at points ``(..., 2)``, for pictures."""
        v, x = grid.unbind(-1)
        value: Tensor = dist.Normal(0 * v, self.scale).log_prob(v) + dist.Normal(0 * x, (v / 2).exp()).log_prob(x)
        return value

    def best_mean_field(self) -> float:
        """The best ELBO of independent normals."""
        return -0.5 * math.log(1 + self.dim * self.scale**2 / 2)
