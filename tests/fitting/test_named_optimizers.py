"""Optimizers of another library: their steps, where they are evaluated, and what is said where they are missing."""

import sys
from typing import Any

import pytest
import torch
from small_fits import quick, same, same_fit
from torch import nn

import pyro_vi
from pyro_vi import InputError, UsageError
from pyro_vi.fitting.averaging import at_evaluation, evaluated
from pyro_vi.fitting.named_optimizers import OPTIMIZERS, library, named
from pyro_vi.fitting.reading import newest

NAMES = ("prodigy", "schedule_free")


@pytest.fixture
def installed() -> Any:
    return pytest.importorskip("pytorch_optimizer")


@pytest.mark.parametrize("name", NAMES)
def test_a_library_that_is_missing_is_named_with_the_command(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UsageError) as caught:
        quick(optimizer=name)
    assert str(caught.value) == (
        f"optimizer '{name}' needs the package pytorch-optimizer; install it: pip install 'pyro-vi[optimizers]'"
    )
    with pytest.raises(UsageError, match="no optimizer named 'prodigi'; did you mean 'prodigy'"):
        named("prodigi")
    assert all(library(cls.__new__(cls)) is None for cls in OPTIMIZERS.values())


@pytest.mark.parametrize("name", ["schedule_free", "Schedule-Free(lr=0.1)"])
def test_schedule_free_is_evaluated_at_the_average_of_its_base_iterates(name, installed):
    """At a constant rate, x is the mean of all z (Defazio et al. 2024); the parameter itself is y = (1 − β) z + β x."""
    cls, options = named(name)
    y = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = cls([y], **{"lr": 0.05, **options})  # type: ignore[arg-type]
    optimizer.train()
    assert torch.equal(evaluated(optimizer)[id(y)], y)
    seen = []
    for step in range(20):
        y.grad = (y.detach() - 3) * (1 + step % 3)
        optimizer.step()
        seen.append(optimizer.state[y]["z"].clone())
        before = y.detach().clone()
        x = evaluated(optimizer)[id(y)]
        torch.testing.assert_close(x, torch.stack(seen).mean(0), rtol=0, atol=1e-10)
        torch.testing.assert_close(before, 0.1 * seen[-1] + 0.9 * x, rtol=0, atol=1e-10)
        with at_evaluation(optimizer):
            assert torch.equal(y, x)
        assert torch.equal(y, before) and optimizer.param_groups[0]["train_mode"]


def test_prodigy_finds_the_distance_to_the_minimum(installed):
    """On |x − 3| from 0, the lower bound of the distance grows from 1e-6 towards 3, and never passes it."""
    cls, _ = named("prodigy")
    x = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer, found = cls([x]), []
    for _ in range(300):
        optimizer.zero_grad()
        (x - 3).abs().sum().backward()
        optimizer.step()
        found.append(optimizer.param_groups[0]["d"])
    assert found == sorted(found) and 0.3 < found[-1] <= 3 and abs(float(x.detach()) - 3) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_fit_has_the_same_bits(name, installed, few_records, tmp_path):
    options: dict[str, Any] = {"optimizer": name, "schedule": "constant", "snapshots": (1.0,)}
    whole = quick(steps=12, **options)
    quick(steps=7, out=tmp_path / "run", **options)
    allowed: dict[str, Any] = {"resume": True, "allow": ("steps", "kept")}
    resumed = quick(steps=12, out=tmp_path / "run", **allowed, **options)
    assert same(resumed.pair.state_dict(), whole.pair.state_dict())
    assert same(resumed.last.state_dict(), whole.last.state_dict())
    assert resumed.config["lr"] == (None if name == "prodigy" else 3e-3)
    assert resumed.config["optimizer_library"].startswith("pytorch-optimizer ")
    opened = pyro_vi.open(tmp_path / "run", data=whole.data).run
    assert same_fit(opened, resumed) and same(opened.last.state_dict(), whole.last.state_dict())
    different = name == "schedule_free"
    assert same(whole.last.state_dict(), whole.pair.state_dict()) is not different
    assert same(whole.snapshots[12], whole.pair.state_dict())
    assert ("last_elbo" in whole.history[-1]) is different


@pytest.mark.slow
def test_a_new_rate_leaves_the_average_of_a_schedule_free_optimizer(installed, few_records, tmp_path):
    options: dict[str, Any] = {"optimizer": "schedule_free", "out": tmp_path / "run"}
    quick(steps=7, lr=0.01, **options)
    sums = []
    for steps in (7, 8):
        quick(steps=steps, lr=0.001, resume=True, allow=("lr", "steps", "kept"), **options)
        (group,) = newest(tmp_path / "run", None)[0]["optimizer"]["param_groups"]
        sums.append(group["weight_sum"])
    assert group["lr"] == 0.001 and sums[0] > 0 and sums[1] / sums[0] == pytest.approx(8 / 7)


@pytest.mark.slow
def test_records_do_not_change_the_steps_of_a_schedule_free_optimizer(installed, few_records, monkeypatch):
    many = quick(optimizer="schedule_free", steps=12)
    monkeypatch.setattr("pyro_vi.fitting.loop.LOGGED", 1)
    few = quick(optimizer="schedule_free", steps=12)
    assert len(few.history) < len(many.history) and same(few.last.state_dict(), many.last.state_dict())


def test_what_schedule_free_cannot_be_combined_with(installed):
    with pytest.raises(UsageError, match="ScheduleFreeAdamW takes the place of a schedule; leave schedule out"):
        quick(optimizer="schedule_free", schedule="cosine")
    with pytest.raises(UsageError, match="ScheduleFreeAdamW averages its iterates by itself; leave average out"):
        quick(optimizer="schedule_free", average="polynomial")
    with pytest.raises(
        UsageError, match="nonfinite='restore' cannot put back the step sizes that ScheduleFreeAdamW keeps"
    ):
        quick(optimizer="schedule_free", nonfinite="restore")
    with pytest.raises(UsageError, match="has no option 'momentum'"):
        quick(optimizer="schedule_free(momentum=0.9)")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_steps_that_a_graph_would_freeze_stay_eager(name, installed, few_records):
    run, eager = (quick(optimizer=name, steps=12, compile=on) for on in ("auto", False))
    assert not run.compiled and same_fit(run, eager)
    with pytest.raises(InputError, match="keeps its step sizes as Python numbers, which a graph would freeze"):
        quick(optimizer=name, steps=12, compile=True)
