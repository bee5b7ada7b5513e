"""Priors of a latent code z: modules that give its distribution, with the event shape ``(latent_dim,)``.

* `PRIORS` is the table of names, and `prior_of` makes a prior by its name.
* `StandardNormal`, `NormalMixture`, `VampPrior` and `FlowPrior` are the priors.

A model has ``self.prior = prior_of("vamp", latent_dim, data)``, and draws ``pyro.sample("z", self.prior(x))``.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.functional import softplus

from pyro_vi.data import DataSpec
from pyro_vi.networks import mlp, widths_of
from pyro_vi.support import Whole, whole, word

_validated = pyro.settings.get("validate_distributions_torch")
try:
    from zuko.flows import NSF
finally:  # zuko turns the validation of all distributions off when it is imported
    Distribution.set_default_validate_args(_validated)

APART = 0.5
"""Standard deviation of the means of a mixture at the start, whose draws then have the variances of a standard normal."""
SMALL = 0.1
"""Factor on the weights of a flow's last layers at the start: it starts near the identity."""


class StandardNormal(nn.Module):
    """z ~ N(0, I)."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, like: Tensor) -> Any:
        """Return the prior, with the dtype and the device of a tensor."""
        return dist.Normal(like.new_zeros(self.latent_dim), 1.0).to_event(1)


class NormalMixture(nn.Module):
    """z ~ Σ_k w_k N(μ_k, diag σ_k²), all learned. A draw has no derivative in these.

    Args:
        latent_dim: D.
        components: K.

    Example:
        >>> NormalMixture(2, components=3)(torch.zeros(())).event_shape
        torch.Size([2])
    """

    def __init__(self, latent_dim: int, *, components: int) -> None:
        super().__init__()
        self.weight_logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(APART * torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.full((components, latent_dim), 0.5 * math.log(1 - APART**2)))

    def forward(self, like: Tensor) -> Any:
        """Return the prior."""
        return mixture(self.weight_logits, self.loc, self.log_scale)


class VampPrior(nn.Module):
    """z ~ Σ_k N(μ(u_k), diag σ(u_k)²)/K, with learned pseudo-inputs u_k of the shape of a datum (arXiv:1705.07120).

    In the paper μ and σ are those of the encoder of q(z | x), so that the prior is a mixture of posteriors. Here they come from
    a network of the model's own, since a model goes with any guide: the prior keeps the form of the paper, and loses its tie to
    the encoder. Pseudo-inputs go through the link of the data: the logistic function for values from 0 to 1, softplus for
    counts, and none for real values.

    Args:
        latent_dim: dimension of z.
        data: the data set, for the shape and the support of a datum.
        components: K.
        hidden: widths of the network's hidden layers.
        activation: a key of `pyro_vi.networks.ACTIVATIONS`.

    Example:
        >>> spec = DataSpec("pair", 9, (2,), "real", torch.float32, "made up")
        >>> VampPrior(4, spec, components=3, hidden=(8,), activation="tanh").pseudo_inputs().shape
        torch.Size([3, 2])
    """

    def __init__(
        self, latent_dim: int, data: DataSpec, *, components: int, hidden: tuple[int, ...], activation: str
    ) -> None:
        super().__init__()
        features = math.prod(data.event_shape)
        self.support = data.support
        self.inputs = nn.Parameter(torch.randn(components, features))
        self.encoder = mlp(features, hidden, 2 * latent_dim, activation)

    def pseudo_inputs(self) -> Tensor:
        """u, of shape ``(components, features)``."""
        if self.support == "real":
            return self.inputs
        return softplus(self.inputs) if self.support == "nonnegative_integer" else self.inputs.sigmoid()

    def forward(self, like: Tensor) -> Any:
        """Return the prior."""
        loc, log_scale = self.encoder(self.pseudo_inputs()).chunk(2, -1)
        return mixture(loc.new_zeros(len(loc)), loc, log_scale)


class FlowPrior(nn.Module):
    """z = T⁻¹(ε), ε ~ N(0, I), T learned autoregressive splines of zuko (Durkan et al. 2019, arXiv:1906.04032).

    The density of z takes one pass, and a draw ``latent_dim`` passes, which only the model's own draws need. T starts near the
    identity; it is the identity beyond |z| = 5.

    Args:
        latent_dim: dimension of z.
        transforms: number of transforms; each reverses the order of the numbers of the one before.
        hidden: widths of the hidden layers of each.

    Example:
        >>> FlowPrior(2, transforms=2, hidden=(8,))(torch.zeros(())).event_shape
        torch.Size([2])
    """

    def __init__(self, latent_dim: int, *, transforms: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.flow = NSF(latent_dim, transforms=transforms if latent_dim > 1 else 1, hidden_features=widths_of(hidden))
        with torch.no_grad():
            for transform in self.flow.transform.transforms:
                last = [layer for layer in transform.modules() if isinstance(layer, nn.Linear)][-1:]
                for value in last[0].parameters() if last else transform.parameters():
                    value.mul_(SMALL)

    def forward(self, like: Tensor) -> Any:
        """Return the prior."""
        return Flowing(self.flow())


class Flowing(ZukoToPyro):
    """Pyro's wrapper of a flow of zuko over vectors, with its support, which the wrapper does not state."""

    support = constraints.real_vector
    described = "Flow"

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw vectors, with their gradients."""
        value: Tensor = self.dist.rsample(torch.Size(sample_shape))
        return value

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same law for each row, as an expanded distribution: readers of a model see that it is only one."""
        return dist.TorchDistribution.expand(self, torch.Size(batch_shape), _instance)


def mixture(logits: Tensor, loc: Tensor, log_scale: Tensor) -> Any:
    """Return Σ_k w_k N(μ_k, diag σ_k²) from the logarithms of w and σ: (K,), (K, D) and (K, D)."""
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, log_scale.exp()).to_event(1))


PRIORS = {
    "normal": "N(0, I)",
    "mixture": "a learned mixture of normals",
    "vamp": "a mixture of normals at learned pseudo-inputs",
    "flow": "a learned flow",
}
"""The priors by name."""


def prior_of(
    name: str,
    latent_dim: int,
    data: DataSpec,
    *,
    components: Whole = 16,
    transforms: Whole = 2,
    hidden: tuple[int, ...] = (64,),
    activation: str = "tanh",
) -> nn.Module:
    """Make a prior of z by its name.

    Args:
        name: a key of `PRIORS`.
        latent_dim: dimension of z.
        data: the data set that the model is for.
        components: number of components of ``"mixture"`` and ``"vamp"``.
        transforms: number of transforms of ``"flow"``.
        hidden: widths of the hidden layers of the networks of ``"vamp"`` and ``"flow"``.
        activation: activation of the network of ``"vamp"``.

    Raises:
        UsageError: an unknown prior, or an option out of range.

    Example:
        >>> spec = DataSpec("pair", 9, (2,), "real", torch.float32, "made up")
        >>> prior_of("normal", 3, spec)(torch.zeros(())).event_shape
        torch.Size([3])
    """
    count, steps = whole("components", components, 1), whole("transforms", transforms, 1)
    match word("prior", name, PRIORS):
        case "mixture":
            return NormalMixture(latent_dim, components=count)
        case "vamp":
            return VampPrior(latent_dim, data, components=count, hidden=hidden, activation=activation)
        case "flow":
            return FlowPrior(latent_dim, transforms=steps, hidden=hidden)
    return StandardNormal(latent_dim)
