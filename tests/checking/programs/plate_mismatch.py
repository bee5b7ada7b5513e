"""A latent of each datum is in one plate in the model, and in another plate in the guide."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def of(name):
    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate(name, len(x)):
            pyro.sample("z", dist.Normal(loc * x, 0.7))

    return guide


WRONG = dict(model=model, guide=of("rows"), batch=x)
RIGHT = dict(model=model, guide=of("data"), batch=x)
