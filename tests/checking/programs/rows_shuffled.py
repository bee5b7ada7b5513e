"""The order of the rows matters, but minibatches shuffle them."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def wrong(x):
    phi = pyro.param("phi", torch.tensor(0.5))
    before = torch.cat([torch.zeros(1), x[:-1]])
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + phi * before, 1.0), obs=x)


def right(x):
    phi = pyro.param("phi", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + phi, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


WRONG = dict(model=wrong, guide=guide, batch=x, num_data=120)
RIGHT = dict(model=right, guide=guide, batch=x, num_data=120)
