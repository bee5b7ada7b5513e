"""The structured guide: sites depend on their parents, as in posteriors that only it represents."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from amortized_toys import collider, walk
from binding_toys import bind_one
from catalogue import columns, number, scalars
from pyro import poutine

from pyro_vi.elbo.decomposition import terms
from pyro_vi.guides.structured import Structured
from pyro_vi.programs.isolation import isolated


def funnel():
    v = pyro.sample("v", dist.Normal(number(0.0), 3.0))
    with pyro.plate("nine", 9):
        pyro.sample("x", dist.Normal(number(0.0), (v / 2).exp()))


def test_a_sequence_shares_its_networks_and_takes_any_length():
    x = columns(8, 5)
    guide = Structured(bind_one(walk, (x,)), (x,), hidden=(4,))
    assert set(guide.q) == {"z"}
    with isolated(1):
        for steps in (2, 5, 9):
            assert list(guide(columns(6, steps))) == [f"z_{t}" for t in range(steps)]


def test_a_site_depends_on_its_parents_in_every_row():
    x = scalars()
    guide = Structured(bind_one(collider, (x,)), (x,), hidden=(4,))
    laws = []
    for w in (0.0, 3.0):
        fixed = poutine.condition(guide, {"w": number(w), "u": number(0.0), "s": number(1.0)})
        laws.append(poutine.trace(fixed).get_trace(x).nodes["z"]["fn"])
    assert not bool((laws[0].loc == laws[1].loc).any())


def test_it_holds_the_exact_posterior_of_a_funnel():
    """log Z = 0 of v ~ N(0, 9), x_i | v ~ N(0, e^v) without data; the best mean-field bound is −1.862847."""
    guide = Structured(bind_one(funnel, ()), (), start="prior")
    v, x = guide.q["v"], guide.q["x"]
    with torch.no_grad():
        v.loc.zero_(), v.log_scale.copy_((3.0 / v.spread).log())
        x.loc.zero_(), x.log_scale.copy_(-x.spread.log())
        x.extra.weight.zero_()
        x.extra.weight[9:] = 1.5  # log sd(x) = v / 2, and v is in units of 3
    model = bind_one(funnel, ())
    with isolated(0):
        draws = [terms(model, guide, None, kl="sampled", seed=k).elbo.sum().item() for k in range(5)]
    assert draws == pytest.approx([0.0] * 5, abs=1e-9)
    assert math.isclose(float(v.spread), 3.0)
