"""An encoder gives every datum the same posterior."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Guide(nn.Module):
    def __init__(self, summary):
        super().__init__()
        self.summary = summary
        self.encoder = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x):
        loc, log_scale = self.encoder(self.summary(x).unsqueeze(-1)).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


wrong = Guide(lambda x: torch.zeros_like(x))
right = Guide(lambda x: x)


WRONG = dict(model=model, guide=wrong, batch=x)
RIGHT = dict(model=model, guide=right, batch=x)
