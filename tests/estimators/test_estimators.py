"""The table of estimators: what each name stands for, its options, and that it is fit for Pyro's own SVI."""

import math

import pyro
import pytest
import torch
from catalogue import CATALOGUE, columns, exact_pair, linear_gaussian
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

from pyro_vi import estimators
from pyro_vi.errors import UsageError
from pyro_vi.guides.diag_normal import DiagNormal

every_estimator = pytest.mark.parametrize("name", estimators.TABLE)


@every_estimator
def test_every_name_gives_an_elbo_with_a_differentiable_loss(name):
    elbo = estimators.get(name)
    assert isinstance(elbo, ELBO)
    assert type(elbo) is estimators.TABLE[name].cls
    model, guide = exact_pair()
    loss = elbo.differentiable_loss(model, guide, columns())
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(model.parameters())))


@every_estimator
def test_every_estimator_fits_in_pyros_own_svi(name):
    """The bound of a linear-Gaussian model rises, and stays below the evidence."""
    torch.manual_seed(0)
    model, x = linear_gaussian(learn=False), columns()
    guide = DiagNormal(model, (x,), hidden=(8,))
    elbo = estimators.get(name)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=elbo)
    averaged = estimators.get(name, num_particles=200, vectorize_particles=True)
    before = -averaged.loss(model, guide, x) / 50
    for _ in range(150):
        svi.step(x)
    after = -averaged.loss(model, guide, x) / 50
    pyro.clear_param_store()
    exact = float(model.log_evidence(x).mean())
    assert before + 0.5 < after < exact


@every_estimator
def test_options_may_stand_in_the_name_or_beside_it(name):
    assert estimators.get(f"{name}(num_particles=3)").num_particles == 3
    assert estimators.get(name, num_particles=4).num_particles == 4


def test_trace_and_mean_field_are_pyros_own():
    assert type(estimators.get("trace")) is Trace_ELBO
    assert type(estimators.get("mean_field")) is TraceMeanField_ELBO


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mean_filed", "did you mean 'mean_field'"),
        ("nothing", "There are: trace, mean_field"),
        ("trace(particles=3)", "num_particles"),
    ],
)
def test_unknown_names_and_options_are_refused_with_what_there_is(name, words):
    with pytest.raises(UsageError, match=words):
        estimators.get(name)


def test_named_copies_what_it_is_given():
    mine = Trace_ELBO(num_particles=5)
    found = estimators.named([mine, "mean_field", TraceGraph_ELBO()])
    assert list(found) == ["trace", "mean_field", "TraceGraph_ELBO"]
    assert found["trace"] is not mine
    assert found["trace"].num_particles == 5
    assert math.isinf(mine.max_plate_nesting)


@pytest.mark.parametrize("given", ["trace", ["trace"], ("trace",)])
def test_one_or_several(given):
    assert list(estimators.named(given)) == ["trace"]


def test_the_same_name_twice_is_refused():
    with pytest.raises(UsageError):
        estimators.named(["trace", Trace_ELBO()])


@every_estimator
def test_kl_treatment_is_that_of_the_table(name):
    assert estimators.kl_treatment(estimators.get(name)) == estimators.TABLE[name].kl


def test_a_subclass_treats_the_kl_as_its_parent():
    class Mine(TraceMeanField_ELBO):
        pass

    assert estimators.kl_treatment(Mine()) == "analytic"
    assert estimators.kl_treatment(TraceGraph_ELBO()) == "sampled"


@every_estimator
def test_an_estimator_knows_the_full_size_of_a_subsampled_plate(name):
    """With the exact guide, the sampled bound of each draw is the evidence of all 50, as seen by 8 of them."""
    model, guide = exact_pair()
    expected = -50 * float(model.log_evidence(columns()).mean().detach())
    found = estimators.get(name, num_particles=4000, vectorize_particles=True).loss(model, guide, columns())
    # Under the analytic KL a draw has a spread of about 50 / sqrt(8) * 0.6 nats.
    assert abs(found - expected) < (1e-8 if name == "trace" else 4 * 50 * 1.5 / (8 * 4000) ** 0.5)
    assert CATALOGUE["linear_gaussian_exact"].num_data == 50
