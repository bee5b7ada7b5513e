"""A program branches on its data, but a traced estimator keeps the branch of the first batch."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import JitTrace_ELBO

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    shift = pyro.param("shift", torch.tensor(1.0))
    side = 1.0 if x[0] > 0 else -1.0
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + shift * side, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


WRONG = dict(model=model, guide=guide, batch=x, elbo=JitTrace_ELBO())
RIGHT = dict(model=model, guide=guide, batch=x, elbo="trace")
