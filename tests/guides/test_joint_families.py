"""Guides with one density for several sites: the chain over the sites has the joint density, computed here by hand."""

import math

import pyro.distributions as dist
import pytest
import torch
from amortized_toys import perturbed, three_sites
from binding_toys import bind_one
from catalogue import scalars
from pyro import poutine
from torch.distributions import biject_to, constraints, kl_divergence

from pyro_vi.amortized import lower_triangle
from pyro_vi.elbo.decomposition import terms
from pyro_vi.guides.flow import Flow
from pyro_vi.guides.full_normal import FullNormal
from pyro_vi.guides.low_rank_normal import LowRankNormal
from pyro_vi.guides.mixture import Mixture
from pyro_vi.programs.isolation import isolated

FAMILIES = {"full_normal": FullNormal, "low_rank_normal": LowRankNormal, "mixture": Mixture, "flow": Flow}


def joint_by_hand(guide, block, numbers, v):
    """log q(v) of the vector of all sites of a block."""
    if isinstance(guide, LowRankNormal):
        scale = numbers["log_scale"].exp()
        law = dist.LowRankMultivariateNormal(numbers["loc"], scale.unsqueeze(-1) * numbers["factor"], scale.square())
        return law.log_prob(v)
    if isinstance(guide, Mixture):
        each = dist.Normal(numbers["loc"], numbers["log_scale"].exp()).log_prob(v.unsqueeze(-2)).sum(-1)
        return (numbers["logits"].log_softmax(-1) + each).logsumexp(-1)
    tril = lower_triangle(numbers["log_scale"], numbers["lower"])
    return dist.MultivariateNormal(numbers["loc"], scale_tril=tril).log_prob(v)


@pytest.mark.parametrize("name", ["full_normal", "low_rank_normal", "mixture"])
def test_the_densities_of_the_sites_multiply_to_the_joint_density(name):
    x = scalars()
    guide = perturbed(FAMILIES[name](bind_one(three_sites, (x,)), (x,), hidden=(4,)))
    with isolated(1):
        trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    call = guide.frame.call((x,), {})
    numbers = dict(guide.numbers(call))
    bijection = biject_to(constraints.positive)
    values = {site: trace.nodes[site]["value"] for site in "abcde"}
    u = {**values, "b": bijection.inv(values["b"])}
    for sites, rows in (("abc", ()), ("de", (len(x),))):
        block = guide.block(sites[0])
        vector = torch.cat([u[s].reshape(*rows, -1) for s in sites], -1)
        expected = joint_by_hand(guide, block, numbers[sites[0]], (vector - block.start) / block.spread)
        expected = expected - block.spread.log().sum()
        if "b" in sites:
            expected = expected - bijection.log_abs_det_jacobian(u["b"], values["b"])
        found = sum(trace.nodes[s]["log_prob"].reshape(*rows, -1).sum(-1) for s in sites)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_gets_a_gradient(name):
    x = scalars()
    guide = FAMILIES[name](bind_one(three_sites, (x,)), (x,), hidden=(4,))
    model = bind_one(three_sites, (x,))
    terms(model, guide, x, kl="sampled", seed=1).loss.backward()
    assert all(bool((p.grad != 0).any()) for p in guide.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full_normal", "low_rank_normal"])
def test_normals_over_several_sites_have_closed_form_kls(name):
    """The KL of a site given the draws before it; its mean is that of log q − log p (4 standard errors)."""
    x = scalars()
    model = bind_one(three_sites, (x,))
    guide = perturbed(FAMILIES[name](model, (x,), hidden=(4,)))
    sources = terms(model, guide, x, seed=0).sources
    assert {site: sources[site].kind for site in "abde"} == dict.fromkeys("abde", "analytic")
    differences = []
    with isolated(1), torch.no_grad():
        for _ in range(100):
            q = poutine.trace(guide).get_trace(x)
            p = poutine.trace(poutine.replay(model, q)).get_trace(x)
            pairs = [(q.nodes[site]["fn"], p.nodes[site]["fn"], q.nodes[site]["value"]) for site in "abde"]
            exact = [kl_divergence(a, b).sum() for a, b, _ in pairs]
            drawn = [(a.log_prob(z) - b.log_prob(z)).sum() for a, b, z in pairs]
            differences.append(torch.stack(exact) - torch.stack(drawn))
    found = torch.stack(differences)
    assert bool((found.mean(0).abs() < 4 * found.std(0) / math.sqrt(len(found))).all())
