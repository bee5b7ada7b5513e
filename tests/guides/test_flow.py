"""The flow guide: the density of its draws."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from amortized_toys import perturbed, three_sites
from binding_toys import bind_one
from catalogue import number, scalars
from pyro import poutine

from pyro_vi.elbo import facts_of, measure
from pyro_vi.fitting.svi import fit
from pyro_vi.guides.flow import Flow
from pyro_vi.programs.isolation import isolated


@pytest.mark.parametrize("kind", ["spline", "affine", "coupling"])
def test_the_density_of_a_flow_is_that_of_its_draws(kind):
    """log q of a draw, kept from drawing it, is what the inverse of the flow gives; and E_q[p / q] = 1 for a normal p."""
    x = scalars()
    guide = perturbed(Flow(bind_one(three_sites, (x,)), (x,), hidden=(4,), flow_hidden=(8,), kind=kind, init_scale=1.5))
    with isolated(1), torch.no_grad():
        trace = poutine.trace(guide).get_trace(x)
        kept = {s: trace.nodes[s]["fn"].log_prob(trace.nodes[s]["value"]) for s in "abcde"}
        anew = poutine.trace(poutine.condition(guide, {s: trace.nodes[s]["value"].clone() for s in "abcde"})).get_trace(
            x
        )
        for s in "abcde":
            found = anew.nodes[s]["fn"].log_prob(anew.nodes[s]["value"])
            torch.testing.assert_close(found, kept[s], rtol=1e-6, atol=1e-6)
        law = trace.nodes["e"]["fn"]
        draws = law.sample((4000,))
        weight = (dist.Normal(number(0.0), 0.5).log_prob(draws).sum(-1) - law.log_prob(draws)).exp()
    error = weight.std(0) / math.sqrt(len(draws))
    assert bool(((weight.mean(0) - 1).abs() < 4 * error).all())


def banana():
    """x ~ N(0, 1), y ~ N(0, 2), and y − x² is observed as 0 with scale .3."""
    x, y = pyro.sample("x", dist.Normal(number(0.0), 1.0)), pyro.sample("y", dist.Normal(number(0.0), 2.0))
    pyro.sample("distance", dist.Normal(y - x.square(), 0.3), obs=number(0.0))


@pytest.mark.slow
def test_a_flow_bends_where_a_full_normal_cannot():
    """log Z of the banana by quadrature; the flow is nearer by more than four standard errors."""
    axis = torch.linspace(-12, 12, 1201).double()
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    density = dist.Normal(number(0.0), 1.0).log_prob(x) + dist.Normal(number(0.0), 2.0).log_prob(y)
    density = density + dist.Normal(y - x.square(), 0.3).log_prob(number(0.0))
    truth = float(density.flatten().logsumexp(0)) + 2 * math.log(float(axis[1] - axis[0]))
    found = {}
    for guide in ("full_normal", "flow"):
        run = fit(banana, guide, None, elbo="stl", steps=600, lr=0.01, compile=False, progress=False)
        draws = measure(run.pair, (), facts_of(run.pair, ()), draws=2000, seed=1).of_draws
        assert draws is not None
        found[guide] = truth - float(draws.mean()), float(draws.std()) / math.sqrt(len(draws))
    error = math.hypot(found["flow"][1], found["full_normal"][1])
    assert found["full_normal"][0] - found["flow"][0] > 4 * error
    assert found["flow"][0] > -4 * found["flow"][1]
