"""The batch has values that are NaN."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)
with_gaps = x.where(x < 1.0, torch.nan)


def right(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.poutine.mask(mask=x.isfinite()):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.nan_to_num())


def wrong(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x.nan_to_num(), 0.7))


WRONG = dict(model=wrong, guide=guide, batch=with_gaps)
RIGHT = dict(model=right, guide=guide, batch=with_gaps)
