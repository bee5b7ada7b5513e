"""All data share a latent, and the plate counts a minibatch as all of them."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def wrong(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def right(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 600, subsample=torch.arange(len(x))):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def guide(x):
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.3))


WRONG = dict(model=wrong, guide=guide, batch=x, num_data=600)
RIGHT = dict(model=right, guide=guide, batch=x, num_data=600)
