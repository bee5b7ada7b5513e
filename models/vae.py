"""The variational autoencoder of Kingma and Welling (2013, arXiv:1312.6114): an MLP decoder over a latent code."""

from typing import Any

import pyro
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.likelihoods import likelihood_of
from pyro_vi.networks import mlp
from pyro_vi.priors import prior_of
from pyro_vi.programs import data_plate


class VAE(nn.Module):
    """Variational autoencoder: z ~ N(0, I) or another prior, x | z ~ p(x; f(z)), f an MLP, p a likelihood such as Bernoulli.

    Args:
        data: description of the data set: shape, support, size.
        latent_dim: dimension of z.
        hidden: widths of the decoder's hidden layers.
        activation: ``"tanh"``, ``"relu"``, ``"elu"``, ``"gelu"`` or ``"softplus"``.
        likelihood: ``"auto"`` chooses by the support of the data: ``"bernoulli"`` for 0/1 values, ``"continuous_bernoulli"``
            for values from 0 to 1, ``"poisson"`` for counts, ``"gaussian"`` (one learned scale for each feature) for real
            values. The others are ``"binomial"``, ``"categorical"``, ``"discretised_logistic"``, ``"negative_binomial"``,
            ``"gaussian_fixed"`` (a fixed scale) and ``"gaussian_scale"`` (scales from the decoder). See `pyro_vi.likelihoods`.
        scale: standard deviation of x | z for Gaussians; the initial value if it is learned.
        floor: the smallest scale of ``"gaussian_scale"``, in units of the data; without one the likelihood has no upper bound.
        levels: the largest value of data with levels, for ``"binomial"``, ``"categorical"`` and ``"discretised_logistic"``.
        prior: of z: ``"normal"``, N(0, I); ``"mixture"``, a learned mixture of normals; ``"vamp"``, the same at learned
            pseudo-inputs; ``"flow"``, a learned flow. See `pyro_vi.priors`.
        components: number of components of ``"mixture"`` and ``"vamp"``.
        transforms: number of transforms of ``"flow"``.

    Raises:
        InputError: the likelihood has no density at the data's values, or an option is out of range.

    Example:
        >>> import torch
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
        floor: float = 0.01,
        levels: int | None = None,
        prior: str = "normal",
        components: int = 16,
        transforms: int = 2,
    ) -> None:
        super().__init__()
        if not (isinstance(latent_dim, int) and latent_dim > 0):
            raise InputError(f"latent_dim must be a whole number of at least 1, not {latent_dim!r}")
        self.data, self.latent_dim = data, latent_dim
        self.law = likelihood_of(likelihood, data, scale=scale, floor=floor, levels=levels)
        self.likelihood = self.law.name
        self.decoder = self.network(hidden, activation)
        self.law.register(self)
        self.prior = prior_of(
            prior, latent_dim, data, components=components, transforms=transforms, hidden=hidden, activation=activation
        )
        self.to(data.dtype)

    def network(self, hidden: tuple[int, ...], activation: str) -> nn.Module:
        """Make the decoder: from z of shape ``(..., latent_dim)`` to the numbers of the likelihood, ``(..., numbers)``."""
        return mlp(self.latent_dim, hidden, self.law.numbers, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Draw z and score the batch ``x`` of shape ``(B, *event_shape)``; return ``x``, or a draw of x."""
        with data_plate(self.data.num_data, x):
            z = pyro.sample("z", self.prior(x))
            value: Tensor = pyro.sample("x", self.observation(z), obs=x)
        return value

    def observation(self, z: Tensor) -> Any:
        """Distribution of x given z, for z of shape ``(..., latent_dim)``."""
        return self.law(self.decoder(z), self.law.kept(self))

    def decode(self, z: Tensor) -> Tensor:
        """E[x | z], for z of shape ``(..., latent_dim)``: shape ``(..., *event_shape)``."""
        return self.law.mean(self.decoder(z), self.law.kept(self))
