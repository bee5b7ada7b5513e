"""The loss is finite, but its gradient is not."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def of(least):
    def model(x):
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0 + (slope * z.abs() + least).sqrt()), obs=x)

    return model


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


WRONG = dict(model=of(0.0), guide=guide, batch=x)
RIGHT = dict(model=of(1.0), guide=guide, batch=x)
