"""A program raises an error on the batch."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 36).reshape(12, 3)


def of(column):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=x[:, column])

    return model


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x[:, 0], 0.7))


WRONG = dict(model=of(3), guide=guide, batch=x)
RIGHT = dict(model=of(2), guide=guide, batch=x)
