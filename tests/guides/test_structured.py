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

import pyro_vi
from pyro_vi.elbo.decomposition import terms
from pyro_vi.guides.structured import Structured
from pyro_vi.models.deep_markov import Path
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


@pytest.mark.slow
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


def autoregressive(x):
    """z_t | z_{t−1} ~ N(.9 z_{t−1}, .3²), x_t | z_t ~ N(z_t, .5²): the whole path is one site."""
    chain = Path(number(0.0).expand(1), lambda z: (0.9 * z, torch.full_like(z, 0.3)), (len(x), x.shape[1]))
    with pyro.plate("data", len(x), dim=-2), pyro.plate("time", x.shape[1], dim=-1):
        z = pyro.sample("z", chain)
        pyro.sample("x", dist.Normal(z[..., 0], 0.5), obs=x)


@pytest.mark.slow
def test_a_path_in_one_site_reaches_the_exact_evidence():
    """The steps of the posterior depend on each other; without it, the bound of these data is below by at least .05 a step."""
    steps = torch.arange(6)
    first = torch.minimum(steps[:, None], steps[None]) + 1
    apart = (steps[:, None] - steps[None]).abs()
    cov = 0.09 * 0.9**apart * (1 - 0.81**first) / (1 - 0.81)
    law = torch.distributions.MultivariateNormal(torch.zeros(6).double(), cov.double() + 0.25 * torch.eye(6).double())
    torch.manual_seed(0)
    x = law.sample((200,))
    exact, bounds = float(law.log_prob(x).mean()), {}
    for guide in ("structured", "diag_normal"):
        run = pyro_vi.fit(
            *(autoregressive, f"{guide}(hidden=(16,))", pyro_vi.load(x, heldout=0.0)),
            **{"elbo": "stl", "epochs": 60, "batch_size": 100, "lr": 0.01, "progress": False, "compile": False},
        )
        bounds[guide] = terms(run.model, run.guide, (x,), kl="sampled", seed=0).elbo.mean().item()
    assert exact - bounds["structured"] < 0.06 and exact - bounds["diag_normal"] > 0.3
