"""The guides `student`, `point` and `prior`, by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from binding_toys import bind_one
from catalogue import number, scalars
from pyro import poutine
from torch.distributions import kl_divergence

from pyro_vi.elbo.decomposition import terms
from pyro_vi.errors import InputError
from pyro_vi.fitting.svi import fit
from pyro_vi.guides.point import Point
from pyro_vi.guides.prior import Prior
from pyro_vi.guides.student import Student
from pyro_vi.programs.isolation import isolated


def model(x):
    r = pyro.sample("r", dist.Gamma(number(2.0), 1.0))
    with pyro.plate("data", 50, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), r.sqrt()).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def test_a_student_has_the_density_of_its_numbers():
    x = scalars()
    bound = bind_one(model, (x,))
    guide = Student(bound, (x,), hidden=(4,))
    with isolated(1):
        trace = poutine.trace(guide).get_trace(x)
    call = guide.frame.call((x,), {})
    numbers = dict(guide.numbers(call))["z"]
    law = dist.StudentT(1 + numbers["log_df"].exp(), numbers["loc"], numbers["log_scale"].exp()).to_event(1)
    start, spread = guide.q["z"].start, guide.q["z"].spread
    z = trace.nodes["z"]["value"]
    expected = law.log_prob((z - start) / spread) - spread.log().sum()
    torch.testing.assert_close(trace.nodes["z"]["fn"].log_prob(z), expected)
    assert terms(bound, guide, x, seed=1).sources["z"].kind == "analytic"


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


def test_under_the_prior_the_kl_is_zero_and_the_model_is_fitted():
    """q(z) = p(z) for each draw, also where one prior depends on the draw of another site."""
    x = scalars()
    bound = bind_one(model, (x,))
    guide = Prior(bound, (x,))
    with isolated(1):
        q = poutine.trace(guide).get_trace(x)
        p = poutine.trace(poutine.replay(bound, q)).get_trace(x)
    assert [name for name, node in q.nodes.items() if node["type"] == "sample"] == ["r", "data", "z"]
    for site in ("r", "z"):
        assert float(kl_divergence(q.nodes[site]["fn"], p.nodes[site]["fn"]).abs().sum()) == 0.0
    found = terms(bound, guide, x, seed=1)
    assert float(sum(found.sites[s].kl.sum() for s in ("r", "z"))) == 0.0


def test_the_prior_does_not_draw_after_a_site_that_is_summed_out():
    def marked(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(number(0.3)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(k, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(InputError, match="site 'z' after site 'k'"):
        Prior(bind_one(marked, (scalars(),)), (scalars(),))
