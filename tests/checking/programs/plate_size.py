"""The size of the data plate differs from the number of data."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def of(size):
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    return model


def guide(x):
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.3))


WRONG = dict(model=of(5000), guide=guide, batch=x, num_data=180)
RIGHT = dict(model=of(180), guide=guide, batch=x, num_data=180)
