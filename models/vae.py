"""The variational autoencoder of Kingma and Welling (2013, arXiv:1312.6114): an MLP decoder over a standard normal latent."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.networks import mlp
from pyro_vi.programs import data_plate

LIKELIHOODS = {
    "bernoulli": ("boolean",),
    "gaussian": ("real", "unit_interval", "nonnegative_integer"),
    "gaussian_fixed": ("real", "unit_interval", "nonnegative_integer"),
}


class VAE(nn.Module):
    """Variational autoencoder: z ~ N(0, I), x | z ~ Bernoulli(f(z)) or N(f(z), s²), f an MLP.

    Args:
        data: description of the data set: shape, support, size.
        latent_dim: dimension of z.
        hidden: widths of the decoder's hidden layers.
        activation: ``"tanh"``, ``"relu"``, ``"elu"``, ``"gelu"`` or ``"softplus"``.
        likelihood: ``"bernoulli"``, ``"gaussian"`` (one learned scale per feature), ``"gaussian_fixed"`` (a fixed scale), or
            ``"auto"``, which chooses by the support of the data.
        scale: standard deviation of x | z; the initial value if it is learned.

    Raises:
        InputError: the likelihood has no density at the data's values, or an option is out of range.

    Example:
        >>> from pyro_vi.data import load
        >>> model = VAE(load("digits").spec, latent_dim=2)
        >>> model.decode(torch.zeros(3, 2)).shape
        torch.Size([3, 64])
    """

    def __init__(
        self,
        data: DataSpec,
        *,
        latent_dim: int = 8,
        hidden: tuple[int, ...] = (64,),
        activation: str = "tanh",
        likelihood: str = "auto",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not (isinstance(latent_dim, int) and latent_dim > 0):
            raise InputError(f"latent_dim must be a whole number of at least 1, not {latent_dim!r}")
        if not scale > 0:
            raise InputError(f"scale is a standard deviation and must be positive, not {scale!r}")
        self.data, self.latent_dim = data, latent_dim
        self.likelihood = _likelihood(likelihood, data)
        features = math.prod(data.event_shape)
        self.decoder = mlp(latent_dim, hidden, features, activation)
        if self.likelihood == "gaussian":
            self.log_scale = nn.Parameter(torch.full((features,), math.log(scale)))
        elif self.likelihood == "gaussian_fixed":
            self.register_buffer("log_scale", torch.full((features,), math.log(scale)))
        self.to(data.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Draw z and score the batch ``x`` of shape ``(B, *event_shape)``; return ``x``, or a draw of x."""
        with data_plate(self.data.num_data, x):
            prior = dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            value: Tensor = pyro.sample("x", self.observation(z), obs=x)
        return value

    def observation(self, z: Tensor) -> Any:
        """Distribution of x given z, for z of shape ``(..., latent_dim)``."""
        natural = self.decoder(z).reshape(*z.shape[:-1], *self.data.event_shape)
        event_dim = len(self.data.event_shape)
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=natural).to_event(event_dim)
        return dist.Normal(natural, self.log_scale.exp().reshape(self.data.event_shape)).to_event(event_dim)

    def decode(self, z: Tensor) -> Tensor:
        """E[x | z], for z of shape ``(..., latent_dim)``: shape ``(..., *event_shape)``."""
        mean: Tensor = self.observation(z).mean
        return mean


def _likelihood(name: str, data: DataSpec) -> str:
    if name == "auto":
        return "bernoulli" if data.support == "boolean" else "gaussian"
    if name not in LIKELIHOODS:
        raise InputError(f"likelihood must be one of auto, {', '.join(LIKELIHOODS)}, not {name!r}")
    if data.support not in LIKELIHOODS[name]:
        raise InputError(
            f"a {name} likelihood has no density at the values of '{data.name}', whose support is {data.support}; "
            f"use likelihood='auto', or data with support {' or '.join(LIKELIHOODS[name])}"
        )
    return name
