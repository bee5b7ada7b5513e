"""A program raises an error on the batch."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 36).reshape(12, 3)


def of(width):
    def model(x):
        weights = pyro.param("weights", torch.ones(2, width))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights, 1.0).to_event(1), obs=x)

    return model


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x[:, :2], 0.7).to_event(1))


WRONG = dict(model=of(4), guide=guide, batch=x)
RIGHT = dict(model=of(3), guide=guide, batch=x)
