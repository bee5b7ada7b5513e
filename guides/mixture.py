"""The mixture guide: a mixture of diagonal normals over all sites of a datum, for posteriors with several modes."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vi.amortized import AmortizedGuide, Block, Call, Part, whole
from pyro_vi.data import Batch

SPREAD = 0.5
"""Standard deviation of the components' places at the start, in units of σ: components that are equal would stay equal."""

SLOW = 0.05
"""How much slower the weights of separate modes are learned than other parameters."""
LEAST = 30.0
"""Densities below exp(−30) count as that: it bounds the rare gradients of draws far between two components."""
NEGLIGIBLE = 5.0
"""Modes whose ELBO is so many nats below the best one's are left out: their share of the posterior is below a percent."""


class Mixture(AmortizedGuide):
    """Mixture guide: q(z | x) = Σ_k w_k(x) Π_d N(z_d; μ_kd(x), σ_kd(x)²).

    One mixture covers all local sites of a datum, and one all global sites, whose numbers are free parameters; these start at
    the modes that searches from K places find (`pyro_vi.amortized.starts`). Over several
    sites it is a chain: given z_1 the components have the weights w_k N(z_1; μ_k, σ_k²). Draws have gradients, also with
    respect to the weights (see `DiagonalNormals`). No KL of it has a closed form.

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
        self._components = self.modes = whole("components", components, 1)
        super().__init__(model, batch, **options)

    def parts(self, block: Block) -> dict[str, Part]:
        """log w_k, μ_kd and log σ_kd. Components that share a mode, or the centre, start about σ / 2 from it, at random."""
        count, dim = self._components, block.dim
        log_scale, logits = self.log_scale(block).expand(count, dim).clone(), torch.zeros(count)
        loc = SPREAD * log_scale.exp() * torch.randn(count, dim)
        known = [mode for mode in block.modes if mode.bound > block.modes[0].bound - NEGLIGIBLE]
        for k in range(count if known else 0):
            mode, share = known[k % len(known)], 1 + (count - 1 - k % len(known)) // len(known)
            loc[k], log_scale[k] = mode.loc + (loc[k] if share > 1 else 0), mode.log_scale
            # Weights in proportion to exp(ELBO) are the best ones for modes that do not overlap.
            logits[k] = mode.bound - known[0].bound - math.log(share)
        return {
            "logits": Part(logits / self._slowness(block)),
            "loc": Part(loc),
            "log_scale": Part(log_scale),
        }

    def _slowness(self, block: Block) -> float:
        """The factor between the parameters of log w and log w: less than 1 if the start has several modes.

        Draws of one mode say little about the weight of another one far away. The noise of their gradients would lead the
        weights away from their start, which is near the best.
        """
        return SLOW if len(block.modes) > 1 else 1.0

    def conditional(self, name: str, block: Block, numbers: Mapping[str, Tensor], call: Call) -> Any:
        """The components of a site, with their weights given the sites before it."""
        logits, loc, scale = self._slowness(block) * numbers["logits"], numbers["loc"], numbers["log_scale"].exp()
        place, before = block.slice(name), self.drawn(block, name, call)
        if before is not None:
            first = slice(0, place.start)
            noise = (before.unsqueeze(-2) - loc[..., first]) / scale[..., first]
            logits = logits - 0.5 * noise.square().sum(-1) - scale[..., first].log().sum(-1)
        wide = logits.shape[:-1]
        return DiagonalNormals(loc[..., place].expand(*wide, -1, -1), scale[..., place].expand(*wide, -1, -1), logits)


class DiagonalNormals(TorchDistribution):
    """Mixture of diagonal normals, Σ_k w_k Π_d N(z_d; μ_kd, σ_kd²), whose draws have gradients.

    A draw moves with the components' means and scales by the share that each has in it: dz = Σ_k r_k (dμ_k + ε_k dσ_k), where
    r_k is the probability that component k gave z, and ε_k = (z − μ_k) / σ_k. With the weights it moves so that its conditional
    distribution functions F_d = Σ_k w_k(z_<d) Φ(ε_kd) stay what they are (implicit reparameterisation: Figurnov et al. 2018,
    arXiv:1805.08498; Graves 2016, arXiv:1607.05690). Pyro's ``MixtureOfDiagNormals`` moves it in another way, whose gradient in
    the weights has no finite variance where components are narrow.

    Args:
        locs: μ, (*batch, K, D).
        coord_scale: σ, (*batch, K, D).
        component_logits: log w up to a constant, (*batch, K).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "locs": constraints.real,
        "coord_scale": constraints.positive,
        "component_logits": constraints.real,
    }
    support = constraints.real_vector
    has_rsample = True
    described = "mixture of diagonal normals"

    def __init__(self, locs: Tensor, coord_scale: Tensor, component_logits: Tensor, validate_args: Any = None) -> None:
        self.locs, self.coord_scale, self.component_logits = locs, coord_scale, component_logits
        super().__init__(locs.shape[:-2], locs.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiagonalNormals":
        """Return the distribution with further dimensions on the left."""
        size, count = self.locs.shape[-1], self.locs.shape[-2]
        locs, scale = (part.expand(*batch_shape, count, size) for part in (self.locs, self.coord_scale))
        return DiagonalNormals(locs, scale, self.component_logits.expand(*batch_shape, count))

    @property
    def mean(self) -> Tensor:
        """Σ_k w_k μ_k, (*batch, D)."""
        weights = self.component_logits.softmax(-1).unsqueeze(-1)
        return (weights * self.locs).sum(-2)

    @property
    def variance(self) -> Tensor:
        """Σ_k w_k (μ_k² + σ_k²) − mean², (*batch, D)."""
        weights = self.component_logits.softmax(-1).unsqueeze(-1)
        return (weights * (self.coord_scale.square() + (self.locs - self.mean.unsqueeze(-2)).square())).sum(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """log Σ_k w_k N(z; μ_k, diag σ_k²)."""
        noise = (value.unsqueeze(-2) - self.locs) / self.coord_scale
        logits = self.component_logits.log_softmax(-1)
        return (logits + _log_normal(noise, self.coord_scale).sum(-1)).logsumexp(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw vectors, (*sample, *batch, D), with gradients in all three arguments."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            which = dist.Categorical(logits=self.component_logits).sample(sample_shape)
            which = which[..., None, None].expand(*shape, 1, self.locs.shape[-1])
            locs, scale = (part.expand(*shape, *part.shape[-2:]) for part in (self.locs, self.coord_scale))
            loc, width = (part.gather(-2, which).squeeze(-2) for part in (locs, scale))
            z = loc + width * torch.randn_like(loc)
            noise = (z.unsqueeze(-2) - self.locs) / self.coord_scale
            each = _log_normal(noise, self.coord_scale)
            shares = (self.component_logits + each.sum(-1)).softmax(-1).unsqueeze(-1)
        moved = (shares * (self.locs + noise * self.coord_scale)).sum(-2)
        return z + (moved - moved.detach()) - self._with_weights(noise, each)

    def _with_weights(self, noise: Tensor, each: Tensor) -> Tensor:
        """Zero, with the gradient of −dz in the weights: J⁻¹ ∂F/∂w, where J = ∂F/∂z is lower triangular."""
        before = each.cumsum(-1) - each  # of the coordinates before each one
        weights = (self.component_logits.unsqueeze(-1) + before).softmax(-2)
        below = torch.special.ndtr(noise)
        with torch.no_grad():
            # In units of the conditional density, so that J has ones on its diagonal.
            density = (weights.log() + each).logsumexp(-2).clamp(min=-LEAST)
            below = below * (-density).exp().unsqueeze(-2)
            slope = -noise / self.coord_scale
            share = weights * below
            jacobian = torch.einsum("...kd,...kj->...dj", share, slope)
            jacobian = jacobian - share.sum(-2).unsqueeze(-1) * torch.einsum("...kd,...kj->...dj", weights, slope)
        moved = (weights * below).sum(-2)
        moved = moved - moved.detach()
        return torch.linalg.solve_triangular(
            jacobian.tril(-1), moved.unsqueeze(-1), upper=False, unitriangular=True
        ).squeeze(-1)


def _log_normal(noise: Tensor, scale: Tensor) -> Tensor:
    """log N(z; μ, σ²) of each coordinate, from ε = (z − μ) / σ."""
    return -0.5 * noise.square() - scale.log() - 0.5 * math.log(2 * math.pi)
