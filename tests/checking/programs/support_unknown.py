"""The prior does not state its support."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


class Silent(dist.Normal):
    @property
    def support(self):
        raise NotImplementedError


def of(prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


WRONG = dict(model=of(Silent), guide=guide, batch=x)
RIGHT = dict(model=of(dist.Normal), guide=guide, batch=x)
