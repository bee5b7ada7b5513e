"""`poutine.scale` anneals the KL in the model only."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def of(scale):
    def model(x):
        with pyro.plate("data", len(x)):
            with pyro.poutine.scale(scale=scale):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


annealed = pyro.poutine.scale(guide, scale=0.3)


WRONG = dict(model=of(0.3), guide=guide, batch=x)
RIGHT = dict(model=of(0.3), guide=annealed, batch=x)
