"""Pyro's `RenyiELBO` puts the scale of a minibatch (N / B) inside its logarithm."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    with pyro.plate("data", 60, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", 60, subsample=torch.arange(len(x))):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


WRONG = dict(model=model, guide=guide, batch=x, elbo=RenyiELBO(alpha=0.0, num_particles=5), num_data=60)
RIGHT = dict(model=model, guide=guide, batch=x, elbo="iwae(num_particles=5)", num_data=60)
