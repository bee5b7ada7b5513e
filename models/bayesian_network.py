"""A Bayesian neural network: a multilayer perceptron whose weights have normal priors, for numbers or classes."""

import math
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.networks import activation_of, widths_of
from pyro_vi.programs import data_plate

WIDE = 2.5
"""Default scale of the prior of the noise, in standard deviations of the target."""


class BayesianNetwork(nn.Module):
    """Bayesian neural network: W_l ~ N(0, s² / width), b_l ~ N(0, s²), y ~ N(f(x), σ²) or Categorical(softmax f(x)).

    f is a multilayer perceptron of the weights W_l and biases b_l, on features in units of their standard deviations; width is
    the number of inputs of the layer. Targets that are numbers are in such units too within f, and σ ~ N⁺(2.5²) times theirs.
    The batch is ``(x, y)``: x of shape ``(B, D)`` or ``(B,)``, y of shape ``(B,)``, −1 for a class that is not known. All
    latents are shared by the data, so that a fit takes all rows in each step unless it is given a ``batch_size``; minibatches
    are scaled to the whole data.

    Source: Neal, Bayesian Learning for Neural Networks (1996); Blundell et al. 2015, arXiv:1505.05424.

    Args:
        data: description of the data set; its event shape is ``(D,)`` or ``()``.
        hidden: widths of the hidden layers.
        activation: ``"tanh"``, ``"relu"``, ``"elu"``, ``"gelu"`` or ``"softplus"``.
        likelihood: ``"normal"`` or ``"categorical"``; by default the one of the target's kind.
        classes: number of classes; by default those of the data.
        prior_scale: s.
        noise: ``"half_normal"`` for a latent σ, or σ itself, a number in units of y.

    Raises:
        InputError: the data are not vectors, or an option is out of range.

    Example:
        >>> from pyro_vi.data import DataSpec
        >>> spec = DataSpec("made up", 2, (3,), "real", torch.float32, "made up")
        >>> model = BayesianNetwork(spec, hidden=(4,))
        >>> model(torch.zeros(2, 3)).shape  # targets from the prior
        torch.Size([2])
    """

    loc: Tensor
    unit: Tensor
    target_loc: Tensor
    target_unit: Tensor

    def __init__(
        self,
        data: DataSpec,
        *,
        hidden: tuple[int, ...] | int = (10,),
        activation: str = "tanh",
        likelihood: str = "auto",
        classes: int | None = None,
        prior_scale: float = 1.0,
        noise: str | float = "half_normal",
    ) -> None:
        super().__init__()
        if len(data.event_shape) > 1:
            raise InputError(
                f"bayesian_network takes vectors, but a datum of '{data.name}' has shape {data.event_shape}; flatten the data"
            )
        if not prior_scale > 0:
            raise InputError(f"prior_scale is a standard deviation and must be positive, not {prior_scale!r}")
        if isinstance(noise, str) and noise != "half_normal":
            raise InputError(f"noise must be a number or 'half_normal', not {noise!r}")
        if not isinstance(noise, str) and not noise > 0:
            raise InputError(f"noise is a standard deviation and must be positive, not {noise!r}")
        target = data.others[0] if data.others else None
        if likelihood == "auto":
            classified = target is not None and bool(target.classes or target.support == "boolean")
            likelihood = "categorical" if classified else "normal"
        if likelihood not in ("normal", "categorical"):
            raise InputError(f"likelihood must be one of auto, normal, categorical, not {likelihood!r}")
        known = 2 if target is None or not target.classes else len(target.classes)
        self.data, self.likelihood, self.prior_scale, self.noise = data, likelihood, prior_scale, noise
        self.classes = classes if classes is not None else known
        outputs = 1 if likelihood == "normal" else self.classes
        features = math.prod(data.event_shape)
        self.shapes = [*pairwise((features, *widths_of(hidden), outputs))]
        self.activation = activation_of(activation)()
        for name, value in (
            ("loc", torch.zeros(features)),
            ("unit", torch.ones(features)),
            ("target_loc", torch.zeros(())),
            ("target_unit", torch.ones(())),
        ):
            self.register_buffer(name, value.to(data.dtype))

    def start(self, x: Tensor, y: Tensor | None = None) -> None:
        """Take means and standard deviations of the features, and of targets that are numbers, for units."""
        if y is None:
            raise InputError(
                f"bayesian_network takes (x, y), and '{self.data.name}' has no targets; give them too, as in "
                "'wine(labels=True)' or \"table.csv(target='y')\""
            )
        if y.dim() != 1:
            raise InputError(
                f"targets are one number for each row, of shape (rows,), not {tuple(y.shape)}; flatten them"
            )
        rows = x.reshape(len(x), -1)
        self.loc.copy_(rows.mean(0))
        spread = rows.std(0)
        self.unit.copy_(torch.where(spread > 0, spread, 1.0))
        if self.likelihood == "normal":
            self.target_loc.copy_(y.to(x.dtype).mean())
            self.target_unit.copy_(y.to(x.dtype).std().clamp(min=1e-6))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Draw the weights and score the targets ``y``; return them, or a draw of them."""
        layers = []
        for number, (inputs, outputs) in enumerate(self.shapes, 1):
            zero = x.new_zeros(outputs, inputs)
            weight = dist.Normal(zero, self.prior_scale / math.sqrt(inputs)).to_event(2)
            bias = dist.Normal(zero[:, 0], self.prior_scale).to_event(1)
            layers.append((pyro.sample(f"weight_{number}", weight), pyro.sample(f"bias_{number}", bias)))
        scale: Any = self.noise
        if self.likelihood == "normal" and isinstance(self.noise, str):
            scale = pyro.sample("scale", dist.HalfNormal(WIDE * self.target_unit))
        with data_plate(self.data.num_data, x):
            observation = self._observation(self.network(x, layers), scale)
            if y is None or self.likelihood == "normal":
                value: Tensor = pyro.sample("y", observation, obs=None if y is None else y.to(x.dtype))
            else:
                known: Any = y >= 0
                with poutine.mask(mask=known):
                    value = pyro.sample("y", observation, obs=y.long().clamp(min=0))
        return value

    def network(self, x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        """f(x): of shape ``(..., B, outputs)``, for weights ``(..., outputs, inputs)`` and biases ``(..., outputs)``."""
        h = (x.reshape(len(x), -1) - self.loc) / self.unit
        for number, (weight, bias) in enumerate(layers):
            # Under a plate of particles there is a dimension of length 1 for the rows: (particles, 1, outputs, inputs).
            weight, bias = (weight.squeeze(-3), bias) if weight.dim() > 2 else (weight, bias)
            h = (self.activation(h) if number else h) @ weight.mT + bias
        return h

    def _observation(self, found: Tensor, scale: Any) -> Any:
        if self.likelihood == "categorical":
            return dist.Categorical(logits=found)
        return dist.Normal(self.target_loc + self.target_unit * found.squeeze(-1), scale)
