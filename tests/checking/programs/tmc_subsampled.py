"""Pyro's tensor Monte Carlo puts the scale of a minibatch (N / B) inside its logarithm."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    with pyro.plate("data", 60, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", 60, subsample=torch.arange(len(x))):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


WRONG = dict(model=model, guide=guide, batch=x, elbo="tmc", num_data=60)
RIGHT = dict(model=model, guide=guide, batch=x, elbo="enum", num_data=60)
