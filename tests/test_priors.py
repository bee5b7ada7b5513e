"""Priors: normalised, with draws of their density, and the mixture that each stands for."""

import dataclasses

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from catalogue import spec

from pyro_vi.errors import InputError
from pyro_vi.priors import PRIORS, FlowPrior, NormalMixture, VampPrior, prior_of

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
LIKE = torch.zeros((), dtype=torch.float64)


def made(name: str, latent_dim: int = 2, support: str = "real", spread: float = 0.0):
    """A prior in float64, its parameters moved off their start."""
    torch.manual_seed(0)
    prior = prior_of(name, latent_dim, spec(support=support), components=3, hidden=(8,)).double()
    with torch.no_grad():
        for value in prior.parameters():
            value.add_(spread * torch.randn_like(value))
    return prior


def grid(latent_dim: int) -> tuple[torch.Tensor, float]:
    """Points of a trapezoidal rule, and the weight of each; the density vanishes at the ends."""
    end, count = (8, 301) if latent_dim == 2 else (20, 20_001)
    points = torch.linspace(-end, end, count, dtype=torch.float64)
    wide = torch.cartesian_prod(*[points] * latent_dim).reshape(-1, latent_dim)
    return wide, float(points[1] - points[0]) ** latent_dim


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_a_prior_is_normalised(name, latent_dim):
    """The density of a spline has kinks, at which the rule errs by the square of its width."""
    points, area = grid(latent_dim)
    with torch.no_grad():
        mass = made(name, latent_dim, spread=0.2)(LIKE).log_prob(points).exp() * area
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3 if (name, latent_dim) == ("flow", 2) else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIORS)
def test_draws_have_the_moments_of_the_density(name):
    points, area = grid(2)
    torch.manual_seed(1)
    with torch.no_grad():
        law = made(name, spread=0.2)(LIKE)
        draws, mass = law.sample((20_000,)), law.log_prob(points).exp() * area
    mean = mass @ points
    variance = mass @ (points - mean).square()
    assert float(((draws.mean(0) - mean) / (variance / 20_000).sqrt()).abs().max()) < 4
    assert float(((draws - mean).square().mean(0) / variance - 1).abs().max()) < 0.1


def test_the_density_of_a_draw_is_that_of_its_value():
    torch.manual_seed(2)
    law = made("flow", 3, spread=0.3)(LIKE)
    wide = law.expand((5,))
    draw = wide()
    torch.testing.assert_close(wide.log_prob(draw), law.log_prob(draw.clone()), rtol=1e-7, atol=1e-7)
    assert (wide.batch_shape, wide.event_shape) == ((5,), (3,))


def test_a_mixture_is_the_sum_of_its_components():
    prior, z = made("mixture", spread=0.5), torch.randn(5, 2, generator=torch.Generator().manual_seed(3)).double()
    weights = prior.weight_logits.softmax(0)
    total = sum(
        weights[k] * dist.Normal(prior.loc[k], prior.log_scale[k].exp()).log_prob(z).sum(-1).exp() for k in range(3)
    )
    torch.testing.assert_close(prior(LIKE).log_prob(z), total.log(), **TIGHT)


@pytest.mark.slow
def test_a_mixture_starts_with_unit_variances():
    torch.manual_seed(0)
    draws = NormalMixture(2, components=2000)(LIKE).sample((20_000,))
    assert float((draws.var(0) - 1).abs().max()) < 0.05


def test_vamp_is_the_mixture_of_what_its_network_says_at_the_pseudo_inputs():
    prior, z = made("vamp", support="boolean"), torch.randn(5, 2, generator=torch.Generator().manual_seed(3)).double()
    u = prior.pseudo_inputs()
    assert u.shape == (3, 3) and bool(((u > 0) & (u < 1)).all())
    loc, log_scale = prior.encoder(u).chunk(2, -1)
    parts = dist.Normal(loc, log_scale.exp()).log_prob(z.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(prior(LIKE).log_prob(z), parts.logsumexp(1) - np.log(3), **TIGHT)


@pytest.mark.parametrize(
    ("support", "low", "high"), [("real", -9, 9), ("nonnegative_integer", 0, 9), ("unit_interval", 0, 1)]
)
def test_pseudo_inputs_lie_in_the_support_of_the_data(support, low, high):
    torch.manual_seed(0)
    data = dataclasses.replace(spec(support=support), event_shape=(2, 3))
    u = VampPrior(2, data, components=50, hidden=(4,), activation="relu").pseudo_inputs().detach()
    assert u.shape == (50, 6) and bool(((u >= low) & (u <= high)).all())
    assert (float(u.min()) < 0) == (support == "real")


def test_a_flow_starts_near_a_standard_normal():
    torch.manual_seed(0)
    z = torch.randn(200, 4)
    with torch.no_grad():
        found = FlowPrior(4, transforms=2, hidden=(16,))(z).log_prob(z)
    known = dist.Normal(torch.zeros(4), 1.0).to_event(1).log_prob(z)
    assert 0 < float((found - known).abs().max()) < 0.5


@pytest.mark.parametrize("name", PRIORS)
def test_every_parameter_has_a_gradient(name):
    prior = made(name, 3, spread=0.1)
    z = torch.randn(9, 3, generator=torch.Generator().manual_seed(4)).double()
    if name != "normal":
        prior(LIKE).log_prob(z).sum().backward()
    assert all(value.grad is not None and bool(value.grad.abs().sum() > 0) for value in prior.parameters())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vampire", {}, "prior must be one of normal, mixture, vamp, flow, not 'vampire'; did you mean 'vamp'"),
        ("mixture", {"components": 0}, "components must be a whole number of at least 1, not 0"),
        ("flow", {"transforms": 0}, "transforms must be a whole number of at least 1, not 0"),
        ("vamp", {"hidden": (0,)}, "positive whole numbers"),
        ("flow", {"hidden": (0,)}, "positive whole numbers"),
        ("vamp", {"activation": "sine"}, "no activation named 'sine'"),
    ],
)
def test_options_out_of_range_are_refused(name, options, words):
    with pytest.raises(InputError, match=words):
        prior_of(name, 2, spec(), **options)
