"""The closed forms of KL that are registered here."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

import pyro_vi.elbo.kl  # noqa: F401

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def full_rank(batch: tuple[int, ...], size: int) -> dist.MultivariateNormal:
    torch.manual_seed(1)
    loc = torch.randn(*batch, size, dtype=torch.float64)
    root = torch.randn(*batch, size, size, dtype=torch.float64)
    return dist.MultivariateNormal(loc, root @ root.mT + 0.5 * torch.eye(size, dtype=torch.float64))


def diagonal(batch: tuple[int, ...], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return torch.randn(*batch, size, dtype=torch.float64), torch.rand(*batch, size, dtype=torch.float64) + 0.3


@pytest.mark.parametrize(
    ("q_batch", "p_batch"), [((), ()), ((5,), (5,)), ((5,), ()), ((), (5,)), ((4, 1), (3,))], ids=str
)
def test_full_rank_against_diagonal_is_that_against_the_same_multivariate_normal(q_batch, p_batch):
    q, (loc, scale) = full_rank(q_batch, 3), diagonal(p_batch, 3)
    found = kl_divergence(q, dist.Normal(loc, scale).to_event(1))
    expected = kl_divergence(q, dist.MultivariateNormal(loc, scale_tril=scale.diag_embed()))
    assert found.shape == torch.broadcast_shapes(q_batch, p_batch)
    torch.testing.assert_close(found, expected, **EXACT)


def test_full_rank_against_diagonal_is_the_mean_log_ratio():
    q, (loc, scale) = full_rank((), 3), diagonal((), 3)
    p = dist.Normal(loc, scale).to_event(1)
    torch.manual_seed(3)
    z = q.sample((100_000,))
    ratio = q.log_prob(z) - p.log_prob(z)
    error = ratio.std() / len(z) ** 0.5
    assert abs(kl_divergence(q, p) - ratio.mean()) < 4 * error
    assert error < 0.02 * ratio.mean()


def test_kl_of_equal_distributions_is_zero():
    loc, scale = diagonal((4,), 3)
    q = dist.MultivariateNormal(loc, scale_tril=scale.diag_embed())
    torch.testing.assert_close(
        kl_divergence(q, dist.Normal(loc, scale).to_event(1)), torch.zeros(4, dtype=torch.float64), **EXACT
    )


@pytest.mark.parametrize(
    "p",
    [
        dist.Laplace(torch.zeros(3), 1.0).to_event(1),
        dist.Normal(torch.zeros(2, 3), 1.0).to_event(2),
    ],
    ids=["Laplace", "two event dimensions"],
)
def test_no_closed_form_is_made_up_for_others(p):
    q = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
    with pytest.raises(NotImplementedError):
        kl_divergence(q, p)


def test_delta_with_a_log_density():
    """q(z) of a guide's Delta states a density: KL = c - log p(v)."""
    v, c = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.tensor([-0.3, 0.4], dtype=torch.float64)
    p = dist.Gamma(torch.tensor(2.0, dtype=torch.float64), 1.5)
    torch.testing.assert_close(kl_divergence(dist.Delta(v, c), p), c - p.log_prob(v), **EXACT)
    torch.testing.assert_close(kl_divergence(dist.Delta(v), p), -p.log_prob(v), **EXACT)
    joint = dist.Delta(v.expand(3, 2), torch.ones(3, dtype=torch.float64), event_dim=1)
    found = kl_divergence(joint, p.expand([3, 2]).to_event(1))
    torch.testing.assert_close(found, 1 - p.log_prob(v).sum().expand(3), **EXACT)
