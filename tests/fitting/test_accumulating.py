"""Gradient accumulation: k batches of b rows give the steps of one batch of k b rows, to rounding."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from catalogue import columns, number, scalars
from small_fits import DIAGONAL, LINEAR, digits, in_main_thread, nothing, quick, same, same_fit
from torch import Tensor, nn

from pyro_vi import FitError, Run, UsageError, fit
from pyro_vi.data.loading import load
from pyro_vi.estimators.accumulating import Parts, accumulated
from pyro_vi.fitting.annealing import weight_at


class Model(nn.Module):
    """z ~ N(0, I), x ~ N(W z + b, 1)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.Linear(2, 3).double()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 60, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


class Point(nn.Module):
    """z = V x + c: without draws, so that the loss is a mean over rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 60, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Delta(self.encoder(x)).to_event(1))


def exactly(rows: int, **options: Any) -> Run:
    return quick(Model(), Point(), load(columns(rows), heldout=0.0), elbo="trace", steps=None, check=False, **options)


SGD = partial(torch.optim.SGD, lr=0.02, momentum=0.5)


def assert_same(one: Run, two: Run, digits: float = 1e-10) -> None:
    """Parameters and records agree to rounding; loss, rate, weight and counts too."""
    first, second = one.pair.state_dict(), two.pair.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=digits, atol=digits)
    assert len(one.history) == len(two.history)
    for a, b in zip(one.history, two.history, strict=True):
        for key in ("step", "epoch", "loss", "log_joint", "grad_norm", "lr", "beta"):
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=digits, abs=digits, nan_ok=True), key


@pytest.mark.parametrize("rows", [48, pytest.param(50, marks=pytest.mark.slow)])
def test_accumulated_batches_are_one_batch_of_their_rows(rows, few_records):
    """An epoch is 20 + 20 + 8 rows, in batches of 5 + 5 + 5 + 5 and 5 + 3; with 50 rows the last ones are 5 + 5."""
    options: dict[str, Any] = {"optimizer": SGD, "schedule": "cosine", "warmup": 3, "clip_norm": 2.0}
    one, many = (exactly(rows, epochs=3, batch_size=size, accumulate=k, **options) for size, k in ((20, 1), (5, 4)))
    assert (one.steps, many.steps) == (9, 9)
    assert [record["epoch"] for record in many.history][-1] == 2
    assert_same(one, many)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam", "lr": 0.02},
        {"optimizer": "dog"},
        {"optimizer": pyro.optim.SGD({"lr": 1e-3}), "clip_norm": 0.5},
        {"optimizer": SGD, "schedule": partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5)},
        {"optimizer": SGD, "drop_last": True},
        {"optimizer": SGD, "shuffle": False, "cycles": 2},
    ],
    ids=["Adam", "DoG", "Pyro's, on the sum", "scheduler", "drop_last", "cycles"],
)
def test_accumulation_with_other_options(options, few_records):
    """With drop_last, the batch of 3 rows is left out: one batch of 20 has 20 + 20 of 53 rows, four of 5 have 20 + 20 + 10."""
    rows = 53 if "drop_last" in options else 48
    many = exactly(rows, epochs=4, batch_size=5, accumulate=4, **options)
    if "drop_last" in options:
        assert (many.steps, many.history[-1]["epoch"]) == (12, 3)
        return
    one = exactly(rows, epochs=4, batch_size=20, **options)
    assert_same(one, many)


def counted(x: Tensor) -> None:
    """x ~ N(m, 1), in a plate of the batch's own length: the loss is a mean over the rows of the batch."""
    m = pyro.param("m", number(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


@pytest.mark.parametrize("rate", ["per datum", "on the sum"])
def test_each_datum_counts_equally(rate):
    """A step of rate ½ from m = 0 goes half way to the mean of its rows: 7, in batches of 3 + 3 + 1."""
    x = scalars(7) + 3.0
    optimizer = partial(torch.optim.SGD, lr=0.5) if rate == "per datum" else pyro.optim.SGD({"lr": 0.5 / 7})
    run = fit(
        counted, nothing, load(x, heldout=0.0), elbo="trace", steps=1, batch_size=3, accumulate=3, optimizer=optimizer,
        schedule="constant" if rate == "per datum" else None, check=False, progress=False,
    )  # fmt: skip
    assert abs(float(run.params["m"]) - 0.5 * float(x.mean())) < 1e-12


@pytest.mark.parametrize("mapped", [False, True])
def test_more_batches_than_an_epoch_has_are_the_whole_epoch(mapped, tmp_path):
    np.save(tmp_path / "x.npy", columns(8).numpy())
    x = load(np.load(tmp_path / "x.npy", mmap_mode="r") if mapped else columns(8), dtype=torch.float64, heldout=0.0)
    assert x.mapped == mapped
    options: dict[str, Any] = {"elbo": "trace", "steps": 2, "batch_size": 5, "optimizer": SGD}
    two, many = (quick(Model(), Point(), x, accumulate=k, **options) for k in (2, 10**30))
    assert same(two.pair.state_dict(), many.pair.state_dict())


@pytest.mark.slow
@in_main_thread
def test_a_resumed_fit_has_the_bits_of_an_uninterrupted_one(tmp_path):
    """An epoch is 1498 rows: three steps of 480 rows in batches of 160, and one of 58 rows."""
    options = {"batch_size": 160, "accumulate": 3}
    with pytest.raises(KeyboardInterrupt):
        digits(tmp_path / "run", 6, **options)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["position"]["batch"] == 2
    assert same_fit(digits(tmp_path / "run", resume=True, **options), digits(None, **options))


def test_a_run_is_not_resumed_with_another_number_of_batches(tmp_path):
    run = quick(batch_size=5, accumulate=2, out=tmp_path / "run")
    assert run.config["accumulate"] == 2
    with pytest.raises(UsageError, match=r"\(accumulate was 2, is None\)"):
        quick(batch_size=5, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1, not 0"),
        (
            {"accumulate": 4, "batch_size": 1000},
            "accumulate=4 averages batches of one epoch, and each step sees all rows; give a batch_size of fewer rows, or "
            "leave accumulate out",
        ),
    ],
)
def test_nothing_to_accumulate_is_refused_in_one_line(options, text):
    with pytest.raises(UsageError) as caught:
        quick(**options)
    assert str(caught.value) == text


@pytest.mark.slow
def test_rows_that_are_read_from_a_file_give_the_bits_of_rows_in_memory(tmp_path):
    path: Path = tmp_path / "rows.npy"
    np.save(path, columns(53).numpy())
    options: dict[str, Any] = {"batch_size": 5, "accumulate": 3, "drop_last": True, "steps": 10, "compile": False}
    mapped = load(np.load(path, mmap_mode="r"), dtype=torch.float64, heldout=0.0)
    assert mapped.mapped
    one, two = (quick(Model(), Point(), d, elbo="trace", **options) for d in (mapped, load(columns(53), heldout=0.0)))
    assert same(one.pair.state_dict(), two.pair.state_dict())
    assert one.history[-1]["epoch"] == 2  # 4 steps an epoch, of 15 + 15 + 15 + 5 rows


def logarithms(x: Tensor) -> None:
    """log x ~ N(m, 1): 0 has no density."""
    m = pyro.param("m", number(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0, validate_args=False), obs=x.log())


def test_a_loss_that_is_not_finite_names_the_row():
    """Row 7 is the second of the third batch of a step."""
    x = scalars(12).abs() + 1.5
    x[7] = 0.0
    with pytest.raises(
        FitError, match=r"^the loss is nan at step 1 .*: log p of site 'x' is not finite for data 7; there 'x'"
    ):
        fit(
            logarithms, nothing, load(x, heldout=0.0), elbo="trace", steps=3, batch_size=3, accumulate=4, shuffle=False,
            check=False, progress=False,
        )  # fmt: skip


class Normed(nn.Module):
    """x ~ N(m, 1) after a batch norm of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.m = nn.BatchNorm1d(3, momentum=0.5, dtype=torch.float64), nn.Parameter(number(0.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.m + 0 * self.norm(x), 1.0).to_event(1), obs=x)


def test_a_batch_norm_sees_each_batch():
    """Its running mean is ½ of the last batch, ¼ of the one before, and so on."""
    x = columns(12)
    run = fit(
        Normed(), nothing, load(x, heldout=0.0), elbo="trace", steps=1, batch_size=4, accumulate=3, shuffle=False,
        check=False, progress=False,
    )  # fmt: skip
    means = [part.mean(0) for part in x.split(4)]
    torch.testing.assert_close(
        run.model.norm.running_mean, means[0] / 8 + means[1] / 4 + means[2] / 2, rtol=1e-10, atol=1e-10
    )


def test_each_batch_is_differentiated_before_the_next_is_evaluated():
    """So no more than the graph of one batch is in memory."""
    calls: list[str] = []

    class Traced(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, w: Tensor) -> Tensor:
            calls.append("evaluated")
            return w.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            calls.append("differentiated")
            return gradient

    w = torch.tensor(2.0, requires_grad=True)
    parts = Parts([(torch.ones(2),), (torch.ones(2),), (torch.ones(1),)])
    accumulated(lambda batch: Traced.apply(w) * batch[0].mean(), parts, [w]).backward()
    assert calls == 3 * ["evaluated", "differentiated"]
    assert float(w.grad) == pytest.approx(1.0)


@pytest.mark.slow
def test_weights_count_steps_and_not_batches():
    run = quick(LINEAR, DIAGONAL, load(columns(48), heldout=0.0), steps=6, batch_size=4, accumulate=4, warmup=4)
    assert [record["beta"] for record in run.history] == [weight_at(step, 6, 1.0, 4) for step in range(6)]
    assert [record["epoch"] for record in run.history] == [math.floor(step / 3) for step in range(6)]
