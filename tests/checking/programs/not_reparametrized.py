"""A latent is discrete, but the estimator differentiates through its draws."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def guide(x):
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Bernoulli(logits=slope * x))


WRONG = dict(model=model, guide=guide, batch=x, elbo="stl")
RIGHT = dict(model=model, guide=guide, batch=x, elbo="score")
