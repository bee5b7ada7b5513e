"""The score function of the importance-weighted bound, with a baseline for each draw, against enumeration."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from discrete_catalogue import PAIRS
from estimator_catalogue import DATA, assert_near, mean_gradient

from pyro_vi import estimators


@pytest.mark.slow
@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "loop"])
@pytest.mark.parametrize(
    ("name", "count"),
    [("bernoulli", 2), ("bernoulli", 4), ("one_hot", 3), ("discrete_first", 2), ("continuous_first", 2)],
)
def test_the_mean_gradient_is_the_enumerated_one(name, count, vectorize):
    entry = PAIRS[name]
    elbo = estimators.get("vimco", num_particles=count, vectorize_particles=vectorize)
    found, error = mean_gradient(elbo, *entry.build(None), DATA.repeat(400), 30)
    assert_near(found / 400, entry.gradient("iwae", count), error / 400, largest_error=0.06)


def test_the_baseline_is_the_geometric_mean_of_the_other_weights():
    """Σ_k (L − L_{−k}) ∂ log q(z_k) + Σ w̃_k ∂ log w_k, written out for draws that are given."""
    logit = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.7], dtype=torch.float64)
    drawn = []

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.4)))
            pyro.sample("x", dist.Normal(2 * z - 1, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=logit))
        drawn.append(z.detach())

    elbo = estimators.get("vimco", num_particles=4, vectorize_particles=False)
    torch.manual_seed(11)
    elbo.loss(model, guide, x)  # the first evaluation finds things out, on draws of its own
    drawn.clear()
    torch.manual_seed(11)
    (found,) = torch.autograd.grad(-elbo.differentiable_loss(model, guide, x), logit)
    z = torch.stack(drawn[:4])[:, 0]
    assert 0 < float(z.sum()) < 4
    log_q = dist.Bernoulli(logits=logit).log_prob(z)
    log_w = dist.Bernoulli(x.new_tensor(0.4)).log_prob(z) + dist.Normal(2 * z - 1, 1.0).log_prob(x) - log_q
    fixed = log_w.detach()
    surrogate = log_w.logsumexp(0)
    for k in range(4):
        others = torch.cat([fixed[:k], fixed[k + 1 :]])
        replaced = torch.cat([others, others.mean().reshape(1)])
        surrogate = surrogate + (fixed.logsumexp(0) - replaced.logsumexp(0)) * log_q[k]
    (expected,) = torch.autograd.grad(surrogate, logit)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_signal_is_zero_where_all_weights_are_equal():
    """At the posterior, where Σ_k w̃_k ∂ log q(z_k) / K is all that is left."""
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
            pyro.sample("x", dist.Normal(2 * z - 1, 1.0), obs=x)

    drawn = []

    def guide(x):
        fn = dist.Bernoulli(logits=x.new_tensor(0.3).logit() + 2 * x + shift)
        with pyro.plate("data", len(x)):
            drawn.append(pyro.sample("z", fn).detach())

    elbo = estimators.get("vimco", num_particles=5, vectorize_particles=False)
    elbo.loss(model, guide, DATA)
    drawn.clear()
    (found,) = torch.autograd.grad(-elbo.differentiable_loss(model, guide, DATA), shift)
    score = dist.Bernoulli(logits=DATA.new_tensor(0.3).logit() + 2 * DATA + shift).log_prob(torch.stack(drawn[:5]))
    (expected,) = torch.autograd.grad(-score.mean(0).sum(), shift)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
