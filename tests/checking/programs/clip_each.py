"""`clip_norm` of Pyro's optimizers limits each parameter by itself."""

import pyro
import pyro.distributions as dist
import torch
from pyro.optim import Adam

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc, shift = pyro.param("loc", torch.tensor(0.0)), pyro.param("shift", torch.tensor(3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x + shift, 0.7))


clipped = Adam({"lr": 0.01}, {"clip_norm": 1.0})


WRONG = dict(model=model, guide=guide, batch=x, optimizer=clipped)
RIGHT = dict(model=model, guide=guide, batch=x, optimizer=Adam({"lr": 0.01}))
