"""`poutine.scale` anneals the KL inside the logarithm of a many-sample bound."""

import pyro
import pyro.distributions as dist
import torch

x = torch.linspace(-2.0, 2.0, 12)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.7))


def annealed(program, scale):
    def run(x):
        with Scaled(scale):
            program(x)

    return run


class Scaled(pyro.poutine.messenger.Messenger):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, site):
        if not site["is_observed"]:
            site["scale"] = site["scale"] * self.scale


WRONG = dict(model=annealed(model, 0.3), guide=annealed(guide, 0.3), batch=x, elbo="iwae(num_particles=10)")
RIGHT = dict(model=annealed(model, 0.3), guide=annealed(guide, 0.3), batch=x, elbo="stl")
