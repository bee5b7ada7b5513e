"""A multivariate normal over several sites as a chain: the normal of each site given those before it."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor


def joined(vectors: Sequence[Tensor]) -> Tensor | None:
    """Return vectors of several sites, (*particles, *rows, D_k), as one, (*particles, *rows, D); None for no vectors."""
    if not vectors:
        return None
    wide = broadcast_shape(*(vector.shape[:-1] for vector in vectors))
    return torch.cat([vector.expand(*wide, vector.shape[-1]) for vector in vectors], -1)


class NormalChain:
    """N(μ, L Lᵀ) of vectors z = μ + L ε, a site after the other.

    Args:
        loc: μ, (*rows, D).
        tril: the Cholesky factor L, (*rows, D, D).
    """

    def __init__(self, loc: Tensor, tril: Tensor) -> None:
        self.loc, self.tril = loc, tril

    def noise(self, before: Tensor | None) -> Tensor | None:
        """Return ε_<k = L_<k⁻¹ (z_<k − μ_<k) of the vectors before a site, (*particles, *rows, D_<k); None for none."""
        if before is None:
            return None
        first = slice(0, before.shape[-1])
        offset = (before - self.loc[..., first]).unsqueeze(-1)
        factor = self.tril[..., first, first].expand(*offset.shape[:-1], before.shape[-1])
        return torch.linalg.solve_triangular(factor, offset, upper=False).squeeze(-1)

    def given(self, noise: Tensor | None, place: slice) -> Any:
        """Return N(μ_k + L_k,<k ε_<k, L_kk L_kkᵀ) of the site at a place, given the noise before it."""
        mean, own = self.loc[..., place], self.tril[..., place, place]
        if noise is not None:
            mean = mean + (self.tril[..., place, : place.start] @ noise.unsqueeze(-1)).squeeze(-1)
        return dist.MultivariateNormal(mean, scale_tril=own.expand(*mean.shape[:-1], *own.shape[-2:]))
