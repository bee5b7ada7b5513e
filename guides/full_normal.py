"""The full normal guide: one multivariate normal for all sites of a datum, and one for all sites that the data share."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vi.amortized import AmortizedGuide, Block, Call, NormalChain, Part, lower_triangle


class FullNormal(AmortizedGuide):
    """Full normal guide: q(z | x) = N(μ(x), L(x) L(x)ᵀ), with μ and the Cholesky factor L from an encoder.

    One normal covers all local sites of a datum, and one all global sites, for which μ and L are free parameters; local and
    global sites are independent of each other. Over several sites it is the chain q(z_1) q(z_2 | z_1) …, each a multivariate
    normal with mean μ_k + L_k,<k ε_<k and Cholesky factor L_kk, so that the KL against normal priors is analytic site by site.
    Constrained sites are mapped to their support by a bijection (Kucukelbir et al. 2017, arXiv:1603.00788). L has D(D + 1)/2
    numbers for each datum: beyond some tens of dimensions, use ``low_rank_normal``.

    Args and errors: see `pyro_vi.amortized.AmortizedGuide`.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.vae import VAE
        >>> digits = load("digits")
        >>> guide = FullNormal(VAE(digits.spec, latent_dim=2), digits.example(4))
        >>> guide(*digits.example(4))["z"].shape
        torch.Size([4, 2])
    """

    name = "full_normal"
    joint = True
    rooted = True

    def parts(self, block: Block) -> dict[str, Part]:
        """μ, the logarithms of the diagonal of L, and what is below it in units of the diagonal."""
        below = block.dim * (block.dim - 1) // 2
        return {
            "loc": Part(torch.zeros(block.dim)),
            "log_scale": Part(self.log_scale(block)),
            "lower": Part(torch.zeros(below), gain=1 / math.sqrt(max(block.dim, 1))),
        }

    def conditional(self, name: str, block: Block, numbers: Mapping[str, Tensor], call: Call) -> Any:
        """N(μ_k + L_k,<k ε_<k, L_kk L_kkᵀ) of the k-th site."""
        chain = self.chain(block, numbers)
        return chain.given(chain.noise(self.drawn(block, name, call)), block.slice(name))

    def chain(self, block: Block, numbers: Mapping[str, Tensor]) -> NormalChain:
        """The normal of all sites of the block, (*rows, D)."""
        return NormalChain(*block.correlated(numbers["loc"], lower_triangle(numbers["log_scale"], numbers["lower"])))
