"""The point guide: one value for each latent, which maximises log p(x, z)."""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vi.amortized import AmortizedGuide, Block, Call, Part
from pyro_vi.amortized.shapes import Shape
from pyro_vi.programs import Latent

NEAR = 0.1
"""Free parameters start at this distance from the centre, in units of the prior's standard deviation."""


class Point(AmortizedGuide):
    """Point guide: z = f(x), an encoder's value for local sites and a free parameter for global ones (MAP).

    It is no density, and has no ELBO, no KL and no evidence: a fit maximises log p(x, z), the density on the support of z, as
    Pyro's ``AutoDelta`` does. Its value does not say how certain it is. Discrete sites get a distribution, as in the others.

    Args and errors: see `pyro_vi.amortized.AmortizedGuide`.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.vae import VAE
        >>> digits = load("digits")
        >>> guide = Point(VAE(digits.spec, latent_dim=2), digits.example(4))
        >>> guide(*digits.example(4))["z"].shape
        torch.Size([4, 2])
    """

    name = "point"

    def parts(self, block: Block) -> dict[str, Part]:
        """The value of each number, in units of the prior."""
        # The centre of the prior is a saddle of many densities, such as that of a network's weights, and has no gradient.
        return {"loc": Part(torch.zeros(block.dim) if block.encoded else NEAR * torch.randn(block.dim))}

    def conditional(self, name: str, block: Block, numbers: Mapping[str, Tensor], call: Call) -> Any:
        """The value."""
        return dist.Delta(numbers["loc"])

    def placed(self, vectors: Any, name: str, site: Latent, shape: Shape, block: Block) -> Any:
        """All mass at the value on the support of the site."""
        start, spread = block.units(name)
        u = shape.to_site(start + spread * vectors.v)
        value = site.bijection_on(u.device)(u)
        return dist.Delta(value).to_event(len(site.event_shape))
