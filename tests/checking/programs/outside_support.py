"""The data lie outside of the likelihood's support."""

import pyro
import pyro.distributions as dist
import torch

grey = torch.linspace(0.0, 1.0, 12)
binary = grey.round()


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


WRONG = dict(model=model, guide=guide, batch=grey)
RIGHT = dict(model=model, guide=guide, batch=binary)
