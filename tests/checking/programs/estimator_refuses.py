"""A many-sample bound gets a minibatch, but all data share a latent."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 60, subsample=torch.arange(len(x))):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def guide(x):
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.3))


WRONG = dict(model=model, guide=guide, batch=x, elbo="iwae(num_particles=5)", num_data=60)
RIGHT = dict(model=model, guide=guide, batch=x, elbo="trace", num_data=60)
