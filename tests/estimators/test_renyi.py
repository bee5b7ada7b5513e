"""The Rényi bound; see test_iwae.py for subsampled plates and test_contract.py for its gradient."""

import math

import pytest
import torch
from estimator_catalogue import DATA, SMALL, exact_loss, modules, parameters
from pyro.infer import RenyiELBO

from pyro_vi import estimators
from pyro_vi.errors import UsageError

ROWS, EVALUATIONS = 500, 40


def measured(elbo):
    model, guide = modules(SMALL["continuous"])
    torch.manual_seed(0)
    x = DATA.repeat(ROWS)
    losses = torch.tensor([elbo.loss(model, guide, x) for _ in range(EVALUATIONS)], dtype=torch.float64) / ROWS
    return float(losses.mean()), float(losses.std()) / math.sqrt(EVALUATIONS)


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.5, 0.9, 2.0])
def test_the_value_is_the_bound_of_its_order(alpha):
    with torch.no_grad():
        expected = float(exact_loss(SMALL["continuous"], DATA, parameters(), "renyi", 3, alpha))
    found, error = measured(estimators.get("renyi", alpha=alpha, num_particles=3))
    assert abs(found - expected) < 4 * error
    assert error < 0.02


@pytest.mark.parametrize("count", [1, 4])
def test_order_zero_is_iwae(count):
    model, guide = modules(SMALL["continuous"])
    found = []
    for elbo in (estimators.get("renyi", alpha=0, num_particles=count), estimators.get("iwae", num_particles=count)):
        torch.manual_seed(2)
        found.append(elbo.loss(model, guide, DATA))
    assert found[0] == pytest.approx(found[1], rel=1e-10)


@pytest.mark.parametrize("alpha", [-0.5, 0.3, 2.0])
def test_on_full_batches_it_is_pyros(alpha):
    """Under the same seed, with the data in a plate that is not subsampled."""
    model, guide = modules(SMALL["continuous"])
    options = {"alpha": alpha, "num_particles": 4, "vectorize_particles": True}
    found = []
    for elbo in (estimators.get("renyi", **options), RenyiELBO(max_plate_nesting=1, **options)):
        torch.manual_seed(2)
        found.append(elbo.loss(model, guide, DATA[:1]))
    assert found[0] == pytest.approx(found[1], rel=1e-10)


def test_the_order_of_the_elbo_is_refused_with_the_remedy():
    with pytest.raises(UsageError, match="use 'trace'"):
        estimators.get("renyi", alpha=1)


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_an_order_that_is_no_number_is_refused(alpha):
    with pytest.raises(UsageError, match="alpha"):
        estimators.get("renyi", alpha=alpha)
