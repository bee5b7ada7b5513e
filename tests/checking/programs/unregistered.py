"""The guide uses a network that is not registered."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

x = torch.linspace(-2.0, 2.0, 12)
encoder = nn.Linear(1, 1)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def wrong(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(encoder(x.unsqueeze(-1)).squeeze(-1), 0.7))


def right(x):
    pyro.module("encoder", encoder)
    wrong(x)


WRONG = dict(model=model, guide=wrong, batch=x)
RIGHT = dict(model=model, guide=right, batch=x)
