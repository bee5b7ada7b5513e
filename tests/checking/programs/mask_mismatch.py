"""A latent is masked in the model, but not in the guide."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)
seen = x.abs() > 0.5


def model(x, seen):
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=seen):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def wrong(x, seen):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


def right(x, seen):
    with pyro.poutine.mask(mask=seen):
        wrong(x, seen)


WRONG = dict(model=model, guide=wrong, batch=(x, seen))
RIGHT = dict(model=model, guide=right, batch=(x, seen))
