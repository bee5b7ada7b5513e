"""Distributions of single numbers: normalised, with the moments and densities of scipy or of a sum, also at the edges."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import ContinuousBernoulli as OfTorch

import pyro_vi
from pyro_vi.errors import InputError
from pyro_vi.laws import Categorical, ContinuousBernoulli, DiscretisedLogistic, NegativeBinomial, Poisson, Shares

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
ODDS = torch.tensor(
    [-700.0, -40.0, -3.0, -0.2, -0.0201, -0.0199, -1e-9, 0.0, 1e-4, 0.019, 0.5, 2.0, 40.0, 700.0]
).double()
NODES, WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(200))


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def counts(most: int) -> torch.Tensor:
    return torch.arange(most + 1.0, dtype=torch.float64)


def moments(mass: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = (mass * values).sum(-1)
    return mean, (mass * (values - mean.unsqueeze(-1)).square()).sum(-1)


def test_continuous_bernoulli_is_normalised_with_its_moments():
    odds = ODDS[ODDS.abs() < 100]
    law = ContinuousBernoulli(odds.unsqueeze(-1))
    x = (NODES + 1) / 2
    mass = law.log_prob(x).exp() * WEIGHTS / 2
    torch.testing.assert_close(mass.sum(-1), torch.ones_like(odds), **TIGHT)
    mean, variance = moments(mass, x)
    torch.testing.assert_close(law.mean[:, 0], mean, **TIGHT)
    torch.testing.assert_close(law.variance[:, 0], variance, **TIGHT)


def test_continuous_bernoulli_is_torchs_away_from_its_edges():
    odds, x = ODDS[(ODDS.abs() < 20) & (ODDS.abs() > 0.1)], number(0.3)
    torch.testing.assert_close(ContinuousBernoulli(odds).log_prob(x), OfTorch(logits=odds).log_prob(x), **TIGHT)
    torch.testing.assert_close(ContinuousBernoulli(odds).icdf(x), OfTorch(logits=odds).icdf(x), **TIGHT)


def test_continuous_bernoulli_holds_at_the_edges_in_single_precision():
    """There log p(0) = log(−η) and p has the mean −1/η; torch has 2.77 for 6.55, and the gradient of a Bernoulli."""
    odds = torch.tensor(-700.0, requires_grad=True)
    value = ContinuousBernoulli(odds).log_prob(torch.tensor(0.0))
    value.backward()
    assert value.item() == pytest.approx(math.log(700), rel=1e-6)
    assert odds.grad.item() == pytest.approx(-1 / 700, rel=1e-3)
    assert ContinuousBernoulli(odds).mean.item() == pytest.approx(1 / 700, rel=1e-3)
    single = ContinuousBernoulli(ODDS.float())
    double = ContinuousBernoulli(ODDS)
    x = torch.tensor(0.3)
    torch.testing.assert_close(single.log_prob(x), double.log_prob(x).float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(single.variance, double.variance.float(), rtol=1e-4, atol=1e-7)


def test_continuous_bernoulli_has_smooth_gradients_at_one_half():
    odds = torch.tensor([0.0, 1e-5, 0.0199, 0.0201], dtype=torch.float64, requires_grad=True)
    law = ContinuousBernoulli(odds)
    (slope,) = torch.autograd.grad(law.log_prob(number(0.8)).sum(), odds)
    torch.testing.assert_close(slope, 0.8 - law.mean.detach(), **TIGHT)


def test_continuous_bernoulli_draws_have_its_mean():
    torch.manual_seed(0)
    law = ContinuousBernoulli(ODDS)
    draws = law.sample((20_000,))
    assert bool(((draws >= 0) & (draws <= 1)).all())
    error = (draws.mean(0) - law.mean).abs() / (law.variance / 20_000).sqrt()
    assert float(error.max()) < 4


@pytest.mark.parametrize("rate", [-3.0, 0.0, 1.5])
def test_poisson_is_scipys(rate):
    law, k = Poisson(number(rate)), counts(60)
    torch.testing.assert_close(
        law.log_prob(k), torch.from_numpy(scipy.stats.poisson(math.exp(rate)).logpmf(k)), **TIGHT
    )
    assert float(law.log_prob(k).exp().sum()) == pytest.approx(1, abs=1e-10)


def test_poisson_of_a_rate_that_underflows_has_a_density_and_a_gradient():
    rate = torch.tensor(-200.0, requires_grad=True)
    value = Poisson(rate).log_prob(torch.tensor(3.0))
    value.backward()
    assert value.item() == pytest.approx(-600 - math.log(6)) and rate.grad.item() == 3


@pytest.mark.parametrize(("mean", "count"), [(0.3, 0.2), (4.0, 1.0), (4.0, 50.0)])
def test_negative_binomial_is_scipys(mean, count):
    law = NegativeBinomial(number(mean).log(), number(count).log())
    k, known = counts(2000), scipy.stats.nbinom(count, count / (count + mean))
    torch.testing.assert_close(law.log_prob(k), torch.from_numpy(known.logpmf(k)), rtol=1e-9, atol=1e-9)
    found, variance = moments(law.log_prob(k).exp(), k)
    assert float(law.log_prob(k).exp().sum()) == pytest.approx(1, abs=1e-10)
    assert (found.item(), variance.item()) == pytest.approx((mean, mean + mean**2 / count), rel=1e-8)
    assert (law.mean.item(), law.variance.item()) == pytest.approx((mean, mean + mean**2 / count))


def test_negative_binomial_becomes_a_poisson_in_single_precision():
    k, log_mean = torch.arange(20.0), torch.tensor(1.1)
    found = NegativeBinomial(log_mean, torch.tensor(18.0)).log_prob(k)
    torch.testing.assert_close(found, Poisson(log_mean).log_prob(k), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_discretised_logistic_sums_to_one_over_the_levels(levels):
    loc = torch.tensor([-300.0, -1.0, 0.0, 0.4 * levels, levels + 3.0, 900.0]).double().unsqueeze(-1)
    for log_scale in (-6.0, 0.0, 12.0):
        law = DiscretisedLogistic(loc, number(log_scale), torch.tensor(float(levels)))
        mass = law.log_prob(counts(levels)).exp()
        torch.testing.assert_close(mass.sum(-1), torch.ones(6, dtype=torch.float64), **TIGHT)
        torch.testing.assert_close(law.mean[:, 0], (mass * counts(levels)).sum(-1), **TIGHT)


def test_discretised_logistic_is_the_difference_of_scipys_distribution_functions():
    law = DiscretisedLogistic(number(5.2), number(0.3), torch.tensor(16.0))
    known = scipy.stats.logistic(5.2, math.exp(0.3))
    edges = np.concatenate(([-np.inf], np.arange(16) + 0.5, [np.inf]))
    torch.testing.assert_close(law.log_prob(counts(16)).exp(), torch.from_numpy(np.diff(known.cdf(edges))), **TIGHT)


def test_discretised_logistic_far_in_its_tails_is_linear():
    """log P(0) = (½ − μ)/s for a mean far above, and its gradient is finite."""
    loc = torch.tensor([200.0, -200.0], requires_grad=True)
    value = DiscretisedLogistic(loc, torch.tensor(-1.0), torch.tensor(16.0)).log_prob(torch.tensor([0.0, 16.0]))
    torch.testing.assert_close(value, torch.tensor([-199.5, -215.5]) * math.e)
    (slope,) = torch.autograd.grad(value.sum(), loc)
    torch.testing.assert_close(slope, torch.tensor([-math.e, math.e]))


@pytest.mark.parametrize(
    "law",
    [
        Poisson(torch.tensor([0.5, 2.0])),
        NegativeBinomial(torch.tensor([0.5, 2.0]), torch.tensor(0.3)),
        DiscretisedLogistic(torch.tensor([0.5, 14.0]), torch.tensor(0.7), torch.tensor(16.0)),
        Shares(DiscretisedLogistic(torch.tensor([0.5, 14.0]), torch.tensor(0.7), torch.tensor(16.0)), 16),
    ],
    ids=lambda law: type(law).__name__,
)
def test_draws_of_whole_numbers_have_the_mean_and_the_support(law):
    torch.manual_seed(1)
    draws = law.sample((20_000,))
    assert draws.shape == (20_000, 2) and bool(law.support.check(draws).all())
    assert float(((draws.mean(0) - law.mean).abs() / (draws.std(0) / 20_000**0.5)).max()) < 4


def test_other_values_are_refused_where_validation_is_on():
    for law, value in ((Poisson(torch.tensor(0.0)), 0.5), (ContinuousBernoulli(torch.tensor(0.0)), 1.5)):
        with pytest.raises(ValueError, match="outside the support"):
            law.log_prob(torch.tensor(value))
    shares = Shares(Poisson(torch.tensor(0.0)), 16)
    with pytest.raises(ValueError, match="multiples of 1/16"):
        shares.log_prob(torch.tensor(0.03))
    torch.testing.assert_close(
        shares.log_prob(torch.tensor(0.125)), Poisson(torch.tensor(0.0)).log_prob(torch.tensor(2.0))
    )
    assert shares.expand((3, 2)).batch_shape == (3, 2) and law.expand((4,)).batch_shape == (4,)


def test_a_number_that_is_no_category_has_no_probability():
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    found = Categorical(logits=logits, validate_args=False).log_prob(torch.tensor([0, 2, 3, -1]))
    expected = torch.stack([logits[0], logits[2]]) - logits.logsumexp(0)
    torch.testing.assert_close(found[:2], expected, rtol=1e-12, atol=1e-12)
    assert found[2:].tolist() == [-torch.inf] * 2
    with pytest.raises(ValueError, match="within the support"):
        Categorical(logits=logits, validate_args=True).log_prob(torch.tensor(3))


def test_levels_below_the_data_are_refused_with_the_likelihood():
    with pytest.raises(InputError, match="observed values of site 'x' are outside the support of Categorical"):
        pyro_vi.fit(
            "vae(likelihood='categorical', levels=2)",
            "diag_normal",
            torch.arange(40).reshape(20, 2) % 7,
            steps=1,
            progress=False,
        )
