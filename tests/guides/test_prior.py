"""The prior guide: no KL, and nothing learned."""

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
from pyro_vi.guides.prior import Prior
from pyro_vi.programs.isolation import isolated


def model(x):
    r = pyro.sample("r", dist.Gamma(number(2.0), 1.0))
    with pyro.plate("data", 50, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), r.sqrt()).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


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
