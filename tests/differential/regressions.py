"""Regressions and rates: groups, data inside of the program, missing data, own minibatches, Bayesian networks."""

import pyro
import pyro.distributions as dist
import torch
from differential.harness import Program
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal, init_to_mean
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

N = 9


def baseball() -> Program:
    """Partially pooled success rates; the columns are integers."""

    def model(at_bats: Tensor, hits: Tensor) -> None:
        m = pyro.sample("m", dist.Uniform(0.0, 1.0))
        kappa = pyro.sample("kappa", dist.Pareto(torch.tensor(1.0), torch.tensor(1.5)))
        with pyro.plate("players", len(at_bats)):
            phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
            pyro.sample("hits", dist.Binomial(at_bats, probs=phi), obs=hits.to(phi.dtype))

    def start(site: dict) -> Tensor:
        return {"m": torch.tensor(0.3), "kappa": torch.tensor(3.0), "phi": torch.full((6,), 0.3)}[site["name"]]

    args = (torch.full((6,), 45), torch.tensor([18, 17, 15, 12, 10, 7]))
    return Program(model, AutoNormal(model, init_loc_fn=start), args, rows=6)


def eight_schools() -> Program:
    """Programs without arguments: the data are in their globals."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model() -> None:
        mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)

    def guide() -> None:
        def normal(name: str, shape: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
            scale = pyro.param(f"{name}_scale", torch.full(shape, 0.5), constraint=constraints.positive)
            return pyro.param(f"{name}_loc", torch.zeros(shape)), scale

        pyro.sample("mu", dist.Normal(*normal("mu")))
        pyro.sample("tau", dist.TransformedDistribution(dist.Normal(*normal("tau")), dist.transforms.ExpTransform()))
        with pyro.plate("schools", 8):
            pyro.sample("eta", dist.Normal(*normal("eta", (8,))))

    return Program(model, guide, rows=8)


def radon() -> Program:
    """Varying intercepts and slopes; the column of counties holds whole numbers, used as an index."""

    def model(county: Tensor, floor: Tensor, y: Tensor | None = None) -> None:
        mu_a, sigma_a = pyro.sample("mu_a", dist.Normal(0.0, 2.0)), pyro.sample("sigma_a", dist.HalfNormal(1.0))
        slope, noise = pyro.sample("slope", dist.Normal(0.0, 1.0)), pyro.sample("noise", dist.HalfNormal(1.0))
        with pyro.plate("counties", 3):
            a = pyro.sample("a", dist.Normal(mu_a, sigma_a))
        with pyro.plate("homes", len(county)):
            pyro.sample("y", dist.Normal(a[county] + slope * floor, noise), obs=y)

    args = (torch.arange(N) % 3, (torch.rand(N) < 0.5).double(), torch.randn(N))
    return Program(model, AutoDiagonalNormal(model, init_loc_fn=init_to_mean), args, rows=N)


class BayesianNetwork(PyroModule):
    """One hidden layer, a prior on every weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = PyroModule[nn.Linear](2, width), PyroModule[nn.Linear](width, 1)
        for layer in (self.fc1, self.fc2):
            for name in ("weight", "bias"):
                shape = getattr(layer, name).shape
                setattr(layer, name, PyroSample(dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        mean = self.fc2(torch.tanh(self.fc1(x))).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)
        return mean


def bayesian_network() -> Program:
    model = BayesianNetwork(3)
    guide = AutoDiagonalNormal(model, init_loc_fn=init_to_mean)
    return Program(model, guide, (torch.randn(N, 2), torch.randn(N)), rows=N)


def bayesian_network_with_a_fitted_layer() -> Program:
    """The prior of one layer; the other layer is a plain parameter of the model."""

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(2, 3), PyroModule[nn.Linear](3, 1)
            self.last.weight = PyroSample(lambda self: dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
            self.noise = PyroSample(dist.HalfNormal(1.0))

        def forward(self, x: Tensor, y: Tensor) -> None:
            mean, noise = self.last(torch.tanh(self.first(x))).squeeze(-1), self.noise
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(mean, noise), obs=y)

    model = Model()
    guide = AutoNormal(model, init_loc_fn=init_to_mean)
    return Program(model, guide, (torch.randn(N, 2), torch.randn(N)), elbo=TraceMeanField_ELBO, rows=N)


def _line(x: Tensor, y: Tensor, **plate: object) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x), **plate) as rows:
        pyro.sample("y", dist.Normal(w[0] + w[1] * x[rows], 0.5), obs=y[rows])


def _weights(*args: object, **kwargs: object) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    pyro.sample("w", dist.Normal(loc, pyro.param("scale", torch.full((2,), 0.1), constraints.positive)).to_event(1))


def _columns() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, N)
    return x, 0.5 - x + 0.5 * torch.randn(N)


def own_minibatch() -> Program:
    """The plate draws the rows of each step."""
    return Program(lambda x, y: _line(x, y, subsample_size=4), _weights, _columns(), rows=N)


def own_minibatch_of_both() -> Program:
    """Model and guide have the same subsampled plate, and the guide a parameter for each row."""

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(w * x[rows], 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y[rows])

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("w", dist.Normal(pyro.param("w_loc", torch.tensor(0.0)), 0.1))
        with pyro.plate("data", len(x), subsample_size=4):
            loc = pyro.param("z_loc", torch.zeros(len(x)), event_dim=0)
            pyro.sample("z", dist.Normal(loc, 0.3))

    return Program(model, guide, _columns(), rows=N)


def own_minibatch_autoguide() -> Program:
    """An AutoGuide of a model with a local latent and a subsampled plate."""

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=4):
            xs, ys = pyro.subsample(x, event_dim=0), pyro.subsample(y, event_dim=0)
            z = pyro.sample("z", dist.Normal(w * xs, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=ys)

    def whole(x: Tensor, y: Tensor) -> pyro.plate:
        return pyro.plate("data", len(x), subsample_size=4)

    return Program(model, AutoNormal(model, init_loc_fn=init_to_mean, create_plates=whole), _columns(), rows=N)


def given_minibatch() -> Program:
    """The rows of the minibatch are an argument."""
    return Program(
        lambda x, y, rows: _line(x, y, subsample=rows), _weights, (*_columns(), torch.tensor([5, 0, 7])), rows=N
    )


def sequential_minibatch() -> Program:
    """A sequential plate that draws rows."""

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        for i in pyro.plate("data", len(x), subsample_size=3):
            pyro.sample(f"y_{i}", dist.Normal(w[0] + w[1] * x[i], 0.5), obs=y[i])

    return Program(model, _weights, _columns(), rows=N)


def minibatch_of_a_larger_set() -> Program:
    """The rows passed are a part of N = 90: the plate has the size of the whole."""

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 90, subsample=torch.arange(len(x))):
            pyro.sample("y", dist.Normal(w[0] + w[1] * x, 0.5), obs=y)

    return Program(model, _weights, _columns(), rows=90)


def missing_by_mask() -> Program:
    """A mask around the likelihood; a local latent on both sides of it."""

    def model(x: Tensor, y: Tensor, seen: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Normal(w[0] + w[1] * x, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def guide(x: Tensor, y: Tensor, seen: Tensor) -> None:
        _weights()
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * y, 0.4))

    return Program(model, guide, (*_columns(), torch.arange(N) % 3 > 0), rows=N)


def missing_by_obs_mask() -> Program:
    """`obs_mask`: what is missing is a latent of the guide."""

    def model(x: Tensor, y: Tensor, seen: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w[0] + w[1] * x, 0.5), obs=y, obs_mask=seen)

    guide = AutoNormal(model, init_loc_fn=init_to_mean)
    return Program(model, guide, (*_columns(), torch.arange(N) % 3 > 0), rows=N)


def two_likelihoods() -> Program:
    """Two data sets of different lengths share a parameter: no plate holds all the data."""

    def model(x: Tensor, y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        with pyro.plate("a", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        with pyro.plate("b", len(y)):
            pyro.sample("y", dist.StudentT(4.0, m, 2.0), obs=y)

    return Program(model, AutoNormal(model, init_loc_fn=init_to_mean), (torch.randn(5), torch.randn(3)), rows=5)


PROGRAMS = [
    baseball,
    eight_schools,
    radon,
    bayesian_network,
    bayesian_network_with_a_fitted_layer,
    own_minibatch,
    own_minibatch_of_both,
    own_minibatch_autoguide,
    given_minibatch,
    sequential_minibatch,
    minibatch_of_a_larger_set,
    missing_by_mask,
    missing_by_obs_mask,
    two_likelihoods,
]
