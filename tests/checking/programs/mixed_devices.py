"""A parameter is on another device than the data."""

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


def of(encoder):
    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x.unsqueeze(-1)).squeeze(-1), 0.7))

    return guide


elsewhere = nn.Linear(1, 1, device="meta")


WRONG = dict(model=model, guide=of(elsewhere), batch=x)
RIGHT = dict(model=model, guide=of(encoder), batch=x)
