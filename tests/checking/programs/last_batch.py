"""A program cannot take the number of rows of the last batch of an epoch."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def of(few):
    def model(x):
        spread = pyro.param("spread", torch.tensor(1.0)) * x.std(unbiased=not few) + 0.5
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, spread), obs=x)

    return model


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


WRONG = dict(model=of(few=False), guide=guide, batch=x, num_data=25)
RIGHT = dict(model=of(few=True), guide=guide, batch=x, num_data=25)
