"""Pairs with known answers, in float64: tests are parametrised over this catalogue.

Each `Entry` builds a fresh model and guide, and says what is true of them: which sites are local, where each site's KL comes
from, and who owns each parameter. A closed form is with the pair that has one: `Conjugate` (one dimension),
`linear_gaussian` (any dimension).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_vi.data.spec import DataSpec
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.guides.exact import Exact
from pyro_vi.models.linear_gaussian import LinearGaussian
from pyro_vi.models.vae import VAE
from pyro_vi.programs.layout import data_plate

NUM_DATA, BATCH = 50, 8
"""Full size of the data and rows of a minibatch, wherever a pair is subsampled."""


def columns(rows: int = BATCH, features: int = 3, seed: int = 7) -> Tensor:
    """Made-up real data of shape ``(rows, features)``, the same every time; the global generators are not touched."""
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scalars(rows: int = BATCH, seed: int = 7) -> Tensor:
    """Made-up real data of shape ``(rows,)``."""
    return columns(rows, 1, seed)[:, 0]


def spec(num_data: int = NUM_DATA, features: int = 3, support: str = "real") -> DataSpec:
    """The description of made-up vectors in float64."""
    return DataSpec("made up", num_data, (features,), support, torch.float64, "made up")


def number(value: float) -> Tensor:
    """A scalar in float64."""
    return torch.tensor(value, dtype=torch.float64)


@dataclass(frozen=True)
class Entry:
    """A pair and what is true of it.

    Attributes:
        build: gives a fresh (model, guide).
        batch: what both are called with.
        num_data: the N of *per datum*.
        rows: the B of per-datum shapes.
        local: latent site -> whether it is in the data plate.
        sources: latent site -> kind of its KL source where analytic is asked for.
        owners: parameter -> "model" or "guide".
        separate: whether a datum's terms depend on no other datum.
    """

    build: Callable[[], tuple[Any, Any]]
    batch: tuple[Tensor, ...]
    num_data: int
    rows: int
    local: Mapping[str, bool]
    sources: Mapping[str, str]
    owners: Mapping[str, str] = field(default_factory=dict)
    separate: bool = True


# The one-dimensional conjugate pair: z ~ N(0, 1), x | z ~ N(z, 1); log p(x) = log N(x; 0, 2).


def conjugate_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class ConjugateGuide(nn.Module):
    """q(z_n) = N(m_n, s_n²), with parameters m0, l0, m1, l1, ... for loc and log scale, one pair for each datum."""

    def __init__(self, *cases: tuple[float, float]) -> None:
        super().__init__()
        self.count = len(cases)
        for i, (m, s) in enumerate(cases):
            self.register_parameter(f"m{i}", nn.Parameter(number(m)))
            self.register_parameter(f"l{i}", nn.Parameter(number(math.log(s))))

    def forward(self, x: Tensor) -> None:
        loc = torch.stack([getattr(self, f"m{i}") for i in range(self.count)])
        log_scale = torch.stack([getattr(self, f"l{i}") for i in range(self.count)])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def marked(x: Tensor) -> None:
    """As `conjugate_model`, but log p is NaN for data above 50."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
        pyro.sample("x", dist.Normal(torch.where(x > 50, math.nan, z), 1.0), obs=x)


def slope(x: Tensor) -> None:
    """A guide of both: q(z_n) = N(a x_n, 1)."""
    a = pyro.param("a", number(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(a * x.clamp(max=50), 1.0))


# Linear-Gaussian, 3 features, 2 latents, subsampled.


def linear_gaussian(learn: bool = True, num_data: int = NUM_DATA) -> LinearGaussian:
    """A linear-Gaussian model whose posterior is correlated."""
    weight = [[1.0, 0.4], [-0.3, 0.8], [0.6, 0.9]]
    scale = [0.5, 0.8, 1.1]
    return LinearGaussian(
        spec(num_data), latent_dim=2, noise="diagonal", weight=weight, bias=[0.1, -0.2, 0.3], scale=scale, learn=learn
    )


class WrongGuide(nn.Module):
    """A diagonal guide of a linear-Gaussian model, linear in x and far from the posterior."""

    def __init__(self, full_rank: bool = False) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.3, -0.6]], dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor([-0.4, 0.2], dtype=torch.float64))
        self.full_rank = full_rank

    def distribution(self, x: Tensor) -> Any:
        loc, scale = x @ self.map.mT, self.log_scale.exp()
        if not self.full_rank:
            return dist.Normal(loc, scale).to_event(1)
        lower = torch.tensor([[0.0, 0.0], [0.4, 0.0]], dtype=x.dtype) + scale.diag()
        return dist.MultivariateNormal(loc, scale_tril=lower)

    def forward(self, x: Tensor) -> None:
        with data_plate(NUM_DATA, x):
            pyro.sample("z", self.distribution(x))


def exact_elbo(model: LinearGaussian, q: Any, x: Tensor) -> Tensor:
    """E_q[log p(x | z)] - KL(q || p) per datum of a diagonal guide of a linear-Gaussian model."""
    prior = dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1)
    at_mean = model.observation(q.mean).log_prob(x)
    trace = (model.weight.square() * (-2 * model.log_scale).exp().unsqueeze(-1) * q.variance.unsqueeze(-2)).sum(
        (-2, -1)
    )
    return (at_mean - 0.5 * trace - kl_divergence(q, prior)).detach()


def exact_pair() -> tuple[Any, Any]:
    model = linear_gaussian()
    return model, Exact(model, (columns(),))


def diagonal_pair() -> tuple[Any, Any]:
    model = linear_gaussian()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return model, DiagNormal(model, (columns(),), hidden=(5,))


# Programs that couple the data, or do not, by the way that they make their mean.


def standard_guide(x: Tensor) -> None:
    """q(z_n) = N(0, I) in two dimensions."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))


def model_with(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    """z_n ~ N(0, I) in two dimensions, x_n | z ~ N(f(z)_n, 1), of a function of all data's draws."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(function(z), 1.0), obs=x)

    return model


# A global latent, and a local one for each datum, under a plate of size 50 with a batch of 8.


def global_pair() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(number(0.5), 2.0))
        with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("w_loc", number(0.2))
        scale = pyro.param("w_scale", number(0.6), constraint=dist.constraints.positive)
        slope = pyro.param("slope", number(0.4))
        pyro.sample("w", dist.Normal(loc, scale))
        with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(slope * x, 0.8))

    return model, guide


def inner_subsample_pair() -> tuple[Any, Any]:
    """The programs get all the data and draw the minibatch themselves."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(number(0.0), 2.0))
        with pyro.plate("data", len(x), BATCH) as index:
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x[index])

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", number(0.3))
        pyro.sample("w", dist.Normal(loc, 0.5))
        with pyro.plate("data", len(x), BATCH) as index:
            pyro.sample("z", dist.Normal(0.4 * x[index], 0.8))

    return model, guide


# Nested plates: the data plate inside (dim -1) or outside (dim -2) of one of 3 features.


def nested_pair(data_dim: int) -> Callable[[], tuple[Any, Any]]:
    def build() -> tuple[Any, Any]:
        def plates(x: Tensor) -> tuple[Any, Any]:
            data = pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x)), dim=data_dim)
            return data, pyro.plate("features", 3, dim=-3 - data_dim)

        def model(x: Tensor) -> None:
            data, features = plates(x)
            with features:
                w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
            with data:
                u = pyro.sample("u", dist.Normal(number(0.0), 1.5))
            with data, features:
                z = pyro.sample("z", dist.Normal(w + u, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x if data_dim == -2 else x.mT)

        def guide(x: Tensor) -> None:
            rows = x if data_dim == -2 else x.mT
            slope = pyro.param("slope", number(0.4))
            data, features = plates(x)
            with features:
                pyro.sample("w", dist.Normal(number(0.1), 0.5))
            with data:
                pyro.sample("u", dist.Normal(slope * rows.mean(-3 - data_dim, keepdim=True), 0.6))
            with data, features:
                pyro.sample("z", dist.Normal(slope * rows, 0.8))

        return model, guide

    return build


# Masks and scales.


def masked_pair() -> tuple[Any, Any]:
    """Every third observation is missing."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5).mask(torch.arange(len(x)) % 3 != 0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", number(0.4)) * x, 0.7))

    return model, guide


def masked_rows_pair() -> tuple[Any, Any]:
    """Whole data are masked out of model and guide, as in padded sequences."""

    def keep(x: Tensor) -> Any:
        return poutine.mask(mask=torch.arange(len(x)) < 5)

    def model(x: Tensor) -> None:
        with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))), keep(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))), keep(x):
            loc = pyro.param("slope", number(0.4)) * x.unsqueeze(-1)
            pyro.sample("z", dist.Normal(loc, torch.tensor([0.7, 0.3], dtype=x.dtype)).to_event(1))

    return model, guide


def scaled_pair() -> tuple[Any, Any]:
    """KL annealing at weight 0.3, on model and guide."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))):
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))), poutine.scale(scale=0.3):
            pyro.sample("z", dist.Normal(pyro.param("slope", number(0.4)) * x, 0.7))

    return model, guide


# Sites without a registered KL, auxiliary and discrete ones, and programs without a vectorised data plate.


def lognormal_halfcauchy_pair() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.HalfCauchy(number(1.5)))
            pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(pyro.param("slope", number(0.4)) * x, 0.5))

    return model, guide


def auxiliary_pair() -> tuple[Any, Any]:
    """The guide draws an auxiliary site first; the latent one is a Delta of it."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(number(1.0)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = pyro.param("slope", number(0.4)) * x
            u = pyro.sample("u", dist.Normal(loc, 0.5), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u.exp(), log_density=u))

    return model, guide


def discrete_pair() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(number(0.3)))
            pyro.sample("x", dist.Normal(2 * z - 1, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("slope", number(1.4)) * x))

    return model, guide


def no_plate_pair() -> tuple[Any, Any]:
    """The data dimension is an event dimension."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", number(0.4)), 0.5))

    return model, guide


def sequential_pair() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x_{i}", dist.Normal(w, 1.0), obs=x[i])

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", number(0.4)), 0.5))

    return model, guide


# Three ways to own parameters.


def closure_pair() -> tuple[Any, Any]:
    """Functions with `pyro.module` networks in their closure, and a constrained `pyro.param`."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        decoder, encoder = nn.Linear(2, 3).double(), nn.Linear(3, 2).double()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        noise = pyro.param("noise", number(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", torch.full((2,), 0.6, dtype=x.dtype), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    return model, guide


class PyroModel(PyroModule):
    """A PyroModule with a `PyroParam`, and a global latent as `PyroSample`."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = PyroParam(number(0.5), constraint=dist.constraints.positive)
        self.w = PyroSample(dist.Normal(number(0.0), 1.0))

    def forward(self, x: Tensor) -> None:
        w, noise = self.w, self.noise
        with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, noise), obs=x)


class PyroGuide(PyroModule):
    """The guide of `PyroModel`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = PyroModule[nn.Linear](1, 1).double()
        nn.init.constant_(self.encoder.weight, 0.4)
        nn.init.constant_(self.encoder.bias, 0.1)
        self.w_loc = nn.Parameter(number(0.3))
        self.scale = PyroParam(number(0.6), constraint=dist.constraints.positive)

    def forward(self, x: Tensor) -> None:
        scale = self.scale
        pyro.sample("w", dist.Normal(self.w_loc, scale))
        with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(self.encoder(x.unsqueeze(-1)).squeeze(-1), scale))


class BoundVAE(nn.Module):
    """A VAE as in Pyro's tutorial: both methods register the whole object under one name."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.encoder, self.decoder = nn.Linear(3, 4).double(), nn.Linear(2, 3).double()

    def model(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def bound_pair() -> tuple[Any, Any]:
    vae = BoundVAE()
    return vae.model, vae.guide


def vae_pair() -> tuple[Any, Any]:
    """Our own VAE with a Bernoulli likelihood, and its encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = VAE(spec(support="boolean"), latent_dim=2, hidden=(4,))
        return model, DiagNormal(model, (BITS,), hidden=(4,))


BITS = (columns() > 0).double()
_ENCODER = {
    f"{layer}.{kind}": "guide" for layer in ("encoder.network.body.0", "q.z.head") for kind in ("weight", "bias")
}
_ANALYTIC, _LOCAL = {"z": "analytic"}, {"z": True}

CATALOGUE: dict[str, Entry] = {
    "conjugate": Entry(
        lambda: (conjugate_model, ConjugateGuide((0.2, 0.9), (0.65, 0.5))),
        (torch.tensor([1.3, -0.4], dtype=torch.float64),),
        *(2, 2, _LOCAL, _ANALYTIC),
        owners=dict.fromkeys(("m0", "l0", "m1", "l1"), "guide"),
    ),
    "linear_gaussian_exact": Entry(
        exact_pair,
        (columns(),),
        *(NUM_DATA, BATCH, _LOCAL, _ANALYTIC),
        owners=dict.fromkeys(("weight", "bias", "log_scale"), "model"),
    ),
    "linear_gaussian_diagonal": Entry(
        diagonal_pair,
        (columns(),),
        *(NUM_DATA, BATCH, _LOCAL, _ANALYTIC),
        owners=dict.fromkeys(("weight", "bias", "log_scale"), "model") | _ENCODER,
    ),
    "linear_gaussian_wrong": Entry(
        lambda: (linear_gaussian(learn=False), WrongGuide()),
        (columns(),),
        *(NUM_DATA, BATCH, _LOCAL, _ANALYTIC),
        owners=dict.fromkeys(("map", "log_scale"), "guide"),
    ),
    "linear_gaussian_full_rank": Entry(
        lambda: (linear_gaussian(), WrongGuide(full_rank=True)),
        (columns(),),
        *(NUM_DATA, BATCH, _LOCAL, _ANALYTIC),
        owners=dict.fromkeys(("weight", "bias", "log_scale"), "model") | {"map": "guide", "guide.log_scale": "guide"},
    ),
    "global": Entry(
        global_pair,
        (scalars(),),
        *(NUM_DATA, BATCH, {"w": False, "z": True}, {"w": "analytic", "z": "analytic"}),
        owners=dict.fromkeys(("w_loc", "w_scale", "slope"), "guide"),
    ),
    "inner_subsample": Entry(
        inner_subsample_pair,
        (scalars(NUM_DATA),),
        *(NUM_DATA, BATCH, {"w": False, "z": True}, {"w": "analytic", "z": "analytic"}),
        owners={"loc": "guide"},
        separate=False,
    ),
    **{
        f"nested_{where}": Entry(
            nested_pair(dim),
            (columns(),),
            *(NUM_DATA, BATCH, {"w": False, "u": True, "z": True}, dict.fromkeys("wuz", "analytic")),
            owners={"slope": "guide"},
        )
        for where, dim in (("inside", -1), ("outside", -2))
    },
    "masked": Entry(masked_pair, (scalars(),), BATCH, BATCH, _LOCAL, _ANALYTIC, {"slope": "guide"}),
    "masked_rows": Entry(masked_rows_pair, (scalars(),), NUM_DATA, BATCH, _LOCAL, _ANALYTIC, {"slope": "guide"}),
    "scaled": Entry(scaled_pair, (scalars(),), NUM_DATA, BATCH, _LOCAL, _ANALYTIC, {"slope": "guide"}),
    "lognormal_halfcauchy": Entry(
        lognormal_halfcauchy_pair, (scalars(),), BATCH, BATCH, _LOCAL, {"z": "sampled"}, {"slope": "guide"}
    ),
    "auxiliary": Entry(
        auxiliary_pair,
        (scalars(),),
        *(BATCH, BATCH, {"u": True, "z": True}, {"u": "sampled", "z": "analytic"}),
        owners={"slope": "guide"},
    ),
    "discrete": Entry(discrete_pair, (scalars(),), BATCH, BATCH, _LOCAL, _ANALYTIC, {"slope": "guide"}),
    "no_plate": Entry(no_plate_pair, (scalars(),), BATCH, 1, {"z": False}, _ANALYTIC, {"loc": "guide"}, separate=False),
    "sequential": Entry(
        sequential_pair, (scalars(),), BATCH, 1, {"w": False}, {"w": "analytic"}, {"loc": "guide"}, separate=False
    ),
    "closure": Entry(
        closure_pair,
        (columns(),),
        *(BATCH, BATCH, _LOCAL, _ANALYTIC),
        owners=dict.fromkeys(("noise", "decoder.weight", "decoder.bias"), "model")
        | dict.fromkeys(("scale", "encoder.weight", "encoder.bias"), "guide"),
    ),
    "pyro_module": Entry(
        lambda: (PyroModel(), PyroGuide()),
        (scalars(),),
        *(NUM_DATA, BATCH, {"w": False, "z": True}, {"w": "analytic", "z": "analytic"}),
        owners={"noise_unconstrained": "model"}
        | dict.fromkeys(("w_loc", "scale_unconstrained", "encoder.weight", "encoder.bias"), "guide"),
    ),
    "bound_vae": Entry(
        bound_pair,
        (columns(),),
        *(BATCH, BATCH, _LOCAL, _ANALYTIC),
        owners=dict.fromkeys(("vae.encoder.weight", "vae.encoder.bias"), "guide")
        | dict.fromkeys(("vae.decoder.weight", "vae.decoder.bias"), "model"),
    ),
    "vae": Entry(
        vae_pair,
        (BITS,),
        *(NUM_DATA, BATCH, _LOCAL, _ANALYTIC),
        owners={f"decoder.{i}.{kind}": "model" for i in (0, 2) for kind in ("weight", "bias")} | _ENCODER,
    ),
}

_ALIKE = (
    *("linear_gaussian_diagonal", "linear_gaussian_wrong", "linear_gaussian_full_rank"),
    *("linear_gaussian_exact", "nested_inside", "nested_outside", "masked", "masked_rows", "scaled"),
    *("pyro_module", "bound_vae", "vae"),
)
every_name = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in _ALIKE else ()) for name in CATALOGUE]
)
"""For tests that take about a second a pair: pairs that differ little from others are left to `make test-slow`."""
