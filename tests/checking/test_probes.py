"""The rules that run a pair again, on more forms of each fault, and on programs that only look like it."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_vi import check

Program = Callable[..., None]
X = torch.linspace(-2.0, 2.0, 12)
ROWS = torch.linspace(-2.0, 2.0, 36).reshape(12, 3)
CONSTANT = ROWS * torch.tensor([1.0, 0.0, 1.0])


def seen(change: Callable[[Tensor], Tensor] = lambda z: z) -> Program:
    """A model that sees its latent through a function."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(change(z), 1.0), obs=x)

    return model


class Encoder(nn.Module):
    """A guide with a network, read in some way."""

    def __init__(
        self,
        read: Callable[[nn.Module, Tensor], Tensor] = lambda net, x: net(x),
        scale: Callable[[Tensor], Tensor] = torch.exp,
        deep: bool = True,
    ) -> None:
        super().__init__()
        line = nn.Linear(1, 2)
        nn.init.constant_(line.weight, 0.5)
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2)) if deep else line
        self.read, self.scale = read, scale

    def forward(self, x: Tensor) -> None:
        loc, raw = self.read(self.net, x.unsqueeze(-1)).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, self.scale(raw)))


def slope(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.1)) * x, 0.7))


def line(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.1)) * x[:, :2], 0.7).to_event(1))


def factors(scale: Tensor) -> Program:
    def model(x: Tensor) -> None:
        noise = pyro.param("noise", scale, constraint=constraints.positive)
        weights = pyro.param("weights", torch.tensor([[1.0, 0.5, -1.0], [0.0, 0.3, 1.0]]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights, noise.expand(x.shape)).to_event(1), obs=x)

    return model


def mixture(floor: float) -> Program:
    @config_enumerate
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive) + floor
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(loc[k], scale[k]), obs=x)

    return model


def drawing(size: int | None) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=size) as rows:
            pyro.sample("z", dist.Normal(0.1 * x[rows], 0.7))

    return guide


def noisy(x: Tensor) -> None:
    """A model that draws besides its sites, as some of Pyro's do."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + 0.1 * torch.randn(len(x)), 1.0), obs=x)


def by_chance(x: Tensor) -> None:
    """A guide that uses one of two parameters."""
    one, two = pyro.param("one", torch.tensor(0.1)), pyro.param("two", torch.tensor(0.2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((one if torch.rand(()) < 0.5 else two) * x, 0.7))


def nothing(x: Tensor) -> None:
    pass


def ahead(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).detach()


MANY = {"num_data": 120}

# Model, guide, batch, options, and the code of the one finding.
WRONG: dict[str, tuple[Any, Any, Tensor, dict[str, Any], str]] = {
    "encoder of a mean": (seen(), Encoder(lambda net, x: net(x.mean(0).expand(x.shape))), X, {}, "ignores-data"),
    "mean of an encoder": (
        *(seen(), Encoder(lambda net, x: net(x).mean(0).expand(len(x), 2)), X, {}),
        "ignores-data",
    ),
    "encoder times 0": (seen(), Encoder(lambda net, x: 0 * net(x)), X, {}, "ignores-data"),
    "encoder without a gradient": (seen(), Encoder(ahead), X, {}, "idle-parameter"),
    "threshold": (seen(lambda z: (z > 0).float()), slope, X, {}, "no-gradient"),
    "rounded": (seen(torch.round), slope, X, {}, "no-gradient"),
    "no gradient in the model": (seen(lambda z: z.detach() * 2), slope, X, {"elbo": "mean_field"}, "no-gradient"),
    "scale that underflows": (seen(), Encoder(scale=softplus, deep=False), -1000 + 0 * X + X, {}, "saturated"),
    "scale that overflows": (seen(), Encoder(deep=False), 1000 + X, {}, "saturated"),
    "probability at 1": (seen(), Encoder(scale=torch.sigmoid, deep=False), 1000 + X, {}, "saturated"),
    "loc at the end of a tanh": (
        *(seen(), Encoder(lambda net, x: 3 * net(x).tanh() * torch.tensor([1.0, 0.1]), deep=False), 100 * X, {}),
        "saturated",
    ),
    "a scale for each feature, one of them constant": (factors(torch.ones(3)), line, CONSTANT, {}, "unbounded"),
    "a scale for each component": (mixture(0.0), nothing, X, {"elbo": "enum"}, "unbounded"),
    "guide that draws rows by itself": (seen(), drawing(6), X, {}, "observed-shape"),
    "rows with parameters": (
        seen(),
        lambda x: pyro.plate("data", len(x))(
            lambda: pyro.sample("z", dist.Normal(pyro.param("loc", torch.linspace(0, 1, 12)), 0.7))
        )(),
        X,
        MANY,
        "rows-shuffled",
    ),
}
RIGHT: dict[str, tuple[Any, Any, Tensor, dict[str, Any]]] = {
    "encoder": (seen(), Encoder(), X, MANY),
    "encoder of what has no gradient": (seen(), Encoder(lambda net, x: net(x.detach())), X, {}),
    "threshold under score functions": (seen(lambda z: (z > 0).float()), slope, X, {"elbo": "score"}),
    "latent that the data do not see": (seen(lambda z: 0 * z), slope, X, {}),
    "softplus": (seen(), Encoder(scale=softplus), X, {}),
    "a scale for each feature": (factors(torch.ones(3)), line, ROWS, {}),
    "one scale, a constant feature": (factors(torch.tensor(1.0)), line, CONSTANT, {}),
    "a floor for each component": (mixture(0.1), nothing, X, {"elbo": "enum"}),
    "guide that draws all rows": (seen(), drawing(None), X, MANY),
    "noise besides the sites": (noisy, slope, X, MANY),
    "parameters by chance": (seen(), by_chance, X, {}),
    "rows with parameters, in order": (*WRONG["rows with parameters"][:3], {**MANY, "shuffle": False}),
    "rows with parameters, at once": (*WRONG["rows with parameters"][:3], {}),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_finding(case):
    wrong, guide, x, options, code = WRONG[case]
    (finding,) = check(wrong, guide, x, **options)
    assert finding.code == code


@pytest.mark.parametrize("case", RIGHT)
def test_no_finding(case):
    right, guide, x, options = RIGHT[case]
    assert check(right, guide, x, **options) == []
