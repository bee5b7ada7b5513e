"""Posteriors with known answers, in float64: tests of guides and of the evidence are parametrised over `TARGETS`.

Each `Target` is an ordinary Pyro program with its data, its log evidence, and the best ELBO that a normal guide can reach on
the unconstrained scale, with independent components or with a full covariance. Five data sets are those of posteriordb, with
reference draws (the folder's README describes the models); the funnel and the noisy cone are models of the shelf. The numbers
are to 1e-3: computed twice, by quadrature, enumeration or closed form.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vi.data import posteriordb
from pyro_vi.data.spec import DataSpec
from pyro_vi.models.funnel import Funnel
from pyro_vi.models.noisy_cone import NoisyCone

needs_folder = pytest.mark.skipif("PYRO_VI_DATA" not in os.environ, reason="PYRO_VI_DATA is not set")

FLAT = 1000.0
"""Standard deviation of a normal prior that stands for a flat one."""
_FLAT = math.log(FLAT * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Target:
    """A program and what is true of it.

    Attributes:
        name: its name.
        model: the program; called with ``data()``.
        columns: makes its data.
        evidence: log Z.
        mean_field: the best ELBO of independent normals on the unconstrained scale.
        full_rank: the best ELBO of a normal with any covariance there; None if it is not known.
        folder: name of the posterior in `pyro_vi.data.posteriordb`, which has reference draws; None if there are none.
        read: turns draws by site, each with the draws as first dimension, into the columns of the reference draws.
    """

    name: str
    model: Callable[..., Any]
    columns: Callable[[], tuple[Tensor, ...]]
    evidence: float
    mean_field: float
    full_rank: float | None = None
    folder: str | None = None
    read: Callable[[Mapping[str, Tensor]], Tensor] | None = None

    @property
    def data(self) -> tuple[Tensor, ...] | None:
        """The data as `pyro_vi.fit` takes them; None for a program without data."""
        return self.columns() or None

    def reference(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the reference draws, one for each column."""
        found = posteriordb.read(self.folder or "")
        return found.mean, found.sd

    def draws(self) -> Tensor:
        """The reference draws, shape ``(10000, columns)``."""
        return posteriordb.read(self.folder or "").draws.flatten(0, 1)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _json(name: str, *keys: str) -> tuple[Tensor, ...]:
    data = posteriordb.read(name).data
    return tuple(data[key] for key in keys)


# Eight schools: mu ~ N(0, 5²), tau ~ C⁺(5), theta_j ~ N(mu, tau²), y_j ~ N(theta_j, sigma_j²).


def noncentred_schools(y: Tensor, sigma: Tensor) -> None:
    """Eight schools, theta = mu + tau z with z ~ N(0, 1)."""
    mu = pyro.sample("mu", dist.Normal(_number(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(_number(5.0)))
    with pyro.plate("schools", 8):
        z = pyro.sample("z", dist.Normal(_number(0.0), 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def centred_schools(y: Tensor, sigma: Tensor) -> None:
    """Eight schools, theta ~ N(mu, tau²)."""
    mu = pyro.sample("mu", dist.Normal(_number(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(_number(5.0)))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def _schools(draws: Mapping[str, Tensor]) -> Tensor:
    mu, tau = draws["mu"].reshape(-1, 1), draws["tau"].reshape(-1, 1)
    theta = draws["theta"] if "theta" in draws else mu + tau * draws["z"].reshape(-1, 8)
    return torch.cat([theta.reshape(-1, 8), mu, tau], 1)


# Regressions.


def blr(x: Tensor, y: Tensor) -> None:
    """Linear regression without an intercept: beta ~ N(0, 10²), sigma ~ N⁺(10²)."""
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(5), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(_number(10.0)))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * beta).sum(-1), sigma), obs=y)


def autoregression(past: Tensor, y: Tensor) -> None:
    """Autoregression on the rows of ``past``: alpha, beta ~ N(0, 10²), sigma ~ C⁺(2.5)."""
    alpha = pyro.sample("alpha", dist.Normal(_number(0.0), 10.0))
    beta = pyro.sample("beta", dist.Normal(past.new_zeros(5), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(_number(2.5)))
    with pyro.plate("data", len(past)):
        pyro.sample("y", dist.Normal(alpha + (past * beta).sum(-1), sigma), obs=y)


def _past() -> tuple[Tensor, ...]:
    (y,) = _json("arK", "y")
    return torch.stack([y[4 - k : -1 - k] for k in range(5)], 1), y[5:]


def kidscore(iq: Tensor, score: Tensor) -> None:
    """Regression on one predictor that is not centred: beta flat, sigma ~ C⁺(2.5).

    A normal of standard deviation `FLAT` stands for the flat prior of each coefficient. This changes the bounds by a constant,
    and by less than 4e-4 besides.
    """
    with pyro.plate("coefficients", 2):
        beta = pyro.sample("beta", dist.Normal(_number(0.0), FLAT))
    sigma = pyro.sample("sigma", dist.HalfCauchy(_number(2.5)))
    with pyro.plate("data", len(iq)):
        pyro.sample("score", dist.Normal(beta[..., 0:1] + beta[..., 1:2] * iq, sigma), obs=score)


def _beta_sigma(draws: Mapping[str, Tensor]) -> Tensor:
    return torch.cat(
        [draws[name].reshape(len(draws[name]), -1) for name in ("alpha", "beta", "sigma") if name in draws], 1
    )


# A mixture of two normals.


class Ordered(TorchDistribution):
    """Independent N(0, scale²), ordered: the density is that of the independent normals, without the factor of ordering."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.ordered_vector
    has_rsample = False

    def __init__(self, scale: float, size: int, batch_shape: Any = ()) -> None:
        self.scale = scale
        self.base = dist.Normal(torch.zeros(*batch_shape, size, dtype=torch.float64), scale)
        super().__init__(torch.Size(batch_shape), torch.Size([size]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Ordered":
        return Ordered(self.scale, *self.event_shape, batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.sample(sample_shape).sort(-1).values

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value).sum(-1)


def mixture(y: Tensor) -> None:
    """Two normals, their means in order: mu ~ N(0, 2²), sigma ~ N⁺(2²), theta ~ Beta(5, 5)."""
    mu = pyro.sample("mu", Ordered(2.0, 2))
    sigma = pyro.sample("sigma", dist.HalfNormal(2 * y.new_ones(2)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(_number(5.0), 5.0))
    weights = torch.stack([theta, 1 - theta], -1)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(mu, sigma)), obs=y)


def _mixture(draws: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([draws[name].reshape(len(draws[name]), -1) for name in ("mu", "sigma", "theta")], 1)


NOTHING = DataSpec("no data", 1, (), "real", torch.float64, "made up")
SCHOOLS = "eight_schools"
TARGETS = {
    target.name: target
    for target in (
        Target(
            "schools",
            noncentred_schools,
            lambda: _json(SCHOOLS, "y", "sigma"),
            -31.311347,
            -31.599,
            -31.536,
            SCHOOLS,
            _schools,
        ),
        Target(
            "centred schools",
            centred_schools,
            lambda: _json(SCHOOLS, "y", "sigma"),
            -31.311347,
            -33.405,
            -32.591,
            SCHOOLS,
            _schools,
        ),
        Target(
            "sblrc",
            blr,
            lambda: _json("sblrc", "X", "y"),
            -194.967589,
            -195.983,
            -194.996,
            "sblrc",
            _beta_sigma,
        ),
        Target("arK", autoregression, _past, 58.587594, 53.992, 58.571, "arK", _beta_sigma),
        Target(
            "kidiq",
            kidscore,
            lambda: _json("kidiq", "mom_iq", "kid_score"),
            -1881.663161 - 2 * _FLAT,
            -1883.575 - 2 * _FLAT,
            -1881.666 - 2 * _FLAT,
            "kidiq",
            _beta_sigma,
        ),
        Target(
            "mixture",
            mixture,
            lambda: _json("gauss_mix", "y"),
            -2115.683,
            -2115.927,
            -2115.687,
            "gauss_mix",
            _mixture,
        ),
        Target("funnel", Funnel(NOTHING), lambda: (), 0.0, -1.862847),
        Target("cone", NoisyCone(NOTHING), lambda: (), -5.323232, -8.074537),
    )
}
