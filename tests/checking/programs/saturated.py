"""On these data, the encoder's output is at a bound of its constraint."""

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
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(1, 2)
        nn.init.constant_(self.encoder.weight, 0.5)

    def forward(self, x):
        loc, raw = self.encoder(x.unsqueeze(-1)).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.clamp(-3.0, 3.0).exp()))


guide = Guide()
in_cents = 100 * x


WRONG = dict(model=model, guide=guide, batch=in_cents)
RIGHT = dict(model=model, guide=guide, batch=x)
