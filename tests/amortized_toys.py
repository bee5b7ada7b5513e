"""Models of one or several plates, levels and steps, in float64, for the tests of guides that are made from a model."""

import pyro
import pyro.distributions as dist
import torch
from catalogue import columns, number
from pyro import poutine
from torch import Tensor, nn

GROUPS, MEMBERS, STEPS = 6, 4, 5
"""Lengths of the plates and of a sequence in the examples."""


def table(rows: int = GROUPS, members: int = MEMBERS, seed: int = 7) -> Tensor:
    """A number for each member of each group."""
    return columns(rows, members, seed)


def there(rows: int = GROUPS, members: int = MEMBERS) -> Tensor:
    """Which members of the groups are there: some of each group."""
    places = torch.arange(rows * members).reshape(rows, members)
    return (places % 3 > 0) | (torch.arange(members) == 0)


def gauss(loc: Tensor | float) -> dist.Normal:
    """N(loc, 1) in float64."""
    return dist.Normal(loc if isinstance(loc, Tensor) else number(loc), 1.0)


def groups(x, seen=None):
    """A number for each group, and one for each of its members; the data plate outside, at dimension −2."""
    top = pyro.sample("top", gauss(0.0))
    with pyro.plate("groups", x.shape[0], dim=-2):
        mu = pyro.sample("mu", gauss(top))
        with pyro.plate("members", x.shape[1], dim=-1), poutine.mask(mask=True if seen is None else seen):
            z = pyro.sample("z", gauss(mu))
            pyro.sample("x", gauss(z), obs=x)


def groups_inside(x):
    """The same with the groups at dimension −1: x is (members, groups)."""
    with pyro.plate("groups", x.shape[1], dim=-1):
        mu = pyro.sample("mu", gauss(0.0))
        with pyro.plate("members", x.shape[0], dim=-2):
            z = pyro.sample("z", gauss(mu))
            pyro.sample("x", gauss(z), obs=x)


def exchangeable(x, seen=None):
    """A number for each group, and members without latents."""
    with pyro.plate("groups", x.shape[0], dim=-2):
        mu = pyro.sample("mu", gauss(0.0))
        with pyro.plate("members", x.shape[1], dim=-1), poutine.mask(mask=True if seen is None else seen):
            pyro.sample("x", gauss(mu), obs=x)


def obs_masked(x, seen):
    """Members of which some are missing: those are latent."""
    with pyro.plate("groups", x.shape[0], dim=-2):
        mu = pyro.sample("mu", gauss(0.0))
        with pyro.plate("members", x.shape[1], dim=-1):
            pyro.sample("x", gauss(mu), obs=x, obs_mask=seen)


def items(x):
    """Answers: a number for each person, and one for each item, which all persons share."""
    each = pyro.plate("items", x.shape[1], dim=-1)
    with each:
        hardness = pyro.sample("hardness", gauss(0.0))
    with pyro.plate("data", x.shape[0], dim=-2):
        skill = pyro.sample("skill", gauss(0.0))
        with each:
            pyro.sample("x", gauss(skill - hardness), obs=x)


class Pixels(nn.Module):
    """A decoder whose pixels are a plate at dimension −1: alike at z = 0, and with biases that start at 0."""

    def __init__(self, slope: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(columns(1, MEMBERS, seed=3)[0] if slope else torch.ones(MEMBERS).double())
        self.bias = nn.Parameter(torch.zeros(MEMBERS).double())

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-2):
            z = pyro.sample("z", gauss(0.0))
            with pyro.plate("pixels", x.shape[1], dim=-1):
                pyro.sample("x", gauss(z * self.weight + self.bias), obs=x)


def three_levels(x):
    """Districts, schools in them, pupils in those, each with a number."""
    with pyro.plate("districts", x.shape[0], dim=-3):
        a = pyro.sample("a", gauss(0.0))
        with pyro.plate("schools", x.shape[1], dim=-2):
            b = pyro.sample("b", gauss(a))
            with pyro.plate("pupils", x.shape[2], dim=-1):
                c = pyro.sample("c", gauss(b))
                pyro.sample("x", gauss(c), obs=x)


def within(x):
    """Plates at dimensions −2 and −3 inside of a datum that hold no data."""
    with pyro.plate("data", len(x), dim=-1):
        mu = pyro.sample("mu", gauss(0.0))
        with pyro.plate("k", 3, dim=-2):
            u = pyro.sample("u", dist.Gamma(number(2.0), 1.0))
            with pyro.plate("l", 2, dim=-3):
                v = pyro.sample("v", dist.Dirichlet(torch.ones(3).double()))
        total = u.sum(-2, keepdim=True) + v[..., 0].sum((-3, -2), keepdim=True).squeeze(-3)
        pyro.sample("x", gauss(mu + total.squeeze(-2) if mu.dim() < 2 else mu + total), obs=x)


def sequence(x, lengths=None):
    """z_1, z_2, … and x_1, x_2, …: x is (data, steps), with steps beyond the length of a sequence masked."""
    with pyro.plate("data", len(x)):
        z = number(0.0)
        for t in pyro.markov(range(1, x.shape[1] + 1)):
            with poutine.mask(mask=True if lengths is None else t <= lengths):
                z = pyro.sample(f"z_{t}", gauss(z))
                pyro.sample(f"x_{t}", gauss(z), obs=x[:, t - 1])


def time_first(x):
    """Two series, of numbers and of scales; x is (steps, data, features)."""
    with pyro.plate("data", x.shape[1]):
        z = number(0.0)
        for t in range(len(x)):
            z = pyro.sample(f"z_{t}", gauss(z))
            s = pyro.sample(f"s_{t}", dist.Gamma(number(2.0), 1.0))
            wide = z.unsqueeze(-1).expand(*z.shape, x.shape[-1])
            pyro.sample(f"x_{t}", dist.Normal(wide, s.unsqueeze(-1)).to_event(1), obs=x[t])


def started(x):
    """A series with a start before the first step of the data."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z_0", gauss(0.0))
        for t in range(1, x.shape[1] + 1):
            z = pyro.sample(f"z_{t}", gauss(z))
            pyro.sample(f"x_{t}", gauss(z), obs=x[:, t - 1])


def one_sequence(x):
    """A sequence by itself, without a plate."""
    z = number(0.0)
    for t in range(len(x)):
        z = pyro.sample(f"z_{t}", gauss(z))
        pyro.sample(f"x_{t}", gauss(z), obs=x[t])


def regression(x, y):
    """Global coefficients and a number for each datum: x are covariates."""
    b = pyro.sample("b", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", gauss(0.0))
        pyro.sample("y", gauss(z + (x * b.unsqueeze(-2)).sum(-1)), obs=y)


def many(x):
    """Global sites of many supports, and local ones."""
    tau = pyro.sample("tau", dist.HalfCauchy(number(1.0)))
    pyro.sample("L", dist.LKJCholesky(3, number(2.0)))
    with pyro.plate("coefficients", 4):
        pyro.sample("c", gauss(1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Dirichlet(torch.ones(3).double()))
        s = pyro.sample("s", dist.Gamma(number(2.0), 1.0))
        pyro.sample("x", dist.Normal(z * (tau * s).unsqueeze(-1), 1.0).to_event(1), obs=x)


def three_sites(x):
    """A real number, a positive one and a vector of a plate, for all data; and the same for each datum."""
    a = pyro.sample("a", dist.Normal(number(1.0), 2.0))
    b = pyro.sample("b", dist.Gamma(number(2.0), 1.0))
    with pyro.plate("three", 3):
        c = pyro.sample("c", dist.Normal(number(0.0), 1.0))
    with pyro.plate("data", len(x)):
        d = pyro.sample("d", dist.Normal(a, b))
        e = pyro.sample("e", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(d + e.sum(-1) + c.sum(), 1.0), obs=x)


def perturbed(guide: nn.Module) -> nn.Module:
    """The guide away from its start, where all numbers matter."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return guide


def collider(x):
    """w and s have a child in common, u is apart, and z depends on w."""
    w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
    u = pyro.sample("u", dist.Normal(number(0.0), 1.0))
    s = pyro.sample("s", dist.LogNormal(number(0.0), 1.0))
    pyro.sample("y", dist.Normal(u, 1.0), obs=number(0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, s), obs=x)


def walk(x):
    """z_0, z_1, … and x_0, x_1, …: a chain that shrinks, without masks."""
    z = number(0.0)
    with pyro.plate("data", len(x)):
        for t in range(x.shape[1]):
            z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])
