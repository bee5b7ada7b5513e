"""Distributions of single numbers that torch and Pyro lack, or have in a form that loses digits.

* `ContinuousBernoulli`, `Poisson` and `NegativeBinomial` are right at every natural parameter; `Categorical` has a mean.
* `DiscretisedLogistic` has the levels 0, …, L, and `Shares` divides the levels of another distribution by L.
"""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_vi.support.torch_internals import validates

_NEAR = 1e-2
"""Half-odds below which sinh(h)/h and coth(h) − 1/h are taken from their series, whose error is then below 1e-16."""


class Elementwise(dist.TorchDistribution):
    """Base of a distribution of single numbers; its parameters are tensors that broadcast, in the order of ``arg_constraints``.

    A subclass has ``log_mass``, the log-density without a check of the value.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, *numbers: Tensor, validate_args: bool | None = None) -> None:
        for name, value in zip(self.arg_constraints, torch.broadcast_tensors(*numbers), strict=True):
            setattr(self, name, value)
        super().__init__(self.first.shape, validate_args=validate_args)

    @property
    def first(self) -> Tensor:
        """The first of the parameters, (*batch)."""
        value: Tensor = getattr(self, next(iter(self.arg_constraints)))
        return value

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with another batch shape."""
        numbers = [getattr(self, name).expand(batch_shape) for name in self.arg_constraints]
        return type(self)(*numbers, validate_args=validates(self))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of each number, in nats; ValueError outside the support, where validation is on."""
        support: Any = self.support
        if validates(self) and not bool(torch.as_tensor(support.check(value)).all()):
            raise ValueError(f"values outside the support of {type(self).__name__}")
        return self.log_mass(value)

    def log_mass(self, value: Tensor) -> Tensor:
        """Log-density of each number, in nats."""
        raise NotImplementedError

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw numbers, without a gradient."""
        with torch.no_grad():
            return self.drawn((*sample_shape, *self.batch_shape))

    def drawn(self, shape: Any) -> Tensor:
        """Draw numbers of a shape that ends in the batch shape."""
        raise NotImplementedError


class ContinuousBernoulli(Elementwise):
    """p(x) ∝ λˣ (1 − λ)¹⁻ˣ on [0, 1] with logits η = log λ/(1 − λ) (Loaiza-Ganem and Cunningham 2019, arXiv:1907.06845).

    log p(x) = η x − η/2 − log(sinh(h)/h) with h = η/2. torch clamps λ away from 0 and 1, so that its normaliser and its
    gradient are wrong for |η| > 16 in float32, as at the black pixels of an image.

    Args:
        logits: η, any shape.

    Example:
        >>> law = ContinuousBernoulli(torch.tensor([0.0, 40.0]))
        >>> law.mean
        tensor([0.5000, 0.9750])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True
    logits: Tensor

    @property
    def mean(self) -> Tensor:
        """½ + (coth h − 1/h)/2."""
        half = self.logits / 2
        near = half.abs() < _NEAR
        far = torch.where(near, torch.ones_like(half), half)
        series = half * (1 / 3 - half.square() * (1 / 45 - 2 * half.square() / 945))
        return 0.5 + 0.5 * torch.where(near, series, 1 / far.tanh() - 1 / far)

    @property
    def variance(self) -> Tensor:
        """(1/h² − 1/sinh² h)/4."""
        half = self.logits.abs() / 2
        near = half < 10 * _NEAR  # 1/h² − 1/sinh² h cancels earlier
        far = torch.where(near, torch.ones_like(half), half)
        square = half.square()
        series = 1 / 3 - square * (1 / 15 - square * (2 / 189 - square / 675))
        inverse = 2 * (-far).exp() / -(-2 * far).expm1()  # 1/sinh h
        return 0.25 * torch.where(near, series, far.reciprocal().square() - inverse.square())

    def log_mass(self, value: Tensor) -> Tensor:
        """η (x − ½) − log(sinh(h)/h)."""
        half = self.logits.abs() / 2
        near = half < _NEAR
        far = torch.where(near, torch.ones_like(half), half)
        square = half.square()
        series = square * (1 / 6 - square * (1 / 180 - square / 2835))
        normaliser = torch.where(near, series, far + (-(-2 * far).expm1() / (2 * far)).log())
        return self.logits * (value - 0.5) - normaliser

    def icdf(self, value: Tensor) -> Tensor:
        """x with P(X ≤ x) = u: log(1 + u (e^η − 1))/η, for η > 0 from the other end."""
        size = self.logits.abs()
        u = torch.where(self.logits > 0, 1 - value, value)
        near = size < _NEAR
        far = torch.where(near, torch.ones_like(size), size)
        x = torch.where(near, u * (1 - size * (1 - u) / 2), -(u * (-far).expm1()).log1p() / far)
        return torch.where(self.logits > 0, 1 - x, x).clamp(0, 1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by `icdf`."""
        return self.icdf(torch.rand(*sample_shape, *self.batch_shape, dtype=self.first.dtype, device=self.first.device))

    def drawn(self, shape: Any) -> Tensor:
        """As `rsample`."""
        return self.icdf(torch.rand(shape, dtype=self.first.dtype, device=self.first.device))


class Poisson(Elementwise):
    """P(k) = e^(kη − e^η)/k! from η, the logarithm of the mean; a mean that underflows to 0 leaves log P(k) finite.

    Args:
        log_rate: η, any shape.

    Example:
        >>> Poisson(torch.tensor(-200.0)).log_prob(torch.tensor(2.0))
        tensor(-400.6931)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_rate": constraints.real}
    support = constraints.nonnegative_integer
    log_rate: Tensor

    @property
    def mean(self) -> Tensor:
        """e^η."""
        return self.log_rate.exp()

    @property
    def variance(self) -> Tensor:
        """e^η."""
        return self.log_rate.exp()

    def log_mass(self, value: Tensor) -> Tensor:
        """k η − e^η − log k!."""
        return value * self.log_rate - self.log_rate.exp() - (value + 1).lgamma()

    def drawn(self, shape: Any) -> Tensor:
        """Draw by torch."""
        return torch.poisson(self.log_rate.exp().expand(shape))


class NegativeBinomial(Elementwise):
    """Counts with mean μ and variance μ + μ²/r, a Poisson variable whose mean has a gamma law of shape r.

    log P(k) = log Γ(k + r)/(k! Γ(r)) + r log r/(r + μ) + k log μ/(r + μ). As r → ∞ it becomes a Poisson law. The terms then
    cancel, and torch's form in float32 is wrong by 1 nat at r = 10⁶; here they are taken in double precision.

    Args:
        log_mean: log μ, any shape.
        log_count: log r.

    Example:
        >>> NegativeBinomial(torch.tensor(1.0), torch.tensor(14.0)).log_prob(torch.tensor(2.0))
        tensor(-1.4114)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_mean": constraints.real, "log_count": constraints.real}
    support = constraints.nonnegative_integer
    log_mean: Tensor
    log_count: Tensor

    @property
    def mean(self) -> Tensor:
        """μ."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """μ + μ²/r."""
        return self.mean + (2 * self.log_mean - self.log_count).exp()

    def log_mass(self, value: Tensor) -> Tensor:
        """Log-mass, in double precision inside."""
        k, log_count, log_mean = value.double(), self.log_count.double(), self.log_mean.double()
        count, logits = log_count.exp(), log_mean - log_count
        ways = (k + count).lgamma() - count.lgamma() - (k + 1).lgamma()
        return (ways + count * logsigmoid(-logits) + k * logsigmoid(logits)).to(self.log_mean.dtype)

    def drawn(self, shape: Any) -> Tensor:
        """Draw a gamma mean, then a Poisson variable."""
        count = self.log_count.exp().expand(shape)
        return torch.poisson(dist.Gamma(count, (self.log_count - self.log_mean).exp().expand(shape)).sample())


class Categorical(dist.Categorical):
    """Pyro's Categorical with the mean Σ k P(k) of the numbers of its categories, for pictures; torch has NaN.

    Without validation, a number that is no category has the log-density −∞; torch has an IndexError.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(k)."""
        if validates(self):
            checked: Tensor = super().log_prob(value)
            return checked
        last = self.logits.shape[-1] - 1
        within: Tensor = super().log_prob(value.clamp(0, last))
        return torch.where((value >= 0) & (value <= last), within, -torch.inf)

    @property
    def mean(self) -> Tensor:
        """Σ k P(k)."""
        probs: Tensor = self.probs
        return probs @ torch.arange(probs.shape[-1], dtype=probs.dtype, device=probs.device)


class DiscretisedLogistic(Elementwise):
    """Levels 0, …, L with P(k) = σ((k + ½ − μ)/s) − σ((k − ½ − μ)/s); the first and the last also have the tails.

    The masses sum to 1 over the levels (Salimans et al. 2017, arXiv:1701.05517, section 2.1). Each is taken as
    log σ(b) + log σ(−a) + log(1 − e^(a − b)), which is exact far in the tails.

    Args:
        loc: μ, in levels.
        log_scale: log s, of the same unit; the standard deviation is s π/√3 without the rounding.
        high: L, a tensor without dimensions, or of the shape of ``loc``.

    Example:
        >>> law = DiscretisedLogistic(torch.tensor(3.0), torch.tensor(0.0), torch.tensor(16.0))
        >>> float(law.log_prob(torch.arange(17.0)).exp().sum().round(decimals=5))
        1.0
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real,
        "log_scale": constraints.real,
        "high": constraints.nonnegative_integer,
    }
    loc: Tensor
    log_scale: Tensor
    high: Tensor

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """The whole numbers from 0 to L."""
        return constraints.integer_interval(0, self.high)

    @property
    def mean(self) -> Tensor:
        """Σ_k P(K ≥ k), the levels one after the other, as an image has too many for all at once."""
        scale, total = self.log_scale.exp(), torch.zeros_like(self.loc)
        for level in range(1, int(self.high.max()) + 1):
            total = total + torch.where(level <= self.high, ((self.loc - level + 0.5) / scale).sigmoid(), 0.0)
        return total

    def log_mass(self, value: Tensor) -> Tensor:
        """Log-mass of each level."""
        inverse = (-self.log_scale).exp()
        below, above = (value - 0.5 - self.loc) * inverse, (value + 0.5 - self.loc) * inverse
        inside, zero = (-(-inverse).expm1()).log(), torch.zeros_like(above)
        return (
            torch.where(value < self.high, logsigmoid(above), zero)
            + torch.where(value > 0, logsigmoid(-below), zero)
            + torch.where((value > 0) & (value < self.high), inside, zero)
        )

    def drawn(self, shape: Any) -> Tensor:
        """Draw a logistic variable and round it."""
        u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(min=torch.finfo(self.loc.dtype).tiny)
        value = self.loc + self.log_scale.exp() * u.logit()
        return torch.minimum(value.round().clamp(min=0), self.high)


class _Levels(constraints.Constraint):
    """The multiples of 1/L from 0 to 1, up to rounding."""

    is_discrete = True

    def __init__(self, high: float) -> None:
        self.high = high

    def check(self, value: Tensor) -> Tensor:
        """True for a level."""
        levels = value * self.high
        return ((levels - levels.round()).abs() < 1e-3) & (value >= 0) & (levels.round() <= self.high)

    def __repr__(self) -> str:
        return f"Levels(1/{self.high:g})"


class Shares(dist.TorchDistribution):
    """x = k/L, k from a distribution of 0, …, L: intensities from 0 to 1 that are stored as whole numbers.

    Args:
        base: the distribution of k.
        high: L.

    Example:
        >>> Shares(dist.Binomial(16, torch.tensor(0.25)), 16).mean
        tensor(0.2500)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: Any, high: float, validate_args: bool | None = None) -> None:
        self.base, self.high = base, high
        super().__init__(base.batch_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The multiples of 1/L."""
        return _Levels(self.high)

    @property
    def mean(self) -> Tensor:
        """E k/L."""
        value: Tensor = self.base.mean / self.high
        return value

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with another batch shape."""
        return Shares(self.base.expand(batch_shape), self.high, validates(self))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-mass of k = L x, in nats; ValueError for values between the levels, where validation is on."""
        if validates(self) and not bool(self.support.check(value).all()):
            raise ValueError(f"values are not multiples of 1/{self.high:g}")
        found: Tensor = self.base.log_prob((value * self.high).round())
        return found

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw k and divide it by L."""
        drawn: Tensor = self.base.sample(sample_shape)
        return drawn / self.high
