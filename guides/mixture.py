"""The mixture guide: a mixture of diagonal normals over all sites of a datum, for posteriors with several modes."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import MixtureOfDiagNormals
from torch import Tensor, nn

from pyro_vi.amortized import AmortizedGuide, Block, Call, Part, whole
from pyro_vi.data import Batch

SPREAD = 0.5
"""Standard deviation of the components' places at the start, in units of σ: components that are equal would stay equal."""


class Mixture(AmortizedGuide):
    """Mixture guide: q(z | x) = Σ_k w_k(x) Π_d N(z_d; μ_kd(x), σ_kd(x)²).

    One mixture covers all local sites of a datum, and one all global sites, whose numbers are free parameters. Over several
    sites it is a chain: given z_1 the components have the weights w_k N(z_1; μ_k, σ_k²). Draws have pathwise gradients, also
    with respect to the weights (Jankowiak and Karaletsos 2019, arXiv:1806.01856). No KL of it has a closed form.

    Args:
        components: number K of components.

    Other arguments and errors: see `pyro_vi.amortized.AmortizedGuide`.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.vae import VAE
        >>> digits = load("digits")
        >>> guide = Mixture(VAE(digits.spec, latent_dim=2), digits.example(4), components=3)
        >>> guide(*digits.example(4))["z"].shape
        torch.Size([4, 2])
    """

    name = "mixture"
    joint = True

    def __init__(self, model: nn.Module, batch: Batch, *, components: int = 4, **options: Any) -> None:
        self._components = whole("components", components, 1)
        super().__init__(model, batch, **options)

    def parts(self, block: Block) -> dict[str, Part]:
        """log w_k, μ_kd and log σ_kd. The components start at random places, about σ / 2 from the centre."""
        count, dim = self._components, block.dim
        log_scale = self.log_scale(block)
        return {
            "logits": Part(torch.zeros(count)),
            "loc": Part(SPREAD * log_scale.exp() * torch.randn(count, dim)),
            "log_scale": Part(log_scale.expand(count, dim)),
        }

    def conditional(self, name: str, block: Block, numbers: Mapping[str, Tensor], call: Call) -> Any:
        """The components of a site, with their weights given the sites before it."""
        logits, loc, scale = numbers["logits"], numbers["loc"], numbers["log_scale"].exp()
        place, before = block.slice(name), self.drawn(block, name, call)
        if before is not None:
            first = slice(0, place.start)
            noise = (before.unsqueeze(-2) - loc[..., first]) / scale[..., first]
            logits = logits - 0.5 * noise.square().sum(-1) - scale[..., first].log().sum(-1)
        wide = logits.shape[:-1]
        return DiagonalNormals(loc[..., place].expand(*wide, -1, -1), scale[..., place].expand(*wide, -1, -1), logits)


class DiagonalNormals(MixtureOfDiagNormals):
    """Pyro's mixture of diagonal normals, also of single numbers.

    Pyro's gradient needs two dimensions. A single number gets a second one, which is N(0, 1) in all components, and loses it
    again: the gradient of the first one's law stays right.
    """

    described = "MixtureOfDiagNormals"

    def __init__(self, locs: Tensor, coord_scale: Tensor, component_logits: Tensor) -> None:
        self._single = locs.shape[-1] == 1
        if self._single:
            locs = torch.cat([locs, torch.zeros_like(locs)], -1)
            coord_scale = torch.cat([coord_scale, torch.ones_like(coord_scale)], -1)
        super().__init__(locs, coord_scale, component_logits)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw vectors with a pathwise gradient."""
        # Pyro's draws of several at once do not go with a batch shape.
        wide = self.expand(torch.Size(sample_shape) + self.batch_shape) if sample_shape else self
        value: Tensor = super(DiagonalNormals, wide).rsample()
        return value[..., :1] if self._single else value

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiagonalNormals":
        """Return the distribution with further dimensions on the left."""
        size = 1 if self._single else self.dim
        locs, scale = (part[..., :size].expand(*batch_shape, -1, -1) for part in (self.locs, self.coord_scale))
        return DiagonalNormals(locs, scale, self.component_logits.expand(*batch_shape, -1))

    def log_prob(self, value: Tensor) -> Tensor:
        """log Σ_k w_k N(z; μ_k, σ_k²)."""
        if not self._single:
            density: Tensor = super().log_prob(value)
            return density
        zero = torch.zeros_like(value)
        return super().log_prob(torch.cat([value, zero], -1)) + 0.5 * math.log(2 * math.pi)
