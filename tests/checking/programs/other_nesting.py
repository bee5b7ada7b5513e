"""The estimator object was made for a pair with fewer nested plates."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO

x = torch.linspace(-2.0, 2.0, 36).reshape(12, 3)


def model(x):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("features", 3, dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(loc * x[:, :1], 0.7))


WRONG = dict(model=model, guide=guide, batch=x, elbo=TraceEnum_ELBO(max_plate_nesting=1))
RIGHT = dict(model=model, guide=guide, batch=x, elbo=TraceEnum_ELBO(max_plate_nesting=2))
