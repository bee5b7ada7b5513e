"""Pyro's parameter store holds values of an earlier fit."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


def after_a_fit():
    pyro.param("loc", torch.tensor(0.0))
    SVI(model, guide, Adam({"lr": 0.1}), Trace_ELBO()).step(x)


BEFORE = after_a_fit


WRONG = dict(model=model, guide=guide, batch=x)
RIGHT = dict(model=model, guide=guide, batch=x)
