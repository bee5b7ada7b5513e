"""The guide reverses a dependence between latents of the model, so the closed form of the KL is wrong."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


def wrong(x):
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Normal(slope * x, 1.0))
        pyro.sample("a", dist.Normal(b, 1.0))


def right(x):
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(slope * x, 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))


WRONG = dict(model=model, guide=wrong, batch=x, elbo="mean_field")
RIGHT = dict(model=model, guide=right, batch=x, elbo="mean_field")
