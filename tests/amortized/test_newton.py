"""Modes and curvatures of densities that have them in closed form."""

import torch

from pyro_vi.amortized.newton import covariance_factor, peak_of

PRECISION = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()
CENTRES = torch.tensor([[1.0, -2.0], [3.0, 0.5], [0.0, 0.0]]).double()


def quadratic(v):
    offset = v - CENTRES
    return -0.5 * ((offset @ PRECISION) * offset).sum(-1)


def test_of_a_normal_mode_and_covariance_are_its_own():
    peak = peak_of(quadratic, torch.zeros(3, 2).double(), 10)
    mode, factor = covariance_factor(quadratic, peak)
    assert not peak.rising
    torch.testing.assert_close(mode, CENTRES, rtol=0, atol=1e-10)
    torch.testing.assert_close(factor @ factor.mT, PRECISION.inverse().expand(3, 2, 2), rtol=1e-10, atol=1e-10)
    assert bool((factor.triu(1) == 0).all())


def test_of_a_gamma_on_the_log_scale():
    """f(u) = a u − b eᵘ: the mode is log a/b, and −f″ there is a."""
    a, b = torch.tensor([2.0, 5.0]).double(), torch.tensor([3.0, 0.5]).double()

    def density(v):
        return a * v[:, 0] - b * v[:, 0].exp()

    mode, factor = covariance_factor(density, peak_of(density, torch.zeros(2, 1).double(), 50))
    torch.testing.assert_close(mode[:, 0], (a / b).log(), rtol=0, atol=1e-8)
    torch.testing.assert_close(factor[:, 0, 0], a.rsqrt(), rtol=1e-7, atol=0)


def test_a_density_without_a_mode_rises():
    assert peak_of(lambda v: v.sum(-1), torch.zeros(2, 1).double(), 5).rising


def test_the_mode_has_the_gradient_of_the_exact_one():
    """Of −½ (u − c)² + cos u: du*/dc = 1 / (1 + cos u*), by the implicit function theorem."""
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def density(v):
        return -0.5 * (v[:, 0] - c).square() + v[:, 0].cos()

    peak = peak_of(density, torch.zeros(1, 1).double(), 50)
    mode, _ = covariance_factor(density, peak)
    (found,) = torch.autograd.grad(mode.sum(), c)
    torch.testing.assert_close(found, 1 / (1 + peak.mode[0, 0].cos()), rtol=1e-9, atol=0)
