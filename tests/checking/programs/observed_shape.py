"""The likelihood is narrower than the data, and is broadcast over them."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 36).reshape(12, 3)


def of(width):
    def model(x):
        weights = pyro.param("weights", torch.ones(width))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * weights, 1.0).to_event(1), obs=x)

    return model


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x.sum(-1), 0.7))


WRONG = dict(model=of(1), guide=guide, batch=x)
RIGHT = dict(model=of(3), guide=guide, batch=x)
