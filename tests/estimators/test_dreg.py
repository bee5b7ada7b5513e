"""The doubly reparameterised gradient: see test_iwae.py for its ratio of signal to noise."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from estimator_catalogue import row_gradients

from pyro_vi import estimators
from pyro_vi.estimators.bound import Bound


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_gradient_of_the_guide_is_zero_at_the_posterior(count):
    """All weights are equal and ∂ log w / ∂z is 0 in every draw."""
    elbo = estimators.get("dreg", num_particles=count)
    for gradient in row_gradients(elbo, 1.3, 0.65, 0.5**0.5, 50):
        assert gradient.norm() < 1e-10


def test_the_total_derivative_is_not_zero_there():
    in_m, _ = row_gradients(estimators.get("iwae", num_particles=8), 1.3, 0.65, 0.5**0.5, 50)
    assert in_m.norm() > 1


def test_it_is_the_doubly_gradient_of_iwae():
    elbo = estimators.get("dreg")
    assert (elbo.bound, elbo.gradient) == ("iwae", "doubly")


def test_a_parameter_of_both_programs_gets_the_gradient_of_both():
    """One scalar t moves the prior's loc and the guide's: its gradient is the sum, as under iwae, by exact enumeration."""
    nodes, x, count = 60, 1.3, 2
    points, mass = np.polynomial.hermite_e.hermegauss(nodes)
    noise, mass = torch.as_tensor(points), torch.as_tensor(mass / mass.sum())

    def log_weight(t, e):
        z = 0.9 * t + 0.8 * e
        log_p = dist.Normal(t, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(torch.tensor(x, dtype=torch.float64))
        return log_p - dist.Normal(0.9 * t, 0.8).log_prob(z)

    t = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    one = log_weight(t, noise)
    both = torch.logaddexp(one.unsqueeze(0), one.unsqueeze(1)) - torch.tensor(float(count)).log()
    (expected,) = torch.autograd.grad((mass.unsqueeze(0) * mass.unsqueeze(1) * both).sum(), t)

    rows = 40_000
    shared = torch.full((rows,), 0.7, dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shared, x.new_ones(())))
            pyro.sample("x", dist.Normal(z, x.new_ones(())), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.9 * shared, x.new_tensor(0.8)))

    data = torch.full((rows,), x, dtype=torch.float64)
    for elbo in (Bound(bound="iwae", gradient="doubly", num_particles=2), Bound(bound="iwae", num_particles=2)):
        torch.manual_seed(0)
        (found,) = torch.autograd.grad(-elbo.differentiable_loss(model, guide, data), shared)
        assert abs(float(found.mean() - expected)) < 4 * float(found.std()) / rows**0.5
        assert float(found.std()) / rows**0.5 < 0.01
