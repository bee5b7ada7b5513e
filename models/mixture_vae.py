"""A VAE with a Gaussian mixture as its prior: a discrete and a continuous latent of each datum."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.likelihoods import likelihood_of
from pyro_vi.networks import mlp
from pyro_vi.programs import data_plate

ENUMERATE = ("model", "guide")


class MixtureVAE(nn.Module):
    """Mixture VAE: c ~ Categorical(π), z | c ~ N(m_c, diag s_c²), x | z ~ p(x | f(z)), f an MLP.

    Jiang et al. (2017, arXiv:1611.05148) call it VaDE. π, m and s are parameters. The model marks c for enumeration: under the
    estimator ``enum``, the bound is E_q(z | x)[log p(x | z) + log Σ_c π_c N(z; m_c, s_c²) − log q(z | x)], that of a VAE whose
    prior is the mixture. With ``enumerate="guide"``, c gets a q(c | x) from the guide, and the bound is smaller by
    E_q(z | x) KL(q(c | x) ‖ p(c | z)); all estimators for discrete latents then serve it.

    Args:
        data: description of the data set: shape, support, size.
        components: number of components.
        latent_dim: dimension of z.
        hidden: widths of the decoder's hidden layers.
        activation: ``"tanh"``, ``"relu"``, ``"elu"``, ``"gelu"`` or ``"softplus"``.
        spread: standard deviation of the initial m_c about 0; s starts at 1.
        enumerate: ``"model"`` or ``"guide"``: who has c.
        likelihood: a name of `pyro_vi.likelihoods`, or ``"auto"``, which chooses by the support of the data.
        scale: standard deviation of x for the Gaussian likelihoods; the initial value if it is learned.
        floor: the smallest standard deviation of ``"gaussian_scale"``.
        levels: the largest value of data with levels, for the likelihoods that need it.

    Raises:
        InputError: the likelihood has no density at the data's values, or an option is out of range.

    Example:
        >>> from pyro_vi.data import load
        >>> model = MixtureVAE(load("digits").spec, components=3, latent_dim=2)
        >>> model.assign(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        data: DataSpec,
        *,
        components: int = 10,
        latent_dim: int = 8,
        hidden: tuple[int, ...] = (64,),
        activation: str = "tanh",
        spread: float = 1.0,
        enumerate: str = "model",
        likelihood: str = "auto",
        scale: float = 1.0,
        floor: float = 0.01,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("components", components), ("latent_dim", latent_dim)):
            if not (isinstance(value, int) and value > 0):
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
        if enumerate not in ENUMERATE:
            raise InputError(f"enumerate must be 'model' or 'guide', not {enumerate!r}")
        if not spread >= 0:
            raise InputError(f"spread is a standard deviation and must not be negative, not {spread!r}")
        self.data, self.latent_dim, self.components = data, latent_dim, components
        self.law = likelihood_of(likelihood, data, scale=scale, floor=floor, levels=levels)
        self.likelihood = self.law.name
        self.decoder = mlp(latent_dim, hidden, self.law.numbers, activation)
        self.law.register(self)
        self.logits = nn.Parameter(torch.zeros(components))
        # The scale of a random decoder does not depend on it, so that means far apart stay clusters of their own.
        self.loc = nn.Parameter(
            spread * torch.randn(components, latent_dim) if components > 1 else torch.zeros(1, latent_dim)
        )
        self.log_scale_of_z = nn.Parameter(torch.zeros(components, latent_dim))
        self.infer = {"enumerate": "parallel"} if enumerate == "model" else {}
        self.to(data.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Draw c and z and score the batch ``x`` of shape ``(B, *event_shape)``; return ``x``."""
        infer: Any = dict(self.infer)
        with data_plate(self.data.num_data, x):
            c = pyro.sample("c", dist.Categorical(logits=self.logits), infer=infer)
            z = pyro.sample("z", dist.Normal(self.loc[c], self.log_scale_of_z[c].exp()).to_event(1))
            value: Tensor = pyro.sample("x", self.observation(z), obs=x)
        return value

    def observation(self, z: Tensor) -> Any:
        """Distribution of x given z, for z of shape ``(..., latent_dim)``."""
        return self.law(self.decoder(z), self.law.kept(self))

    def decode(self, z: Tensor) -> Tensor:
        """E[x | z], for z of shape ``(..., latent_dim)``: shape ``(..., *event_shape)``."""
        return self.law.mean(self.decoder(z), self.law.kept(self))

    def assign(self, z: Tensor) -> Tensor:
        """p(c | z) for z of shape ``(..., latent_dim)``: shape ``(..., components)``."""
        distance = (z.unsqueeze(-2) - self.loc) / self.log_scale_of_z.exp()
        density = (-0.5 * distance.square() - self.log_scale_of_z - 0.5 * math.log(2 * math.pi)).sum(-1)
        return (density + self.logits).softmax(-1)
