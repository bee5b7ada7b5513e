"""Pairs with known posteriors, not fitted, as comparisons for the pictures."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.comparing import Comparison, Result
from pyro_vi.data import ColumnSpec, load
from pyro_vi.elbo.heldout import Evaluation
from pyro_vi.fitting.runs import Run
from pyro_vi.programs.build import build_pair


def comparison(model: Any, guide: Any, data: Any, names: tuple[str, ...] = ("trace",), **spec: Any) -> Comparison:
    """A comparison of a pair under some names, the same for each; ``spec`` replaces parts of the data's description."""
    made, results = load(data), {}
    apart = {key: spec.pop(key) for key in ("labels", "heldout_labels", "classes") if key in spec}
    made = replace(made, spec=replace(made.spec, **spec), **apart)
    for name in names:
        pair = build_pair(model, guide, made, seed=0)
        run = Run(pair, name, made, [{"step": 1, "elbo": -1.0, "reconstruction": -1.0, "kl": 0.0}], {}, 1, 1.0, {})
        results[name] = Result(run, "ELBO", "elbo", {}, Evaluation(torch.zeros(3), torch.zeros(3)), None)
    return Comparison("toy", "toy", made, 0, results, {}, on="held-out" if made.num_heldout else "training")


def vectors(rows: int, features: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (rows, features)).astype("float32")


def copying(x: Tensor, *others: Tensor) -> None:
    """z has the shape of x, and x is z with little noise."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1e-3).to_event(1), obs=x)


def copy(x: Tensor, *others: Tensor) -> None:
    """The guide of `copying`: z = 2 x."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(2 * x, 1e-3).to_event(1))


def line(x: Tensor, y: Tensor) -> None:
    """y = x · slopes, all sure; the slopes are in ``slopes``."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * slopes).sum(-1), 0.1), obs=y)


def slopes(x: Tensor, y: Tensor) -> None:
    """The guide of `line`: slopes 1, 2, … with standard deviation 1/2."""
    pyro.sample("slopes", dist.Normal(1.0 + torch.arange(x.shape[1]), 0.5).to_event(1))


def table(rows: int = 40, features: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and y = Σ_k k x_k."""
    x = vectors(rows, features)
    return x, (x * np.arange(1, features + 1)).sum(1)


class Plane(nn.Module):
    """A standard normal in the plane, with its density."""

    def log_density(self, z: Tensor) -> Tensor:
        return dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(z)

    def forward(self) -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def narrow() -> None:
    """A guide of `Plane` with half of its standard deviation."""
    pyro.sample("z", dist.Normal(torch.zeros(2), 0.5).to_event(1))


def walk(x: Tensor, lengths: Tensor) -> None:
    """A random walk of known scale, masked beyond the lengths."""
    with pyro.plate("data", len(x)):
        z: Any = 0.0
        for t in range(x.shape[1]):
            with pyro.poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Normal(z * torch.ones(x.shape[2]), 1.0).to_event(1))
                pyro.sample(f"x_{t}", dist.Normal(z, 0.1).to_event(1), obs=x[:, t])


def walked(x: Tensor, lengths: Tensor) -> None:
    """The guide of `walk`: z_t = x_t, almost surely."""
    with pyro.plate("data", len(x)):
        for t in range(x.shape[1]):
            with pyro.poutine.mask(mask=t < lengths):
                pyro.sample(f"z_{t}", dist.Normal(x[:, t], 1e-4).to_event(1))


def sequences(rows: int = 20, steps: int = 10, columns: int = 2) -> tuple[Tensor, Tensor]:
    draws = np.random.default_rng(0)
    lengths = torch.as_tensor(draws.integers(5, steps + 1, rows))
    lengths[0] = steps
    x = torch.as_tensor(draws.normal(size=(rows, steps, columns)).cumsum(1).astype("float32"))
    return x * (torch.arange(steps) < lengths[:, None])[..., None], lengths


LENGTHS = (ColumnSpec("lengths", (), "nonnegative_integer"),)
TARGET = (ColumnSpec("target", (), "real"),)


def keys(x: Tensor, lengths: Tensor) -> None:
    """Truth values of each step, with a latent for each, masked beyond the lengths."""
    known = (torch.arange(x.shape[1]) < lengths[:, None]).unsqueeze(-1)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[1:]), 1.0).to_event(2))
        pyro.sample("x", dist.Bernoulli(logits=z).mask(known).to_event(2), obs=x)


def pressed(x: Tensor, lengths: Tensor) -> None:
    """The guide of `keys`: E[x | z] is x, almost surely."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(40 * x - 20, 1e-3).to_event(2))


def two(x: Tensor) -> None:
    """Two normals far apart; the guide leaves the component to enumeration."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
        mean = (20.0 * k - 10).unsqueeze(-1).expand(*k.shape, x.shape[-1])
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def parent(x: Tensor) -> None:
    """A component k, summed out, and a vector z around its centre."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
        centre = (20.0 * k - 10).unsqueeze(-1).expand(*k.shape, x.shape[-1])
        z = pyro.sample("z", dist.Normal(centre, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def nothing(*args: Tensor) -> None:
    """A guide that draws nothing."""


class Topics(nn.Module):
    """Counts of words with two topics; the words of a topic are given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]]))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2)))
            pyro.sample("x", dist.Poisson(theta @ self.weight.exp()).to_event(1), obs=x)

    def shares(self, theta: Tensor) -> Tensor:
        return theta

    def top_words(self, n: int = 10, vocabulary: Any = None) -> list[list[str]]:
        names = vocabulary or [str(k) for k in range(4)]
        return [[names[k] for k in row.topk(n).indices.tolist()] for row in self.weight]


def mostly_second(x: Tensor) -> None:
    """A guide of `Topics`: a fifth of each document is of the first topic."""
    with pyro.plate("data", len(x)):
        pyro.sample("theta", dist.Delta(torch.tensor([0.2, 0.8]).expand(len(x), 2), event_dim=1))


def by_class(x: Tensor, y: Tensor) -> None:
    """Images that are y / 10 everywhere."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = (y / 10.0).unsqueeze(-1) + 0 * z[..., :1]
        pyro.sample("x", dist.Normal(mean, 1.0).expand([len(x), x.shape[1]]).to_event(1), obs=x)


def of_class(x: Tensor, y: Tensor) -> None:
    """The guide of `by_class`."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
