"""A latent site has another dimension in the guide than in the model."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def of(dimension):
    def guide(x):
        loc = pyro.param("loc", torch.zeros(dimension))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc * x.unsqueeze(-1), 0.7).to_event(1))

    return guide


WRONG = dict(model=model, guide=of(1), batch=x)
RIGHT = dict(model=model, guide=of(2), batch=x)
