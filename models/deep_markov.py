"""The deep Markov model of Krishnan, Shalit and Sontag (2015, 2017): a Markov chain of latents with networks between steps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.likelihoods import likelihood_of
from pyro_vi.networks import mlp
from pyro_vi.programs import data_plate

FLOOR = 1e-3
"""Least standard deviation of a step, so that the density of a path has a bound."""


class DeepMarkov(nn.Module):
    """Deep Markov model: z_t | z_{t−1} ~ N(μ(z_{t−1}), diag σ²(z_{t−1})), x_t | z_t ~ p(x_t | f(z_t)), t = 1 … T.

    The transition is gated: μ(z) = (1 − g) ⊙ (W z + b) + g ⊙ h(z), with networks g ∈ (0, 1) and h, and
    σ(z) = softplus(V relu(h(z)) + v); W starts as the identity, and z_0 is learned. (Krishnan, Shalit and Sontag 2015,
    arXiv:1511.05121; 2017, arXiv:1609.09869.)

    The path is one site ``z`` in the plates ``data`` and ``time``, and its density at all steps is computed at once: that of
    a step is the density of z_t given the z_{t−1} of the same path (`Path`). Steps beyond the length of a sequence are masked
    at z and x, and have no part in the ELBO.

    Args:
        data: description of the data set: sequences of shape ``(T, D)``, or ``(T,)``.
        latent_dim: dimension of z_t.
        transition_dim: width of the hidden layers of g and h.
        hidden: widths of the emission's hidden layers.
        activation: of the emission: ``"tanh"``, ``"relu"``, ``"elu"``, ``"gelu"`` or ``"softplus"``.
        likelihood: of a step: ``"auto"`` or a name, see `pyro_vi.likelihoods`.
        scale: standard deviation of x_t for the Gaussian likelihoods; the initial value if it is learned.

    Raises:
        InputError: the data are no sequences, the likelihood has no density at their values, or an option is out of range.

    Example:
        >>> from pyro_vi.data import load
        >>> robot = load("robot(sequences=20, steps=10)")
        >>> model = DeepMarkov(robot.spec, latent_dim=3)
        >>> model(*robot.example(2)).shape
        torch.Size([2, 10, 4])
    """

    def __init__(
        self,
        data: DataSpec,
        *,
        latent_dim: int = 16,
        transition_dim: int = 64,
        hidden: tuple[int, ...] = (64,),
        activation: str = "relu",
        likelihood: str = "auto",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if len(data.event_shape) not in (1, 2):
            raise InputError(
                f"deep_markov takes sequences of shape (steps, features), but a datum of '{data.name}' has shape "
                f"{data.event_shape}; give data such as 'jsb' or 'robot'"
            )
        if len(data.event_shape) == 1 and data.image_shape is not None:
            raise InputError(
                f"deep_markov takes sequences, but '{data.name}' has images; give data such as 'jsb' or 'robot'"
            )
        for name, value in (("latent_dim", latent_dim), ("transition_dim", transition_dim)):
            if not (isinstance(value, int) and value > 0):
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
        lengths = [column for column in data.others if column.name == "lengths"]
        if len(lengths) != len(data.others):
            raise InputError(
                f"deep_markov takes (x, lengths), but '{data.name}' has the column '{data.others[0].name}'; leave it out, and "
                "give sequences of one length as one array, such as numpy.stack makes"
            )
        self.data, self.latent_dim = data, latent_dim
        self.law = likelihood_of(likelihood, replace(data, event_shape=data.event_shape[1:]), scale=scale)
        self.law.register(self)
        self.before = nn.Parameter(torch.zeros(latent_dim))  # z_0
        self.transition = Transition(latent_dim, transition_dim)
        self.emission = mlp(latent_dim, hidden, self.law.numbers, activation)
        self.to(data.dtype)

    def start(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Set the constant of the emission so that x_t has about the mean of the steps of ``x``."""
        given = x if lengths is None else x[self._inside(x, lengths)]
        mean = given.reshape(-1, self.law.features).mean(0)
        last = self.emission[-1]
        natural = {"bernoulli": mean.clamp(1e-3, 1 - 1e-3).logit(), "poisson": mean.clamp(min=1e-3).log()}
        natural |= {"gaussian": mean, "gaussian_fixed": mean}
        if isinstance(last, nn.Linear) and self.law.name in natural:
            with torch.no_grad():
                last.bias.copy_(natural[self.law.name])

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Draw the paths and score the batch; return ``x``, or a draw of x where it is not observed.

        Args:
            x: sequences, ``(B, T, D)``, padded at their ends; T need not be that of the training data.
            lengths: their lengths, ``(B,)``; None if all have T steps.
        """
        size, steps = x.shape[:2]
        inside: Any = True if lengths is None else self._inside(x, lengths)
        with (
            data_plate(self.data.num_data, x, dim=-2),
            pyro.plate("time", steps, dim=-1),
            poutine.mask(mask=inside),
        ):
            z = pyro.sample("z", Path(self.before, self.transition, (size, steps)))
            value: Tensor = pyro.sample("x", self.observation(z), obs=x)
        return value

    @staticmethod
    def _inside(x: Tensor, lengths: Tensor) -> Tensor:
        """True for the steps of (B, T, ...) that are no padding: (B, T)."""
        return torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)

    def observation(self, z: Tensor) -> Any:
        """Distribution of x_t given z_t, for z of shape ``(..., latent_dim)``."""
        return self.law(self.emission(z), self.law.kept(self))

    def decode(self, z: Tensor) -> Tensor:
        """E[x_t | z_t], for z of shape ``(..., latent_dim)``."""
        return self.law.mean(self.emission(z), self.law.kept(self))


class Transition(nn.Module):
    """Gated transition: mean and standard deviation of z_t given z_{t−1}, see `DeepMarkov`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.proposal = mlp(dim, (hidden,), dim, "relu"), mlp(dim, (hidden,), dim, "relu")
        self.linear, self.spread = nn.Linear(dim, dim), nn.Linear(dim, dim)
        with torch.no_grad():  # a chain starts as a random walk
            self.linear.weight.copy_(torch.eye(dim))
            self.linear.bias.zero_()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, each of the shape of z."""
        gate, proposal = self.gate(z).sigmoid(), self.proposal(z)
        mean = torch.lerp(self.linear(z), proposal, gate)
        return mean, FLOOR + softplus(self.spread(proposal.relu()))


class Path(TorchDistribution):
    """Path of a Markov chain: z_t | z_{t−1} ~ N(μ(z_{t−1}), diag σ²(z_{t−1})) of shape (..., T) and (D,).

    The log-density at step t is that of z_t given z_{t−1}; the sum over t is the log-density of the path. A mask that leaves
    out the last steps leaves the others as they are. Draws are ancestral, one step after the other.

    Args:
        start: z_0, ``(D,)``.
        transition: returns mean and standard deviation of the next step, each of the shape of z.
        batch_shape: its last number is T.

    Example:
        >>> walk = Path(torch.zeros(1), lambda z: (z, torch.ones_like(z)), (3,))
        >>> walk.log_prob(torch.tensor([[1.0], [1.0], [3.0]]))  # log N(1; 0, 1), log N(1; 1, 1), log N(3; 1, 1)
        tensor([-1.4189, -0.9189, -2.9189])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True
    chain_dim = -1
    """The batch dimension along which each element depends on the one before it."""

    def __init__(self, start: Tensor, transition: Callable[[Tensor], tuple[Tensor, Tensor]], batch_shape: Any) -> None:
        self.start, self.transition = start, transition
        super().__init__(torch.Size(batch_shape), start.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Path":
        """The same chain with more rows."""
        if len(batch_shape) and batch_shape[-1] != self.batch_shape[-1]:
            raise ValueError(f"a path of {self.batch_shape[-1]} steps cannot have {batch_shape[-1]}")
        return Path(self.start, self.transition, batch_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw paths, (*sample_shape, *batch_shape, D)."""
        shape = (*sample_shape, *self.batch_shape[:-1], *self.event_shape)
        z, path = self.start.expand(shape), []
        for _ in range(self.batch_shape[-1]):
            mean, scale = self.transition(z)
            z = mean + scale * torch.randn(shape, dtype=mean.dtype, device=mean.device)
            path.append(z)
        return torch.stack(path, -2)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw paths without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of each step given the one before, (..., T)."""
        first = self.start.expand(*value.shape[:-2], 1, -1)
        mean, scale = self.transition(torch.cat([first, value[..., :-1, :]], -2))
        density: Tensor = dist.Normal(mean, scale, validate_args=False).log_prob(value).sum(-1)
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))
