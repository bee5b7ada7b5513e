"""The loop: each step follows the gradient, rate, limit and weight of the KL that it says, and failures name their cause."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, global_pair, number, scalars
from small_fits import (
    DIAGONAL,
    LINEAR,
    nothing,
)
from torch import Tensor, nn

from pyro_vi import fit
from pyro_vi.data.dataset import Data
from pyro_vi.data.loading import load
from pyro_vi.elbo.decomposition import from_run
from pyro_vi.elbo.traces import draw_traces
from pyro_vi.errors import InputError
from pyro_vi.fitting.settings import SCHEDULES
from pyro_vi.programs.isolation import isolated


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1.0)


def one_step(model: Any, guide: Any, data: Data, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """A fit of one step of SGD with rate 1, and minus the change of each parameter: the gradient that was used."""
    run = fit(model, guide, data, steps=1, optimizer=sgd, snapshots=(0.0, 1.0), progress=False, seed=5, **options)
    return run, {name: run.snapshots[0][name] - run.snapshots[1][name] for name in run.snapshots[0]}


def joint_norm(values: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in values.values()))


# ---- the objective


@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("batch_size", [16, 1000])
@pytest.mark.parametrize("programs", ["local", "global"])
def test_a_step_follows_the_gradient_of_reconstruction_minus_beta_kl(elbo, beta, batch_size, programs):
    """The draw is that of the seed, so that autograd of the terms gives the gradient to rounding."""
    if programs == "local":
        model, guide, data = LINEAR, DIAGONAL, load(columns(50))
    else:
        model, guide, data = *global_pair(), load(scalars(50), heldout=0.0)
    run, used = one_step(model, guide, data, elbo=elbo, beta=beta, batch_size=batch_size)
    rows, batch = next(run.data.batches(0, batch_size))
    in_order = rows.tolist() == list(range(len(rows)))
    assert in_order == (batch_size == 1000)  # all rows come as they were given, and minibatches are shuffled
    pair = run.at(0)
    kind = "sampled" if elbo == "trace" else "analytic"
    with isolated(5):
        drawn = draw_traces(pair.model, pair.guide, batch)
    draw = from_run(drawn, len(batch[0]), kl=kind)
    objective = -(draw.reconstruction - beta * draw.kl).mean()
    owned = {name: parameter for name, parameter in pair.named_parameters(remove_duplicate=False)}
    gradients = torch.autograd.grad(objective, list(owned.values()), allow_unused=True)
    assert any(gradient is not None and bool(gradient.abs().max() > 1e-3) for gradient in gradients)
    for name, gradient in zip(owned, gradients, strict=True):
        expected = torch.zeros_like(owned[name]) if gradient is None else gradient
        torch.testing.assert_close(used[name], expected, rtol=1e-10, atol=1e-10)
    assert abs(run.history[0]["loss"] - float(objective.detach())) < 1e-10
    assert run.history[0]["beta"] == beta


def test_with_the_exact_guide_loss_and_elbo_are_the_evidence():
    """log p(x, z) - log q(z) is log p(x) for every z, so that the records are known without any draw."""
    data = load(columns(50))
    run = fit(LINEAR, "exact", data, elbo="trace", steps=4, batch_size=1000, snapshots=(0.0, 1.0), progress=False)
    before, after = (run.at(step).model.log_evidence(data.train()[0]).mean().item() for step in (0, 4))
    assert abs(run.history[0]["loss"] + before) < 1e-10
    last = run.history[-1]
    assert last["step"] == 4
    assert abs(last["elbo"] - after) < 1e-10
    assert abs(last["elbo"] - (last["reconstruction"] - last["kl"])) < 1e-10
    held = run.model.log_evidence(data.heldout[0]).mean().item()
    assert abs(last["heldout_elbo"] - held) < 1e-10


def test_a_record_has_the_mean_loss_since_the_one_before(few_records):
    """A quarter of 12 steps is 3; the loss of a step is minus the evidence under the parameters before it."""
    data = load(columns(50))
    at = tuple(s / 12 for s in range(13))
    run = fit(LINEAR, "exact", data, elbo="trace", steps=12, batch_size=1000, snapshots=at, progress=False)
    losses = [-run.at(s).model.log_evidence(data.train()[0]).mean().item() for s in range(12)]
    expected = {1: losses[:1], 3: losses[1:3], 6: losses[3:6], 9: losses[6:9], 12: losses[9:]}
    found = {record["step"]: record["loss"] for record in run.history}
    assert found.keys() == expected.keys()
    for step, some in expected.items():
        assert abs(found[step] - sum(some) / len(some)) < 1e-10


@pytest.mark.slow
def test_the_elbo_of_a_record_is_unannealed(few_records):
    """A fit with beta = 0 minimises the reconstruction alone; the ELBO beside has the whole KL."""
    run = fit(LINEAR, DIAGONAL, load(columns(100)), beta=0.0, steps=100, lr=0.1, progress=False)
    last = run.history[-1]
    assert abs(last["elbo"] - (last["reconstruction"] - last["kl"])) < 1e-10
    assert last["kl"] > 5
    assert -last["loss"] - last["elbo"] > 5


@pytest.mark.parametrize("elbo", ["trace", pytest.param("mean_field", marks=pytest.mark.slow)])
def test_without_the_kl_the_guide_collapses_to_a_point(few_records, elbo):
    """Nothing holds the scales open: they fall along the whole fit, and level off under the whole KL."""
    data = load(columns(100))
    at = (0.0, 0.25, 0.5, 0.75, 1.0)
    options = {"schedule": "constant", "progress": False}

    def scales(beta: float) -> list[float]:
        run = fit(LINEAR, DIAGONAL, data, elbo=elbo, beta=beta, steps=300, lr=0.05, snapshots=at, **options)
        with torch.no_grad():
            return [float(run.at(s).guide.parameters_of(*data.train())["z"][1].mean()) for s in sorted(run.snapshots)]

    free, held = scales(0.0), scales(1.0)
    assert all(later < 0.9 * earlier for earlier, later in pairwise(free))
    assert free[-1] < 0.25 * held[-1]
    assert abs(math.log(held[-1] / held[-2])) < 0.25 * abs(math.log(free[-1] / free[-2]))


# ---- warm-up, rate, limit


def test_warmup_raises_the_weight_step_by_step():
    run = fit(LINEAR, DIAGONAL, load(columns(50)), steps=8, warmup=4, beta=2.0, progress=False)
    assert [record["beta"] for record in run.history] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.slow
def test_warmup_weighs_the_gradient_and_not_the_record_only():
    """The first step of a warm-up is that of beta = 0."""
    data = load(columns(50))
    _, warm = one_step(LINEAR, DIAGONAL, data, warmup=1)
    _, free = one_step(LINEAR, DIAGONAL, data, beta=0.0)
    _, whole = one_step(LINEAR, DIAGONAL, data)
    assert all(torch.equal(warm[name], free[name]) for name in warm)
    assert any(not torch.equal(warm[name], whole[name]) for name in warm)


def shifted(x: Tensor) -> None:
    """x ~ Laplace(m, 1) far to the right of m: the gradient of the loss per datum in m is -1 at every step."""
    m = pyro.param("m", number(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Laplace(m, 1.0), obs=x)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_of_each_step_follows_the_schedule(schedule):
    """With a gradient of -1, m is the sum of the rates so far."""
    rates = {
        "constant": [1.0] * 8,
        "plateau": [1.0] * 8,  # the ELBO rises to the end
        "linear": [1 - s / 8 for s in range(8)],
        "cosine": [0.5 + 0.5 * math.cos(math.pi * s / 8) for s in range(8)],
    }[schedule]
    at = tuple(s / 8 for s in range(9))
    run = fit(
        shifted,
        nothing,
        load(scalars(30) + 1000, heldout=0.0),
        optimizer=partial(torch.optim.SGD, lr=0.5),
        schedule=schedule,
        steps=8,
        snapshots=at,
        progress=False,
    )
    path = [float(run.snapshots[s]["model.m"]) for s in range(9)]
    for s, rate in enumerate(rates):
        assert abs(path[s + 1] - path[s] - 0.5 * rate) < 1e-10
        assert abs(run.history[s]["lr"] - 0.5 * rate) < 1e-12


@pytest.mark.parametrize("limit", [1e-3, 0.5])
def test_clipping_limits_the_joint_norm_and_keeps_the_direction(limit):
    """Pyro's own optimizers clip each parameter by itself: the joint norm is then sqrt(number of parameters) times as large."""
    data = load(3 * columns(50))
    _, free = one_step(LINEAR, DIAGONAL, data)
    run, clipped = one_step(LINEAR, DIAGONAL, data, clip_norm=limit)
    norm = joint_norm(free)
    assert norm > 1 and len(free) > 3
    # torch divides by the norm + 1e-6.
    assert abs(joint_norm(clipped) / (limit * norm / (norm + 1e-6)) - 1) < 1e-10
    for name, value in free.items():
        torch.testing.assert_close(clipped[name], value * (limit / (norm + 1e-6)), rtol=1e-10, atol=1e-12)
    assert abs(run.history[0]["grad_norm"] - joint_norm(clipped)) < 1e-10


def test_clipping_leaves_a_smaller_gradient_alone():
    data = load(columns(50))
    run, free = one_step(LINEAR, DIAGONAL, data)
    _, clipped = one_step(LINEAR, DIAGONAL, data, clip_norm=100.0)
    assert all(torch.equal(free[name], clipped[name]) for name in free)
    assert abs(run.history[0]["grad_norm"] - joint_norm(free)) < 1e-10


def test_the_objective_is_per_datum_whatever_the_plate():
    """The same model with a plate of its own size and with one as long as the batch takes the same steps."""

    def sized(x: Tensor) -> None:
        m = pyro.param("m", number(0.3))
        with pyro.plate("data", 30, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def plain(x: Tensor) -> None:
        m = pyro.param("m", number(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    data = load(scalars(30), heldout=0.0)
    _, batch = next(data.batches(0, 10))
    for model in (sized, plain):
        _, used = one_step(model, nothing, data, batch_size=10)
        assert abs(float(used["model.m"]) - (0.3 - float(batch[0].mean()))) < 1e-10


def test_a_pair_without_parameters_is_refused_and_leaves_no_folder(tmp_path):
    fixed, out = "linear_gaussian(latent_dim=2, learn=False)", tmp_path / "run"
    with pytest.raises(InputError, match="no parameters to fit"):
        fit(fixed, "exact", load(columns(50)), elbo="trace", steps=2, out=out, progress=False)
    assert not (tmp_path / "run").exists()


def test_one_optimizer_holds_all_parameters_once():
    """Also those that model and guide share."""
    seen: list[list[nn.Parameter]] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        seen.append(list(parameters))
        return torch.optim.Adam(seen[-1], 1e-3)

    run = fit(LINEAR, "exact", load(columns(50)), steps=1, elbo="trace", optimizer=make, progress=False)
    assert len(seen) == 1
    assert [id(p) for p in seen[0]] == [id(p) for p in run.pair.parameters()]


def test_every_row_is_seen_once_in_an_epoch():
    """Steps of the mean of x: with SGD of rate 1 on (m - x)² / 2, m is the mean of each batch in turn."""

    def model(x: Tensor) -> None:
        m = pyro.param("m", number(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    data = load(scalars(30), heldout=0.0)
    at = tuple(s / 8 for s in range(1, 9))
    run = fit(
        model, nothing, data, optimizer=sgd, schedule="constant", epochs=2, batch_size=8, snapshots=at, progress=False
    )
    assert run.steps == 8
    expected = [float(batch[0].mean()) for epoch in (0, 1) for _, batch in data.batches(epoch, 8)]
    found = [float(run.snapshots[s]["model.m"]) for s in range(1, 9)]
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-10
    assert sorted(torch.cat([index for index, _ in data.batches(1, 8)]).tolist()) == list(range(30))
    assert [record["epoch"] for record in run.history] == [0] * 4 + [1] * 4
