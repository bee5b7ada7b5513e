"""The point guide: a mode, and no density."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from binding_toys import bind_one
from catalogue import number, scalars
from pyro import poutine

from pyro_vi.fitting.svi import fit
from pyro_vi.guides.point import Point


def model(x):
    r = pyro.sample("r", dist.Gamma(number(2.0), 1.0))
    with pyro.plate("data", 50, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), r.sqrt()).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


@pytest.mark.slow
def test_a_point_is_the_mode_of_the_density_on_the_support():
    """λ ~ Gamma(3, 2), n_i | λ ~ Poisson(λ): the mode of Gamma(3 + Σ n, 2 + N) is (2 + Σ n)/(2 + N)."""
    counts = torch.tensor([1.0, 4.0, 2.0, 3.0]).double()

    def poisson(n):
        rate = pyro.sample("rate", dist.Gamma(number(3.0), 2.0))
        with pyro.plate("data", len(n)):
            pyro.sample("n", dist.Poisson(rate), obs=n)

    run = fit(poisson, "point", counts, elbo="trace", steps=400, lr=0.05, compile=False, progress=False)
    assert float(run.guide(counts)["rate"].detach()) == pytest.approx((2 + 10) / (2 + 4), abs=1e-3)


def test_a_point_starts_at_the_centre_of_the_prior_and_has_no_density():
    x = scalars()
    guide = Point(bind_one(model, (x,)), (x,), hidden=(4,))
    trace = poutine.trace(guide).get_trace(x)
    assert type(trace.nodes["r"]["fn"]).__name__ == "Delta"
    assert trace.nodes["z"]["fn"].event_shape == (2,)
