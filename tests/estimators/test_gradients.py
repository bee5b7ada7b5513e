"""Gradient estimators of one draw against closed forms: z ~ N(0, 1), x | z ~ N(z, 1), q = N(m, s²)."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimator_catalogue import assert_near, row_gradients, row_model, variance_and_error

from pyro_vi import estimators
from pyro_vi.errors import InputError

ROWS = 40_000
CASES = [(1.3, 0.65, 0.5**0.5), (1.3, 0.65, 0.2), (1.3, 0.6, 0.75), (-0.7, 0.4, 1.5), (0.0, -0.8, 0.9)]
at_every_case = pytest.mark.parametrize(("x", "m", "s"), CASES)

VARIANCES = {
    "trace": lambda x, m, s: (4 * s**2, (x - 2 * m) ** 2 * s**2 + 8 * s**4),
    "mean_field": lambda x, m, s: (s**2, (x - m) ** 2 * s**2 + 2 * s**4),
    "analytic": lambda x, m, s: (s**2, (x - m) ** 2 * s**2 + 2 * s**4),
    "stl": lambda x, m, s: ((1 / s - 2 * s) ** 2, (x - 2 * m) ** 2 * s**2 + 2 * (1 - 2 * s**2) ** 2),
}
SAME = {"trace": ("iwae", "renyi"), "stl": ("dreg",)}
"""With one draw a many-sample bound is the ELBO."""


@pytest.mark.parametrize("name", VARIANCES)
@at_every_case
def test_variances_of_one_draw_are_the_closed_forms(name, x, m, s):
    found = row_gradients(estimators.get(name), x, m, s, ROWS)
    for gradients, expected in zip(found, VARIANCES[name](x, m, s), strict=True):
        variance, error = variance_and_error(gradients)
        assert_near(variance, expected, error, largest_error=0.02 * expected + 1e-10)


@pytest.mark.parametrize("name", VARIANCES)
@at_every_case
def test_means_of_one_draw_are_the_derivatives_of_the_elbo(name, x, m, s):
    """ELBO = −½(m² + s²) − ½((x − m)² + s²) + log s + const."""
    found = row_gradients(estimators.get(name), x, m, s, ROWS)
    for gradients, expected in zip(found, (x - 2 * m, 1 - 2 * s**2), strict=True):
        error = gradients.std() / math.sqrt(ROWS)
        assert_near(gradients.mean(), expected, error, largest_error=0.1)


@pytest.mark.parametrize(("one", "many"), [(one, many) for one, others in SAME.items() for many in others])
@at_every_case
def test_with_one_draw_a_many_sample_bound_is_the_elbo(one, many, x, m, s):
    first = row_gradients(estimators.get(one), x, m, s, 50)
    second = row_gradients(estimators.get(many, num_particles=1), x, m, s, 50)
    for ours, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_the_orders_of_the_variances_flip_with_a_guide_that_is_too_narrow():
    found = {name: row_gradients(estimators.get(name), 1.3, 0.65, 0.2, ROWS) for name in VARIANCES}
    ratio = float(found["stl"][0].var() / found["trace"][0].var())
    assert ratio == pytest.approx((5 - 0.4) ** 2 / (4 * 0.04), rel=0.05)  # 132; each variance is known to 0.7 percent
    assert float(found["mean_field"][1].var()) == pytest.approx(0.0201, rel=0.03)
    assert float(found["trace"][1].var()) == pytest.approx(0.0128, rel=0.06)


@pytest.mark.slow
def test_at_the_posterior_the_sampled_value_has_no_variance_and_the_analytic_one_has():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, x.new_tensor(0.5).sqrt()))

    x = torch.tensor([1.3], dtype=torch.float64)
    torch.manual_seed(0)
    estimator = {name: estimators.get(name) for name in ("trace", "stl", "mean_field", "analytic")}
    values = {
        name: -torch.tensor([elbo.loss(row_model, guide, x) for _ in range(150)], dtype=torch.float64)
        for name, elbo in estimator.items()
    }
    evidence = dist.Normal(x.new_zeros(()), x.new_tensor(2.0).sqrt()).log_prob(x[0])
    for name in ("trace", "stl"):
        torch.testing.assert_close(values[name], evidence.expand(150), rtol=1e-10, atol=1e-10)
    for name in ("mean_field", "analytic"):
        variance, error = variance_and_error(values[name])
        assert_near(variance, 0.564**2, error, largest_error=0.1)


@pytest.mark.parametrize("name", ["analytic", "stl", "iwae", "dreg", "renyi", "relaxed"])
def test_a_draw_that_cannot_be_reparameterised_is_refused_with_the_remedy(name):
    """Pyro would take its draw as a constant, and its gradient would be lost silently."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Poisson(x.new_tensor(2.0)))
            pyro.sample("x", dist.Normal(z, x.new_tensor(1.0)), obs=x)

    def guide(x):
        rate = pyro.param("rate", x.new_tensor(1.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Poisson(rate))

    x = torch.tensor([1.0, 3.0])
    try:
        with pytest.raises(InputError, match=r"site 'z'.*use (the estimator )?'score'"):
            estimators.get(name).differentiable_loss(model, guide, x)
    finally:
        pyro.clear_param_store()
