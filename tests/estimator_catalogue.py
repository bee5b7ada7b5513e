"""Tiny pairs whose bounds and gradients are known: by quadrature over continuous draws, by enumeration over discrete ones.

Each `Small` pair has one latent z for each datum, a model parameter ``b`` and guide parameters ``m`` and ``l``; its programs
come as modules and as functions with `pyro.param`. `exact_loss` is −bound of a data set, to be differentiated; it knows
nothing of the estimators. `SERVES` says which of them each estimator of the table can serve; `mean_gradient` and
`row_gradients` measure what it gives.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vi import estimators
from pyro_vi.estimators.bound import Bound
from pyro_vi.estimators.traits import differentiable_loss
from pyro_vi.programs.layout import data_plate
from pyro_vi.programs.pair import Pair

NAMES = ("b", "m", "l")
START = {"b": 0.2, "m": 0.4, "l": -0.5}
DATA = torch.tensor([1.3, -0.4, 0.6, -1.1], dtype=torch.float64)
PRIOR_LOGIT = -0.6


@dataclass(frozen=True)
class Small:
    """A pair with one latent a datum.

    Attributes:
        prior: p(z), from x for its dtype.
        guide: q(z | x) from x, m and l: its loc and log scale, or the shift and slope of its logit.
        mean: E[x | z] − b.
        log_weight: log p(x, z) − log q(z | x) from z, x and the parameters, written out by hand.
        points: values and log-probabilities of one draw under q, as functions of x and the parameters.
    """

    prior: Callable[[Tensor], Any]
    guide: Callable[[Tensor, Tensor, Tensor], Any]
    mean: Callable[[Tensor], Tensor]
    log_weight: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]
    points: Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, Tensor]]


def normal_log_density(x: Tensor, loc: Any, log_scale: Any) -> Tensor:
    """log N(x; loc, exp(log_scale)²), written out."""
    log_scale = torch.as_tensor(log_scale, dtype=x.dtype)
    return -0.5 * ((x - loc) * (-log_scale).exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)


def _continuous_weight(z: Tensor, x: Tensor, p: dict[str, Tensor]) -> Tensor:
    return (
        normal_log_density(z, 0.0, 0.0) + normal_log_density(x, z + p["b"], 0.0) - normal_log_density(z, p["m"], p["l"])
    )


def _continuous_points(x: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    nodes, mass = np.polynomial.hermite_e.hermegauss(30)
    noise = torch.as_tensor(nodes, dtype=x.dtype)
    return p["m"] + p["l"].exp() * noise, torch.as_tensor(np.log(mass / mass.sum()), dtype=x.dtype)


def _discrete_weight(z: Tensor, x: Tensor, p: dict[str, Tensor]) -> Tensor:
    prior = torch.as_tensor(PRIOR_LOGIT, dtype=x.dtype)
    logit = p["m"] + p["l"] * x
    log_p = z * prior - softplus(prior)
    log_q = z * logit - softplus(logit)
    return log_p + normal_log_density(x, 2 * z - 1 + p["b"], 0.0) - log_q


def _discrete_points(x: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    logit = p["m"] + p["l"] * x
    return torch.tensor([0.0, 1.0], dtype=x.dtype), torch.stack([-softplus(logit), -softplus(-logit)])


SMALL: dict[str, Small] = {
    "continuous": Small(
        lambda x: dist.Normal(x.new_zeros(()), x.new_ones(())),
        lambda x, m, slope: dist.Normal(m, slope.exp()),
        lambda z: z,
        _continuous_weight,
        _continuous_points,
    ),
    "discrete": Small(
        lambda x: dist.Bernoulli(logits=x.new_tensor(PRIOR_LOGIT)),
        lambda x, m, slope: dist.Bernoulli(logits=m + slope * x),
        lambda z: 2 * z - 1,
        _discrete_weight,
        _discrete_points,
    ),
}


def run_model(small: Small, x: Tensor, b: Tensor, size: int | None) -> None:
    """The generative program."""
    with data_plate(size, x):
        z = pyro.sample("z", small.prior(x))
        pyro.sample("x", dist.Normal(small.mean(z) + b, x.new_ones(())), obs=x)


def run_guide(small: Small, x: Tensor, m: Tensor, slope: Tensor, size: int | None, infer: dict[str, Any]) -> None:
    """The variational program."""
    with data_plate(size, x):
        pyro.sample("z", small.guide(x, m, slope), infer=dict(infer))


class _Model(nn.Module):
    def __init__(self, small: Small, dtype: torch.dtype, size: int | None) -> None:
        super().__init__()
        self.small, self.size = small, size
        self.b = nn.Parameter(torch.tensor(START["b"], dtype=dtype))

    def forward(self, x: Tensor) -> None:
        run_model(self.small, x, self.b, self.size)


class _Guide(nn.Module):
    def __init__(self, small: Small, dtype: torch.dtype, size: int | None, infer: dict[str, Any]) -> None:
        super().__init__()
        self.small, self.size, self.infer = small, size, infer
        self.m = nn.Parameter(torch.tensor(START["m"], dtype=dtype))
        self.l = nn.Parameter(torch.tensor(START["l"], dtype=dtype))

    def forward(self, x: Tensor) -> None:
        run_guide(self.small, x, self.m, self.l, self.size, self.infer)


def modules(
    small: Small, dtype: torch.dtype = torch.float64, size: int | None = None, infer: dict[str, Any] | None = None
) -> tuple[nn.Module, nn.Module]:
    """The pair as modules."""
    return _Model(small, dtype, size), _Guide(small, dtype, size, infer or {})


def functions(small: Small, infer: dict[str, Any] | None = None) -> tuple[Callable[..., None], Callable[..., None]]:
    """The pair as functions, with its parameters in Pyro's store."""

    def param(name: str, x: Tensor) -> Tensor:
        return pyro.param(name, x.new_tensor(START[name]))

    def model(x: Tensor) -> None:
        run_model(small, x, param("b", x), None)

    def guide(x: Tensor) -> None:
        run_guide(small, x, param("m", x), param("l", x), None, infer or {})

    return model, guide


def parameters(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Fresh leaves at the values at which the programs start."""
    return {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in START.items()}


def exact_loss(small: Small, x: Tensor, p: dict[str, Tensor], bound: str, count: int = 1, alpha: float = 0.0) -> Tensor:
    """−E of the bound of all data, over every combination of ``count`` draws of each datum."""
    total = x.new_zeros(())
    for datum in x:
        value, log_mass = small.points(datum, p)
        log_weight = small.log_weight(value, datum, p)
        grid = torch.cartesian_prod(*[torch.arange(len(value))] * count).reshape(-1, count)
        mass = log_mass[grid].sum(-1).exp()
        total = total - (mass * _bound(log_weight[grid], bound, alpha)).sum()
    return total


def _bound(log_weight: Tensor, bound: str, alpha: float) -> Tensor:
    if bound == "elbo":
        return log_weight.mean(-1)
    order = alpha if bound == "renyi" else 0.0
    scaled = (1 - order) * log_weight
    return (scaled.logsumexp(-1) - math.log(log_weight.shape[-1])) / (1 - order)


def straight_through_gradient(x: Tensor, temperature: float) -> Tensor:
    """E of the straight-through gradient of −ELBO on the discrete pair, which is not that of the ELBO: in (b, m, l).

    With logistic noise e, hard draw h = 1[η + e > 0] and soft draw s = σ((η + e) / T), it is E[f'(h) s (1 − s) / T] in the
    logit η, f being log p(x, z) − log q(z) with z real: the integral over e by the midpoint rule.
    """
    step = 5e-4
    # The hard draw jumps half way between two points.
    around = (torch.arange(-80_000, 80_000, dtype=torch.float64) + 0.5) * step
    total = torch.zeros(3, dtype=torch.float64)
    for datum in x:
        logit = START["m"] + START["l"] * datum
        noise = around - logit
        density = noise.sigmoid() * (-noise).sigmoid() * step
        hard = (noise + logit > 0).double()
        soft = ((noise + logit) / temperature).sigmoid()
        residual = datum - (2 * hard - 1 + START["b"])
        slope = PRIOR_LOGIT - logit + 2 * residual
        in_logit = (density * slope * soft * (1 - soft) / temperature).sum()
        in_b = (density * residual).sum()
        total -= torch.stack([in_b, in_logit, in_logit * datum])
    return total


BOTH = ("continuous", "discrete")


@dataclass(frozen=True)
class Serves:
    """Which small pairs an estimator can serve, and the bound that it is of.

    Attributes:
        pairs: names of small pairs.
        bound: of `exact_loss`.
        count: draws under the bound.
        options: to make it with.
        infer: by pair, what the guide's site is marked with.
        subsamples: whether it is unbiased under a subsampled plate.
        biased: expected is the straight-through gradient and not the bound's.
    """

    pairs: tuple[str, ...]
    bound: str = "elbo"
    count: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    infer: dict[str, dict[str, Any]] = field(default_factory=dict)
    subsamples: bool = True
    biased: bool = False


_TWO = {"num_particles": 2}
_QUIET = {"strict_enumeration_warning": False}  # a pair with no marked site is served as well
SERVES: dict[str, Serves] = {
    "trace": Serves(("continuous",)),
    "mean_field": Serves(("continuous",)),
    "graph": Serves(BOTH),
    "enum": Serves(BOTH, options=_QUIET, infer={"discrete": {"enumerate": "parallel"}}),
    # With one marked latent a datum, S samples of it are the importance-weighted bound of S draws, and all states of a
    # discrete one are the evidence; the scale of a subsampled plate goes inside the logarithm, which is biased.
    "tmc": Serves(
        ("continuous",),
        "iwae",
        3,
        _QUIET,
        {"continuous": {"enumerate": "parallel", "num_samples": 3, "expand": True}},
        subsamples=False,
    ),
    "analytic": Serves(("continuous",)),
    "stl": Serves(("continuous",)),
    "iwae": Serves(("continuous",), "iwae", 3, {"num_particles": 3}),
    "dreg": Serves(("continuous",), "iwae", 3, {"num_particles": 3}),
    "renyi": Serves(("continuous",), "renyi", 3, {"num_particles": 3, "alpha": 0.5}),
    "score": Serves(BOTH, options=_TWO),
    "mixed": Serves(BOTH, options=_TWO),
    "vimco": Serves(BOTH, "iwae", 3, {"num_particles": 3}),
    "relaxed": Serves(("discrete",), biased=True),
}
OURS = [name for name, entry in estimators.TABLE.items() if issubclass(entry.cls, Bound)]


def make(name: str, **options: Any) -> Any:
    """An estimator with the options that `SERVES` has for it, and these."""
    # Told the nesting, Pyro's own need no run to guess it, which would move the generator.
    nesting = {} if name in OURS else {"max_plate_nesting": 1}
    options = {k: v for k, v in options.items() if v is not None or name in OURS}
    return estimators.get(name, **{**nesting, **SERVES[name].options, **options})


def mean_gradient(
    elbo: Any, model: nn.Module, guide: nn.Module, x: Tensor, evaluations: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Mean of the gradients of an estimator's loss over evaluations, and its standard error: in (model's, guide's)."""
    pair = Pair(model, guide)
    wanted = [p for program in (model, guide) for p in program.parameters()]
    torch.manual_seed(seed)
    found = []
    for _ in range(evaluations):
        gradients = torch.autograd.grad(differentiable_loss(elbo, pair, (x,)), wanted, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, gradients, strict=True)]
        found.append(torch.cat([part.reshape(-1) for part in parts]).double())
    stacked = torch.stack(found)
    return stacked.mean(0), stacked.std(0) / math.sqrt(evaluations)


def assert_near(found: Tensor, expected: Any, error: Tensor, largest_error: float, rounding: float = 1e-10) -> None:
    """Within 4 standard errors everywhere, and the standard errors small enough for that to say something."""
    expected = torch.as_tensor(expected, dtype=found.dtype)
    assert (error <= largest_error).all(), f"standard errors {error.tolist()} are larger than {largest_error}"
    distance = (found - expected).abs()
    assert (distance <= 4 * error + rounding).all(), (
        f"{found.tolist()} for {expected.tolist()}, errors {error.tolist()}"
    )


# z ~ N(0, 1), x | z ~ N(z, 1), q = N(m, s²), many times over: each row has an m and an l = log s of its own, so that one
# evaluation gives as many independent gradients as there are rows.


class _Rows(nn.Module):
    def __init__(self, rows: int, m: float, s: float) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.full((rows,), m, dtype=torch.float64))
        self.l = nn.Parameter(torch.full((rows,), math.log(s), dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.m, self.l.exp()))


def row_model(x: Tensor) -> None:
    """The conjugate pair's model."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), x.new_ones(())))
        pyro.sample("x", dist.Normal(z, x.new_ones(())), obs=x)


def row_gradients(elbo: Any, x: float, m: float, s: float, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Independent gradients of the bound of one datum in m and in l = log s, each of shape ``(rows,)``."""
    guide = _Rows(rows, m, s)
    torch.manual_seed(seed)
    loss = elbo.differentiable_loss(row_model, guide, torch.full((rows,), x, dtype=torch.float64))
    in_m, in_l = torch.autograd.grad(-loss, [guide.m, guide.l])
    return in_m, in_l


def variance_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Variance of a sample, and its standard error √((μ₄ − σ⁴) / n)."""
    centred = values - values.mean()
    variance = centred.square().mean()
    return variance, ((centred**4).mean() - variance.square()).clamp(min=0).sqrt() / math.sqrt(len(values))
