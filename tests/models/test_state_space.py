"""The state space model against the dense normal, the diffuse limit, and the published likelihood of the Nile series."""

import csv
import os
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyro_vi
from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.guides.exact import Exact
from pyro_vi.models.state_space import StateSpace

EXACT = {"rtol": 1e-10, "atol": 1e-10}
needs_folder = pytest.mark.skipif("PYRO_VI_DATA" not in os.environ, reason="PYRO_VI_DATA is not set")
NILE = {"state_variance": 1469.1, "noise_variance": 15099.0}
GENERAL = {
    "transition": [[0.9, 0.3], [-0.2, 0.8]],
    "observation": [[1.0, 0.5], [0.0, 1.0], [0.7, -0.3]],
    "state_variance": [[0.5, 0.2], [0.2, 0.4]],
    "noise_variance": [0.3, 0.6, 0.2],
    "mean": [0.5, -1.0],
    "variance": [[1.0, -0.3], [-0.3, 2.0]],
}


def spec(*shape: int, rows: int = 6) -> DataSpec:
    return DataSpec("made up", rows, shape, "real", torch.float64, "made up")


def nile() -> Tensor:
    with open(Path(os.environ["PYRO_VI_DATA"]) / "nile" / "nile.csv", encoding="utf-8") as file:
        return torch.tensor([float(row["flow"]) for row in csv.DictReader(file)], dtype=torch.float64)


def dense(model: StateSpace, mean: Tensor, first: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of the flat path, and the map to the flat data, by the recursion of moments."""
    Q, means, d = model.root("state") @ model.root("state").mT, [mean], len(mean)
    blocks = [[first]]
    for _ in range(steps - 1):
        means.append(model.F @ means[-1])
        row = [model.F @ block for block in blocks[-1]]
        blocks.append([*row, model.F @ blocks[-1][-1] @ model.F.mT + Q])
    covariance = torch.zeros(steps * d, steps * d, dtype=mean.dtype)
    for t in range(steps):
        for s in range(t + 1):
            covariance[t * d : t * d + d, s * d : s * d + d] = blocks[t][s]
            covariance[s * d : s * d + d, t * d : t * d + d] = blocks[t][s].mT
    return torch.cat(means), covariance, torch.block_diag(*[model.H] * steps)


@pytest.mark.parametrize("states", ["path", "steps"])
def test_evidence_and_smoother_are_those_of_the_dense_normal(states):
    x = columns(5, 3)
    model = StateSpace(spec(3), series="one", states=states, learn=False, **GENERAL)
    mean, covariance, H = dense(model, model.mean, torch.tensor(GENERAL["variance"], dtype=torch.float64), 5)
    noise = torch.block_diag(*[model.root("noise") @ model.root("noise").mT] * 5)
    data = dist.MultivariateNormal(H @ mean, H @ covariance @ H.mT + noise)
    torch.testing.assert_close(model.log_evidence(x), data.log_prob(x.flatten()), **EXACT)
    gain = covariance @ H.mT @ torch.linalg.inv(data.covariance_matrix)
    means, covariances = model.smooth(x)
    after = covariance - gain @ H @ covariance
    torch.testing.assert_close(means.flatten(), mean + gain @ (x.flatten() - H @ mean), **EXACT)
    torch.testing.assert_close(
        covariances, torch.stack([after[2 * t : 2 * t + 2, 2 * t : 2 * t + 2] for t in range(5)])
    )
    if states == "path":
        prior, posterior = model.prior(x), model.posterior(x)["z"]
        torch.testing.assert_close(prior.covariance_matrix, covariance, **EXACT)
        torch.testing.assert_close(prior.mean, mean, **EXACT)
        torch.testing.assert_close(posterior.covariance_matrix, after, **EXACT)


@pytest.mark.parametrize("form", ["local_level", "local_linear_trend"])
def test_a_diffuse_start_is_the_limit_of_a_wide_one(form):
    """log p(x_k+1..T | x_1..k) under z_1 ~ N(0, κ), for κ to infinity."""
    x = columns(9, 1)[:, 0].cumsum(0)
    variances = {"state_variance": [0.4] if form == "local_level" else [0.4, 0.2], "noise_variance": 0.7}
    exact = StateSpace(spec(), form=form, learn=False, **variances)
    assert exact.used == {"local_level": 1, "local_linear_trend": 2}[form]
    wide = StateSpace(spec(), form=form, learn=False, mean=[0.0] * exact.used, variance=1e7, **variances)
    limit = wide.log_evidence(x) - wide.log_evidence(x[: exact.used])
    assert float(exact.log_evidence(x)) == pytest.approx(float(limit), abs=1e-5)
    later = wide.smooth(x)[0][exact.used - 1 :]
    torch.testing.assert_close(exact.smooth(x)[0], later, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@needs_folder
def test_the_evidence_of_the_nile_series():
    """−632.5456 for observations 2 to 100 with a diffuse start (Durbin and Koopman 2012, section 2.10)."""
    model, x = StateSpace(spec(), learn=False, **NILE), nile()
    assert float(model.log_evidence(x)) == pytest.approx(-632.5456, abs=5e-5)
    found = pyro_vi.evidence(model, Exact(model, (x,)), x)
    assert found.attrs["per"] == "data set" and found.attrs["total"] == pytest.approx(-632.5456, abs=5e-5)
    # The variances are those of the maximum.
    learned = StateSpace(spec(), **NILE)
    for gradient in torch.autograd.grad(learned.log_evidence(x), list(learned.parameters())):
        assert abs(float(gradient)) < 0.02


@pytest.mark.parametrize("form", ["local_level", "local_linear_trend"])
@pytest.mark.parametrize("states", ["path", "steps"])
def test_with_the_exact_posterior_every_elbo_is_the_evidence(form, states):
    x = columns(6, 7).cumsum(1)
    model = StateSpace(spec(7), form=form, states=states, noise_variance=1.3, learn=False)
    with pyro.get_param_store().scope():
        loss = Trace_ELBO().loss(model, Exact(model, (x,)), x)
    assert -loss == pytest.approx(float(model.log_evidence(x).sum()), rel=1e-10)


def test_padded_series_have_the_evidence_and_the_elbo_of_their_own_steps():
    x, lengths = columns(6, 7).cumsum(1), torch.tensor([7, 3, 5, 7, 2, 6])
    model = StateSpace(spec(7), states="steps", noise_variance=1.3, learn=False)
    each = torch.cat([model.log_evidence(x[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())])
    changed = torch.where(torch.arange(7) < lengths[:, None], x, 1e3)
    torch.testing.assert_close(model.log_evidence(changed, lengths), each, **EXACT)
    with pyro.get_param_store().scope():
        loss = Trace_ELBO().loss(model, Exact(model, (x, lengths)), changed, lengths)
    assert -loss == pytest.approx(float(each.sum()), rel=1e-10)
    # The joint density of any states is the sum of those of the series by themselves.
    states = {f"z_{t}": columns(6, 1, seed=t) for t in range(1, 8)}
    whole = poutine.trace(poutine.condition(model, states)).get_trace(changed, lengths).log_prob_sum()
    model.data, parts = spec(7, rows=1), 0.0
    for i, n in enumerate(lengths.tolist()):
        own = {name: value[i : i + 1] for name, value in states.items()}
        parts += float(poutine.trace(poutine.condition(model, own)).get_trace(x[i : i + 1, :n]).log_prob_sum())
    assert float(whole) == pytest.approx(parts, rel=1e-10)


def test_the_start_takes_the_variance_of_steps():
    x = torch.tensor([0.0, 3.0, 0.0, 3.0], dtype=torch.float64)
    model = StateSpace(spec(), state_variance=2.0)
    model.start(x)
    assert float(model.root("noise").detach()) ** 2 == pytest.approx(3.0)
    assert float(model.root("state").detach()) ** 2 == pytest.approx(2.0)
    padded = StateSpace(spec(4))
    padded.start(torch.stack([x, torch.tensor([0.0, 3.0, 99.0, 99.0], dtype=torch.float64)]), torch.tensor([4, 2]))
    assert float(padded.root("noise").detach()) ** 2 == pytest.approx(3.0)


def test_a_single_row_is_one_series():
    x = columns(7, 1)[:, 0].cumsum(0)
    one, row = StateSpace(spec(), learn=False), StateSpace(spec(7, 1, rows=1), learn=False)
    torch.testing.assert_close(row.log_evidence(x[None, :, None]), one.log_evidence(x), **EXACT)
    trace = poutine.trace(row).get_trace(x[None, :, None])
    assert trace.nodes["z"]["value"].shape == (7,) and trace.nodes["z"]["cond_indep_stack"] == ()


@pytest.mark.slow
@needs_folder
def test_a_full_normal_reaches_the_evidence_and_the_variances():
    """The posterior of the path is a normal: at fixed variances the gap closes, learned variances go to the maximum."""
    x = nile()
    options = {"heldout": 0, "compile": False, "progress": False}
    model = "state_space(state_variance=1469.1, noise_variance=15099.0, learn=False)"
    run = pyro_vi.fit(model, "full_normal", x, steps=300, lr=0.001, **options)
    with pyro.get_param_store().scope(), torch.no_grad():
        q = poutine.trace(run.guide).get_trace(x).nodes["z"]["fn"]
        gap = float(torch.distributions.kl_divergence(q, run.model.posterior(x)["z"]))
    assert gap < 0.3
    run = pyro_vi.fit("state_space", "full_normal", x, steps=3000, lr=0.03, **options)
    assert float(run.model.log_evidence(x).detach()) > -632.5456 - 0.25


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "level"}, "form must be one of local_level"),
        ({"noise_variance": -1.0}, "the noise variance must be positive definite"),
        ({"transition": [[1.0, 0.0], [0.0, 1.0]]}, r"needs observation, of shape \(1, 2\)"),
        ({"transition": [[1.0, 0.0], [0.0, 1.0]], "observation": [[1.0, 0.0]]}, "do not determine the states"),
        ({"mean": [0.0, 0.0]}, r"mean must have shape \(1,\), not \(2,\)"),
        ({"series": "rows"}, "takes one series"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        StateSpace(spec(), **options)


def test_a_path_takes_no_lengths_and_a_start_needs_steps():
    with pytest.raises(InputError, match="use states='steps'"):
        StateSpace(spec(7), states="path")(columns(6, 7), torch.full((6,), 7))
    with pytest.raises(InputError, match="2 of them start the filter"):
        StateSpace(spec(), form="local_linear_trend")(columns(2, 1)[:, 0])
