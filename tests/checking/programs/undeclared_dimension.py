"""`to_event` is missing, and the data have as many columns as the batch has rows."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 144).reshape(12, 12)


def of(events):
    def model(x):
        weights = pyro.param("weights", torch.ones(12))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * weights, 1.0).to_event(events), obs=x)

    return model


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x[:, :1], 0.7).to_event(1))


WRONG = dict(model=of(0), guide=guide, batch=x)
RIGHT = dict(model=of(1), guide=guide, batch=x)
