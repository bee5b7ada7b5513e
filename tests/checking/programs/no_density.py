"""The guide has a factor, so its log q is not a log-density."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def right(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


def wrong(x):
    right(x)
    pyro.factor("penalty", torch.tensor(-3.0), has_rsample=True)


WRONG = dict(model=model, guide=wrong, batch=x)
RIGHT = dict(model=model, guide=right, batch=x)
