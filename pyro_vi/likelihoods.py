"""Likelihoods: the distribution of a datum, from the numbers that a decoder gives for each feature.

* `LIKELIHOODS` is the table of names; `AUTO` says which one each support of the data gets by itself.
* `likelihood_of` makes the likelihood of a data set by its name; a `Likelihood` makes the distributions.

A model asks its network for ``law.numbers`` numbers a datum, and keeps those that all data share, such as a scale:

    self.law = likelihood_of("auto", data)
    self.decoder = mlp(latent_dim, hidden, self.law.numbers)
    self.law.register(self)
    ...
    pyro.sample("x", self.law(self.decoder(z), self.law.kept(self)), obs=x)
"""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.laws import Categorical, ContinuousBernoulli, DiscretisedLogistic, NegativeBinomial, Poisson, Shares
from pyro_vi.support import Real, Whole, real, whole

COUNTS = ("boolean", "nonnegative_integer")
GRID = (*COUNTS, "unit_interval")
NUMBERS = ("real", "unit_interval", "nonnegative_integer")


class Likelihood:
    """Distribution of a datum x from natural numbers η of a decoder; the features are independent given η.

    Attributes:
        name: its key in `LIKELIHOODS`.
        supports: the supports of data that it is a density for.
        outputs: natural numbers for each feature.
        numbers: natural numbers for each datum, ``outputs * features``.
        levels: the largest value of data with finitely many levels; None if they are not known.
        keeps: name of the numbers that all data share, one for each feature, such as ``"log_scale"``; empty if there are none.
        learns: these numbers are a parameter; otherwise they are fixed.

    Args:
        data: shape, support and dtype of a datum.
        scale: standard deviation of x; the initial value if it is learned.
        floor: the smallest standard deviation, where the decoder gives it.
        levels: see above; it overrides the one of the data.
    """

    name: ClassVar[str]
    supports: ClassVar[tuple[str, ...]]
    needs_levels: ClassVar[bool] = False
    keeps: ClassVar[str] = ""
    learns: ClassVar[bool] = True
    outputs = 1

    def __init__(self, data: DataSpec, *, scale: float, floor: float, levels: int | None) -> None:
        self.event_shape, self.dtype, self.unit = tuple(data.event_shape), data.dtype, data.support == "unit_interval"
        self.scale, self.floor, self.levels = scale, floor, levels

    @property
    def features(self) -> int:
        """Number of features of a datum."""
        return math.prod(self.event_shape)

    @property
    def numbers(self) -> int:
        """Natural numbers for each datum."""
        return self.outputs * self.features

    def start(self) -> float:
        """Value at which the shared numbers start."""
        return math.log(self.scale)

    def shared(self) -> Tensor | None:
        """The shared numbers at their start, of shape ``(features,)``: a parameter if they are learned, or None."""
        if not self.keeps:
            return None
        value = torch.full((self.features,), self.start(), dtype=self.dtype)
        return nn.Parameter(value) if self.learns else value

    def register(self, model: nn.Module) -> None:
        """Give a model the shared numbers: a parameter, or a buffer if they are fixed, of the name `keeps`."""
        value = self.shared()
        if isinstance(value, nn.Parameter):
            model.register_parameter(self.keeps, value)
        elif value is not None:
            model.register_buffer(self.keeps, value)

    def kept(self, model: nn.Module) -> Tensor | None:
        """Return the shared numbers of a model."""
        return getattr(model, self.keeps) if self.keeps else None

    def __call__(self, natural: Tensor, shared: Tensor | None = None) -> Any:
        """Return the distribution of x.

        Args:
            natural: η, of shape ``(..., outputs * features)``; the numbers of one output lie together.
            shared: `kept` of the model, for likelihoods with shared numbers.
        """
        if self.keeps and shared is None:
            raise TypeError(f"a {self.name} likelihood needs the model's {self.keeps}; give law.kept(model)")
        found = natural.reshape(*natural.shape[:-1], self.outputs, *self.event_shape)
        kept = None if shared is None else shared.reshape(self.event_shape)
        made = self.of(found.unbind(-1 - len(self.event_shape)), kept)
        return made.to_event(len(self.event_shape)) if self.event_shape else made

    def of(self, natural: tuple[Tensor, ...], shared: Tensor | None) -> Any:
        """Return the distributions of the features, with batch shape (..., *event_shape)."""
        raise NotImplementedError

    def mean(self, natural: Tensor, shared: Tensor | None = None) -> Tensor:
        """E[x] of shape ``(..., *event_shape)``."""
        value: Tensor = self(natural, shared).mean
        return value

    def _levels(self, law: Any) -> Any:
        """The law of x from the law of the level k: x is k, or k/L in data from 0 to 1."""
        assert self.levels is not None
        return Shares(law, float(self.levels)) if self.unit else law


class OfBernoulli(Likelihood):
    """x ~ Bernoulli(σ(η))."""

    name, supports = "bernoulli", ("boolean",)

    def of(self, natural: tuple[Tensor, ...], shared: Tensor | None) -> Any:
        """Bernoulli of logits η."""
        return dist.Bernoulli(logits=natural[0])


class OfBinomial(Likelihood):
    """x ~ Binomial(L, σ(η)), L the largest level; for data from 0 to 1 that are levels k/L, k has this law."""

    name, supports, needs_levels = "binomial", GRID, True

    def of(self, natural: tuple[Tensor, ...], shared: Tensor | None) -> Any:
        """Binomial of logits η."""
        assert self.levels is not None
        return self._levels(dist.Binomial(self.levels, logits=natural[0]))


class OfContinuousBernoulli(Likelihood):
    """p(x) ∝ λˣ (1 − λ)¹⁻ˣ on [0, 1], λ = σ(η) (Loaiza-Ganem and Cunningham 2019, arXiv:1907.06845)."""

    name, supports = "continuous_bernoulli", ("unit_interval",)

    def of(self, natural: tuple[Tensor, ...], shared: Tensor | None) -> Any:
        """Continuous Bernoulli of logits η."""
        return ContinuousBernoulli(natural[0])


class OfGaussian(Likelihood):
    """x ~ N(η, s²), s one learned scale for each feature."""

    name, supports, keeps = "gaussian", NUMBERS, "log_scale"

    def of(self, natural: tuple[Tensor, ...], shared: Tensor | None) -> Any:
        """N(η, s²)."""
        assert shared is not None
        return dist.Normal(natural[0], shared.exp())


class OfGaussianFixed(OfGaussian):
    """x ~ N(η, s²), s fixed."""

    name, learns = "gaussian_fixed", False


class OfGaussianScale(Likelihood):
    """x ~ N(η₁, σ²), σ = floor + s softplus(η₂)/log 2: mean and scale from the decoder; σ = floor + s at η₂ = 0.

    Without a floor, log p(x) has no upper bound: a decoder that reproduces a single datum lets σ → 0 there (Mattei and Frellsen
    2018, arXiv:1802.04826). With it, log p(x) is at most −log(floor √2π) for each feature.
    """

    name, supports = "gaussian_scale", NUMBERS
    outputs = 2

    def of(self, natural: tuple[Tensor, ...], shared: Tensor | None) -> Any:
        """N(η₁, σ²)."""
        return dist.Normal(natural[0], self.floor + self.scale / math.log(2) * softplus(natural[1]))


class OfCategorical(Likelihood):
    """x ~ Categorical(softmax(η)) over 0, …, L, whose order has no meaning."""

    name, supports, needs_levels = "categorical", COUNTS, True

    def __init__(self, data: DataSpec, *, scale: float, floor: float, levels: int | None) -> None:
        super().__init__(data, scale=scale, floor=floor, levels=levels)
        self.outputs = (levels or 0) + 1

    def of(self, natural: tuple[Tensor, ...], shared: Tensor | None) -> Any:
        """Categorical of logits η."""
        return Categorical(logits=torch.stack(natural, -1))


class OfDiscretisedLogistic(Likelihood):
    """P(x = k) = σ((k + ½ − μ)/s) − σ((k − ½ − μ)/s) of levels 0, …, L, the ends with their tails (arXiv:1701.05517).

    μ = L (½ + η), and s is learned for each feature, as log s/L: the option ``scale`` is the initial s/L. For data from 0
    to 1 that are levels k/L, k has this law.
    """

    name, supports, needs_levels, keeps = "discretised_logistic", GRID, True, "log_scale"

    def of(self, natural: tuple[Tensor, ...], shared: Tensor | None) -> Any:
        """Discretised logistic about μ."""
        assert shared is not None and self.levels is not None
        high = natural[0].new_full((), float(self.levels))
        return self._levels(DiscretisedLogistic(high * (0.5 + natural[0]), shared + high.log(), high))


class OfPoisson(Likelihood):
    """x ~ Poisson(e^η)."""

    name, supports = "poisson", COUNTS

    def of(self, natural: tuple[Tensor, ...], shared: Tensor | None) -> Any:
        """Poisson of log-rate η."""
        return Poisson(natural[0])


class OfNegativeBinomial(Likelihood):
    """Counts with mean μ = e^η and variance μ + μ²/r, r learned for each feature and 1 at the start."""

    name, supports, keeps = "negative_binomial", COUNTS, "log_count"

    def start(self) -> float:
        """log r = 0."""
        return 0.0

    def of(self, natural: tuple[Tensor, ...], shared: Tensor | None) -> Any:
        """Negative binomial about μ."""
        assert shared is not None
        return NegativeBinomial(natural[0], shared)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    cls.name: cls
    for cls in (
        OfBernoulli, OfBinomial, OfContinuousBernoulli, OfGaussian, OfGaussianFixed, OfGaussianScale, OfCategorical,
        OfDiscretisedLogistic, OfPoisson, OfNegativeBinomial,
    )
}  # fmt: skip
"""The likelihoods by name."""
AUTO = {
    "boolean": "bernoulli",
    "unit_interval": "continuous_bernoulli",
    "nonnegative_integer": "poisson",
    "real": "gaussian",
}
"""The likelihood that data of each support get by themselves: one whose values have exactly this support.

A Gaussian gives intensities from 0 to 1 a density beyond them. Where a pixel never varies, as at the edge of an image, its
learned scale also goes to 0 and its density has no upper bound. So intensities get a continuous Bernoulli.
"""


def likelihood_of(
    name: str, data: DataSpec, *, scale: Real = 1.0, floor: Real = 0.01, levels: Whole | None = None
) -> Likelihood:
    """Make the likelihood of a data set.

    Args:
        name: a key of `LIKELIHOODS`, or ``"auto"`` for that of `AUTO`.
        data: the data set.
        scale: standard deviation of x for the Gaussian likelihoods; the initial value if it is learned, see each class.
        floor: the smallest standard deviation of ``"gaussian_scale"``, in the units of the data.
        levels: the largest whole number of data with finitely many levels; by default that of the data set, if it states one.

    Raises:
        InputError: the likelihood has no density at the data's values, or an option is out of range.

    Example:
        >>> spec = DataSpec("pair", 9, (2,), "real", torch.float32, "made up")
        >>> law = likelihood_of("gaussian_scale", spec, floor=0.1)
        >>> law.outputs, law(torch.zeros(5, 4)).batch_shape
        (2, torch.Size([5]))
    """
    for option, value in (("scale", scale), ("floor", floor)):
        if not real(option, value) > 0:
            raise InputError(f"{option} is a standard deviation and must be positive, not {value!r}")
    found = AUTO.get(data.support, "gaussian") if name == "auto" else name
    if found not in LIKELIHOODS:
        raise InputError(f"likelihood must be one of auto, {', '.join(LIKELIHOODS)}, not {name!r}")
    cls = LIKELIHOODS[found]
    if data.support not in cls.supports:
        raise InputError(
            f"a {found} likelihood has no density at the values of '{data.name}', whose support is {data.support}; "
            f"use likelihood='auto', or data with support {' or '.join(cls.supports)}"
        )
    most = 1 if data.support == "boolean" and levels is None else levels
    most = most if most is not None else data.levels
    if cls.needs_levels and most is None:
        raise InputError(
            f"a {found} likelihood needs the largest level of '{data.name}', which the data do not state; "
            "give levels=255 for the whole numbers from 0 to 255, or for intensities that are such numbers over 255"
        )
    most = None if most is None or not cls.needs_levels else whole("levels", most, 1)
    return cls(data, scale=float(scale), floor=float(floor), levels=most)
