"""A KL is sampled although a closed form was asked for."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def of(prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


WRONG = dict(model=of(dist.StudentT(3.0, 0.0, 1.0)), guide=guide, batch=x, elbo="mean_field")
RIGHT = dict(model=of(dist.Normal(0.0, 1.0)), guide=guide, batch=x, elbo="mean_field")
