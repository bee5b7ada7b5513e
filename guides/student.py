"""The Student guide: independent Student-t distributions, with heavier tails than a normal."""

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vi.amortized import AmortizedGuide, Block, Call, Part

LEAST = 1.0
"""Degrees of freedom are larger than this."""


class Student(AmortizedGuide):
    """Student guide: q(z | x) = Π_d t_ν(z_d; μ_d(x), σ_d(x)), with a learned ν > 1 for each number.

    ν starts at 10. Heavier tails than a normal's cover a heavy-tailed posterior, and keep importance weights bounded where
    a normal's are not (Domke and Sheldon 2018, arXiv:1808.09034). The KL against a normal prior is analytic for ν > 2 and
    infinite below. Everything else is as in ``diag_normal``.

    Args and errors: see `pyro_vi.amortized.AmortizedGuide`.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.vae import VAE
        >>> digits = load("digits")
        >>> guide = Student(VAE(digits.spec, latent_dim=2), digits.example(4))
        >>> guide(*digits.example(4))["z"].shape
        torch.Size([4, 2])
    """

    name = "student"

    def parts(self, block: Block) -> dict[str, Part]:
        """μ, log σ and the logarithm of ν − 1 of each number."""
        return {
            "loc": Part(torch.zeros(block.dim)),
            "log_scale": Part(self.log_scale(block)),
            "log_df": Part(torch.full((block.dim,), math.log(10.0 - LEAST)), gain=0.1),
        }

    def conditional(self, name: str, block: Block, numbers: Mapping[str, Tensor], call: Call) -> Any:
        """t_ν(μ, σ) of each number."""
        df = LEAST + numbers["log_df"].exp()
        return dist.StudentT(df, numbers["loc"], numbers["log_scale"].exp())
