"""The decoder sets a scale without a lower bound, so the ELBO has no maximum."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

x = torch.linspace(-2.0, 2.0, 36).reshape(12, 3)


class Model(nn.Module):
    def __init__(self, floor):
        super().__init__()
        self.decoder, self.floor = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 6)), floor

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            loc, raw = self.decoder(z).chunk(2, -1)
            pyro.sample("x", dist.Normal(loc, self.floor + raw.exp()).to_event(1), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x[:, :1], 0.7).to_event(1))


WRONG = dict(model=Model(0.0), guide=guide, batch=x)
RIGHT = dict(model=Model(0.01), guide=guide, batch=x)
