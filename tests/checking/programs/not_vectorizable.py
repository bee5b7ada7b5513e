"""All draws are taken in one run, but the model is not written for that."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def wrong(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z - z.mean(0), 1.0), obs=x)


def right(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z - z.mean(-1, keepdim=True), 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


WRONG = dict(model=wrong, guide=guide, batch=x, elbo="trace(num_particles=2, vectorize_particles=True)")
RIGHT = dict(model=right, guide=guide, batch=x, elbo="trace(num_particles=2, vectorize_particles=True)")
