"""The guide draws where the prior has no density."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(0.5, 2.0, 12)


def model(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Exponential(rate), obs=x)


def wrong(x):
    loc = pyro.param("loc", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.Normal(loc * x, 0.7))


def right(x):
    loc = pyro.param("loc", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.LogNormal(loc * x, 0.7))


WRONG = dict(model=model, guide=wrong, batch=x)
RIGHT = dict(model=model, guide=right, batch=x)
