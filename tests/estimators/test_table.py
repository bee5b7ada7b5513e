"""The table of estimators: what each name stands for, its options, and that it is fit for Pyro's own SVI."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, conjugate_model, exact_pair, number
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTMC_ELBO,
)

from pyro_vi import estimators
from pyro_vi.errors import UsageError

every_estimator = pytest.mark.parametrize("name", estimators.TABLE)


@pytest.mark.parametrize("name", ["trace", "mean_field"])
def test_pyros_own_fit_in_pyros_own_svi(name):
    """z ~ N(0, 1), x | z ~ N(z, 1): the guide N(m, s²) goes to N(x / 2, 1 / 2) at which the gradient x − 2 m, 1 − 2 s² is 0."""

    def guide(x):
        m = pyro.param("m", number(0.0))
        s = pyro.param("s", number(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(m, s))

    x = number(1.3).reshape(1)
    optimizer = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.985})
    elbo = estimators.get(name, num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(conjugate_model, guide, optimizer, loss=elbo)
    for _ in range(300):
        svi.step(x)
        optimizer.step()
    m, s = (float(pyro.param(parameter).detach()) for parameter in "ms")
    pyro.clear_param_store()
    # The step is .1 · .985^300 = .001 in the end, the gradient's noise 1.414 / 10 and the curvature 2 at most:
    # the stationary spread is about sqrt(.001 · .14 / (2 · 2)) = .006.
    assert abs(m - 0.65) < 4 * 0.006
    assert abs(s - 0.5**0.5) < 4 * 0.006


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
        ("nothing", "Available: trace, mean_field"),
        ("trace(particles=3)", "num_particles"),
    ],
)
def test_unknown_names_and_options_are_refused_with_what_there_is(name, words):
    with pytest.raises(UsageError, match=words):
        estimators.get(name)


def test_named_copies_what_it_is_given():
    mine = Trace_ELBO(num_particles=5)
    found = estimators.named([mine, "mean_field", TraceGraph_ELBO()])
    assert list(found) == ["trace", "mean_field", "graph"]
    assert found["trace"] is not mine
    assert found["trace"].num_particles == 5
    assert math.isinf(mine.max_plate_nesting)


@pytest.mark.parametrize("given", ["trace", ["trace"], ("trace",)])
def test_one_or_several(given):
    assert list(estimators.named(given)) == ["trace"]


def test_the_same_name_twice_is_refused():
    with pytest.raises(UsageError):
        estimators.named(["trace", Trace_ELBO()])


@pytest.mark.parametrize("name", ["trace", "mean_field"])
def test_an_estimator_knows_the_full_size_of_a_subsampled_plate(name):
    """With the exact guide the mean bound is the evidence of all 50 data, as seen by 8 of them."""
    model, guide = exact_pair()
    x = columns()
    expected = -50 * float(model.log_evidence(x).mean().detach())
    elbo = estimators.get(name)
    torch.manual_seed(1)
    losses = torch.tensor([elbo.loss(model, guide, x) for _ in range(400)], dtype=torch.float64)
    assert abs(float(losses.mean()) - expected) < 4 * float(losses.std()) / 400**0.5 + 1e-8
    assert float(losses.std()) < (1e-8 if name == "trace" else 50)  # under trace every draw is the evidence


@pytest.mark.parametrize(
    "cls", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, TraceTMC_ELBO, RenyiELBO]
)
def test_pyros_names_stand_for_its_classes_with_their_options(cls):
    found = estimators.get(f"{cls.__name__}(num_particles=3, max_plate_nesting=1)")
    assert type(found) is cls
    assert (found.num_particles, found.max_plate_nesting) == (3, 1)
    assert list(estimators.named(cls.__name__)) == [cls.__name__]


def test_numpys_numbers_are_numbers():
    found = estimators.get("renyi", num_particles=np.int64(5), alpha=np.float32(0.5))
    assert (found.num_particles, found.alpha) == (5, 0.5)
    assert (type(found.num_particles), type(found.alpha)) == (int, float)
    assert type(estimators.get("trace", num_particles=np.int64(5)).num_particles) is int


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("iwae(num_particles=1.5)", "num_particles must be a whole number of at least 1, not 1.5"),
        ("trace(num_particles=1.5)", "num_particles must be a whole number of at least 1, not 1.5"),
        ("trace(num_particles='many')", "num_particles must be a whole number of at least 1, not 'many'"),
        ("Trace_ELBO(num_particles=0)", "num_particles must be a whole number of at least 1, not 0"),
        ("iwae(num_particles=True)", "num_particles must be a whole number of at least 1, not True"),
        ("renyi(alpha='x')", "alpha must be a number that is finite, not 'x'"),
        ("RenyiELBO(alpha=1)", "order alpha should not be equal to 1"),
        ("trace(vectorize_particles=3)", "vectorize_particles must be True or False, not 3"),
        ("Trace_EBLO", "did you mean 'Trace_ELBO'"),
    ],
)
def test_values_that_are_none_are_refused_by_name(name, words):
    with pytest.raises(UsageError, match=words):
        estimators.get(name)


@pytest.mark.parametrize("given", [None, 3, [None], Trace_ELBO])
def test_what_is_no_estimator_is_refused(given):
    with pytest.raises(UsageError, match="is no ELBO estimator; give a name such as 'trace'"):
        estimators.named(given)
