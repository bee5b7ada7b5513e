"""A program has batch norm, but the last batch of an epoch has one row."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

x = torch.linspace(-2.0, 2.0, 12)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.decoder(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)


model = Model()


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


WRONG = dict(model=model, guide=guide, batch=x, num_data=25)
RIGHT = dict(model=model, guide=guide, batch=x, num_data=26)
