"""The likelihood of counts is a density, whose scale can shrink without limit."""

import pyro
import pyro.distributions as dist
import torch

x = torch.tensor([0.0, 2.0, 0.0, 1.0, 3.0, 0.0, 1.0, 0.0, 2.0, 5.0] * 4)


def wrong(x):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def right(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Poisson(z.exp()), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


WRONG = dict(model=wrong, guide=guide, batch=x)
RIGHT = dict(model=right, guide=guide, batch=x)
