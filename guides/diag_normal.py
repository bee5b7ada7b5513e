"""The diagonal normal guide: independent normals, amortized for local sites and free for global ones."""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vi.amortized import AmortizedGuide, Block, Call, Part


class DiagNormal(AmortizedGuide):
    """Diagonal normal guide: q(z | x) = Π_d N(z_d; μ_d(x), σ_d(x)²), with μ and log σ from an encoder (arXiv:1312.6114).

    For a global site, μ and log σ are free parameters. For a site with a constrained support, the normal is mapped to the
    support by a bijection (Kucukelbir et al. 2017, arXiv:1603.00788). The KL against a normal or log-normal prior is analytic.

    Args and errors: see `pyro_vi.amortized.AmortizedGuide`.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.vae import VAE
        >>> digits = load("digits")
        >>> guide = DiagNormal(VAE(digits.spec, latent_dim=2), digits.example(4))
        >>> guide(*digits.example(4))["z"].shape
        torch.Size([4, 2])
    """

    name = "diag_normal"

    def parts(self, block: Block) -> dict[str, Part]:
        """μ and log σ of each number."""
        return {"loc": Part(torch.zeros(block.dim)), "log_scale": Part(self.log_scale(block))}

    def conditional(self, name: str, block: Block, numbers: Mapping[str, Tensor], call: Call) -> Any:
        """N(μ, σ²) of each number."""
        return dist.Normal(numbers["loc"], numbers["log_scale"].exp())

    def parameters_of(self, *args: Any, **kwargs: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Return loc and scale of every site on the unconstrained scale; those of a local site have one row per datum.

        Where the model draws a minibatch of its own, they are those of all rows.
        """
        call = self.frame.call(args, kwargs, every=True)
        found = {}
        for name, numbers in self.numbers(call):
            shape, (start, spread) = self.shape(name, call.sites[name]), self.block(name).units(name)
            loc, scale = start + spread * numbers["loc"], spread * numbers["log_scale"].exp()
            found[name] = shape.to_site(loc), shape.to_site(scale)
        return found
