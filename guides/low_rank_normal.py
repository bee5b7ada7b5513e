"""The low-rank normal guide: a diagonal and a few directions of correlation, for all sites of a datum together."""

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.amortized import AmortizedGuide, Block, Call, Part, whole
from pyro_vi.data import Batch


class LowRankNormal(AmortizedGuide):
    """Low-rank normal guide: q(z | x) = N(μ(x), W(x) W(x)ᵀ + diag d(x)), W of R columns (arXiv:1701.03208).

    One normal covers all local sites of a datum, and one all global sites, whose numbers are free parameters. It needs (2 +
    R) D numbers and O(D R²) operations for each datum, where ``full_normal`` needs O(D²) of both or more, and it has
    correlation along R directions only. Over several sites it is a chain: with z = μ + W f + √d ε, the factors f are normal
    given z_1, so that z_2 given z_1 is a low-rank normal too. The KL against normal priors is analytic.

    Args:
        rank: number R of columns of W, D at most; by default the square root of D, rounded up.

    Other arguments and errors: see `pyro_vi.amortized.AmortizedGuide`.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.vae import VAE
        >>> digits = load("digits")
        >>> guide = LowRankNormal(VAE(digits.spec, latent_dim=3), digits.example(4), rank=1)
        >>> guide(*digits.example(4))["z"].shape
        torch.Size([4, 3])
    """

    name = "low_rank_normal"
    joint = True

    def __init__(self, model: nn.Module, batch: Batch, *, rank: int | None = None, **options: Any) -> None:
        self._rank = None if rank is None else whole("rank", rank, 1)
        super().__init__(model, batch, **options)

    def parts(self, block: Block) -> dict[str, Part]:
        """μ, ½ log d, and W in units of √d.

        W starts at small values that differ: at 0 its gradient would be 0.
        """
        rank = min(block.dim, self._rank or math.ceil(math.sqrt(block.dim)))
        return {
            "loc": Part(torch.zeros(block.dim)),
            "log_scale": Part(self.log_scale(block)),
            "factor": Part(0.1 * torch.randn(block.dim, rank) / math.sqrt(rank), gain=0.1),
        }

    def conditional(self, name: str, block: Block, numbers: Mapping[str, Tensor], call: Call) -> Any:
        """N(μ_k + W_k m, W_k S W_kᵀ + diag d_k) of the k-th site, with f ~ N(m, S) given the sites before it."""
        loc, scale = numbers["loc"], numbers["log_scale"].exp()
        factor = scale.unsqueeze(-1) * numbers["factor"]
        place, before = block.slice(name), self.drawn(block, name, call)
        mean, own = loc[..., place], factor[..., place, :]
        if before is not None:
            first = slice(0, place.start)
            unit = factor[..., first, :] / scale[..., first].unsqueeze(-1)
            precision = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device) + unit.mT @ unit
            half = torch.linalg.cholesky(precision)
            offset = ((before - loc[..., first]) / scale[..., first]).unsqueeze(-1)
            mean = mean + (own @ torch.cholesky_solve(unit.mT @ offset, half)).squeeze(-1)
            # S = (half halfᵀ)⁻¹, so that W S Wᵀ = V Vᵀ with V = W half⁻ᵀ.
            own = torch.linalg.solve_triangular(half, own.mT, upper=False).mT
        variance = scale[..., place].square().expand(mean.shape)
        return dist.LowRankMultivariateNormal(mean, own.expand(*mean.shape, own.shape[-1]), variance)
