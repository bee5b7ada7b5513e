"""The Bayesian neural network: its joint density by hand, a linear one against the regression, and classes of a table."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, scalars, spec
from pyro import poutine
from pyro.infer import Trace_ELBO
from sklearn.datasets import load_wine

import pyro_vi
from pyro_vi.data.spec import ColumnSpec, DataSpec
from pyro_vi.errors import InputError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.models.bayesian_network import BayesianNetwork
from pyro_vi.models.regression import Regression

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def test_the_joint_density_by_hand():
    x, y = columns(8), scalars(8, seed=3)
    model = BayesianNetwork(spec(50), hidden=(4,), prior_scale=0.7)
    model.start(x, y)
    trace = poutine.trace(model).get_trace(x, y)
    W, b, V, c, s = (trace.nodes[n]["value"] for n in ("weight_1", "bias_1", "weight_2", "bias_2", "scale"))
    unit = (x - x.mean(0)) / x.std(0)
    f = torch.tanh(unit @ W.mT + b) @ V.mT + c
    expected = 50 / 8 * dist.Normal(y.mean() + y.std() * f[:, 0], s).log_prob(y).sum()
    for value, width in ((W, 3), (b, 1), (V, 4), (c, 1)):
        expected = expected + dist.Normal(0 * value, 0.7 / math.sqrt(width)).log_prob(value).sum()
    expected = expected + dist.HalfNormal(2.5 * y.std()).log_prob(s)
    assert float(trace.log_prob_sum()) == pytest.approx(float(expected), rel=1e-10)


def test_without_hidden_layers_it_is_the_linear_regression():
    x, y = columns(8), scalars(8, seed=3)
    linear = Regression(spec(8), weight_scale=3**-0.5, intercept_scale=1.0, known_scale=0.5)
    network = BayesianNetwork(spec(8), hidden=(), noise=0.5)
    draws = poutine.trace(linear).get_trace(x, y)
    b, w = draws.nodes["intercept"]["value"], draws.nodes["weights"]["value"]
    same = {"weight_1": w[None], "bias_1": b[None]}
    found = poutine.trace(poutine.condition(network, same)).get_trace(x, y)
    assert float(found.log_prob_sum()) == pytest.approx(float(draws.log_prob_sum()), rel=1e-10)


@pytest.mark.parametrize("classes", [0, 3])
def test_draws_in_a_plate_of_particles_are_those_of_a_loop(classes):
    """A wrong dimension of a layer would mix the particles: the ELBO of many is the mean of its particles' own."""
    x = columns(8)
    y = torch.arange(8) % 3 if classes else scalars(8, seed=3)
    others = (ColumnSpec("label", (), "class", ("a", "b", "c")),) if classes else ()
    model = BayesianNetwork(DataSpec("made up", 8, (3,), "real", torch.float64, "made up", others=others), hidden=(4,))
    guide = DiagNormal(model, (x, y), start="prior")
    with pyro.get_param_store().scope(), torch.no_grad(), pyro.plate("particles", 5, dim=-2):
        trace = poutine.trace(guide).get_trace(x, y)
        many = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x, y)
    many.compute_log_prob()
    for particle in range(5):
        draws = {n: trace.nodes[n]["value"][particle, 0] for n in trace.stochastic_nodes if n != "particles"}
        draws = {n: value for n, value in draws.items() if n in many.nodes}
        one = poutine.trace(poutine.condition(model, draws)).get_trace(x, y)
        one.compute_log_prob()
        torch.testing.assert_close(many.nodes["y"]["log_prob"][particle], one.nodes["y"]["log_prob"], **EXACT)
    with pyro.get_param_store().scope():
        assert math.isfinite(Trace_ELBO(num_particles=3, vectorize_particles=True).loss(model, guide, x, y))


def test_unknown_classes_are_no_data():
    x, y = columns(8), torch.tensor([0, 1, -1, 2, -1, 0, 1, 2])
    data = DataSpec("made up", 8, (3,), "real", torch.float64, "made up")
    model = BayesianNetwork(data, likelihood="categorical", classes=3)
    trace = poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    assert ((trace.nodes["y"]["log_prob"] == 0) == (y == -1)).all()


@pytest.mark.slow
def test_it_tells_the_wines_apart():
    """Three classes of 178 wines, a third of them held out: with averaged probabilities at most two mistakes in 60."""
    table = load_wine()
    x, y = torch.as_tensor(table.data, dtype=torch.float32), torch.as_tensor(table.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    fitted, rest = order[60:], order[:60]
    options = {"steps": 800, "lr": 0.02, "heldout": 0, "compile": False, "progress": False}
    run = pyro_vi.fit("bayesian_network", "diag_normal", (x[fitted], y[fitted]), **options)
    probs = torch.zeros(60, 3)
    with pyro.get_param_store().scope(), torch.no_grad():
        for _ in range(50):
            z = run.guide(x[fitted], y[fitted])
            layers = [(z[f"weight_{i}"], z[f"bias_{i}"]) for i in (1, 2)]
            probs += run.model.network(x[rest], layers).softmax(-1) / 50
    assert int((probs.argmax(-1) != y[rest]).sum()) <= 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prior_scale": 0.0}, "prior_scale is a standard deviation"),
        ({"noise": "gamma"}, "a number or 'half_normal'"),
        ({"noise": -1.0}, "noise is a standard deviation"),
        ({"likelihood": "poisson"}, "one of auto, normal, categorical"),
        ({"hidden": (0,)}, "positive whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        BayesianNetwork(spec(), **options)


def test_targets_that_are_missing_are_asked_for():
    with pytest.raises(InputError, match="has no targets; give them too"):
        pyro_vi.fit("bayesian_network", "diag_normal", columns(), steps=1, progress=False)
