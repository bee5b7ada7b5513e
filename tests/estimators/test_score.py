"""Score-function gradients, alone and mixed with reparameterised ones, against enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from discrete_catalogue import PAIRS
from estimator_catalogue import DATA, SMALL, assert_near, mean_gradient, modules
from pyro.infer import Trace_ELBO

from pyro_vi import estimators

COPIES, EVALUATIONS = 200, 40


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("kl", ["sampled", "analytic"])
@pytest.mark.parametrize("elbo", ["score", "mixed"])
def test_the_mean_gradient_is_the_enumerated_one(elbo, kl, name):
    entry = PAIRS[name]
    model, guide = entry.build(None)
    expected = entry.gradient("elbo", 1)
    found, error = mean_gradient(
        estimators.get(elbo, num_particles=3, kl=kl), model, guide, DATA.repeat(COPIES), EVALUATIONS
    )
    assert_near(found / COPIES, expected, error / COPIES, largest_error=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("elbo", ["graph", "enum"])
def test_pyros_own_have_the_same(elbo, name):
    """`enum` with the discrete sites marked for enumeration."""
    entry = PAIRS[name]
    model, guide = entry.build("parallel" if elbo == "enum" else None)
    found, error = mean_gradient(
        estimators.get(elbo, max_plate_nesting=1), model, guide, DATA.repeat(COPIES), EVALUATIONS
    )
    assert_near(found / COPIES, entry.gradient("elbo", 1), error / COPIES, largest_error=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("elbo", ["score", "mixed", "score(kl='analytic')", "mixed(kl='analytic')"])
def test_kl_annealing_has_the_gradient_of_the_annealed_bound(elbo, name, beta):
    """β on model and guide: E log p(x | z) − β KL; the score function itself must stay unscaled."""
    entry = PAIRS[name]
    model, guide = entry.build(None, beta)
    found, error = mean_gradient(estimators.get(elbo), model, guide, DATA.repeat(COPIES), 20)
    assert_near(found / COPIES, entry.gradient("elbo", 1, beta), error / COPIES, largest_error=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bernoulli", "one_hot"])
def test_the_baseline_lowers_the_variance(name):
    """Against the score function with no baseline, that is Pyro's trace with as many draws; summed over parameters."""
    entry, x = PAIRS[name], DATA.repeat(5)

    def squared_distances(elbo):
        model, guide = entry.build(None)
        rows = []
        torch.manual_seed(0)
        for _ in range(200):
            loss = elbo.differentiable_loss(model, guide, x)
            rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(guide.parameters()))]))
        stacked = torch.stack(rows)
        return (stacked - stacked.mean(0)).square().sum(1)

    ours = squared_distances(estimators.get("score", num_particles=8, vectorize_particles=True))
    theirs = squared_distances(Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1))
    error = math.hypot(float(ours.std()), float(theirs.std())) / math.sqrt(200)
    assert float(theirs.mean() - ours.mean()) > 4 * error


def test_the_gradient_is_zero_at_the_posterior_of_a_discrete_latent():
    """There log p − log q is the evidence in every draw, so that draw less baseline is 0."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
            pyro.sample("x", dist.Normal(2 * z - 1, 1.0), obs=x)

    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def guide(x):
        # log p(1 | x) − log p(0 | x) = logit .3 + 2x
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x.new_tensor(0.3).logit() + 2 * x + shift))

    for _ in range(5):
        loss = estimators.get("score", num_particles=4).differentiable_loss(model, guide, DATA)
        (gradient,) = torch.autograd.grad(loss, shift)
        assert abs(float(gradient)) < 1e-10


@pytest.mark.parametrize("elbo", ["score", "mixed"])
def test_two_draws_are_enough(elbo):
    model, guide = modules(SMALL["discrete"])
    torch.manual_seed(0)
    loss = estimators.get(elbo, num_particles=2).differentiable_loss(model, guide, DATA)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(guide.parameters())))
