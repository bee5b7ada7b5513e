"""Gradient ascent of normals to the best one, which is known for a normal density."""

import pytest
import torch

from pyro_vi.amortized.refining import fixed_normals, refined


@pytest.mark.parametrize(("draws", "size"), [(8, 4), (32, 16)])
def test_enough_draws_have_the_moments_of_a_normal(draws, size):
    noise = fixed_normals(draws, size)
    torch.testing.assert_close(noise.mean(0), torch.zeros(size).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(noise.mT @ noise / draws, torch.eye(size).double(), rtol=0, atol=1e-12)


def test_few_draws_have_variance_1_each():
    torch.testing.assert_close(fixed_normals(4, 9).square().mean(0), torch.ones(9).double(), rtol=1e-12, atol=0)


def elbo_of(precision, centre, noise):
    def elbo(state):
        loc, log_scale = state
        offset = loc + log_scale.exp() * noise.unsqueeze(1) - centre
        return (-0.5 * ((offset @ precision) * offset).sum(-1)).mean(0) + log_scale.sum(-1)

    return elbo


PRECISION = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()
CENTRE = torch.tensor([[1.0, -2.0], [3.0, 0.5]]).double()


def test_many_steps_reach_the_best_diagonal_normal():
    """Mean of the posterior, and variances 1 / P_ii."""
    elbo = elbo_of(PRECISION, CENTRE, fixed_normals(8, 2))
    start = [torch.zeros(2, 2).double(), torch.zeros(2, 2).double()]
    loc, log_scale = refined(elbo, start, [torch.full((2,), 0.5).double()], 80)
    torch.testing.assert_close(loc, CENTRE, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_scale.exp(), PRECISION.diagonal().rsqrt().expand(2, 2), rtol=1e-8, atol=0)


def test_no_datum_ends_below_its_start():
    """Rates that are far too large: a step that would lower a datum is undone."""
    elbo = elbo_of(50 * PRECISION, CENTRE, fixed_normals(8, 2))
    start = [CENTRE + torch.tensor([[0.05, 0.0], [2.0, 2.0]]).double(), torch.full((2, 2), -2.0).double()]
    found = refined(elbo, start, [torch.full((2,), 30.0).double()], 3)
    assert bool((elbo(found) >= elbo(start)).all())
