"""All rows are one event, so a many-sample bound has a single weight for all of them."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def wrong(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def wrong_guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("z", dist.Normal(loc * x, 1.5).to_event(1))


def right(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def right_guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 1.5))


WRONG = dict(model=wrong, guide=wrong_guide, batch=x, elbo="iwae(num_particles=10)")
RIGHT = dict(model=right, guide=right_guide, batch=x, elbo="iwae(num_particles=10)")
