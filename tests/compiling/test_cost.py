"""The saving of compiled steps, estimated: by a clock that ticks at each look, and with the fit left where it stood."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vi.compiling import cost, products
from pyro_vi.compiling.cost import (
    FUSED,
    PER_TENSOR,
    SAVED,
    SECONDS,
    Estimate,
    estimate_step,
    measure,
    timed,
    to_capture,
    to_compile,
)
from pyro_vi.compiling.products import by_onednn, has_onednn
from pyro_vi.data.loading import load
from pyro_vi.errors import NoGraph
from pyro_vi.estimators.objective import Objective
from pyro_vi.estimators.table import get
from pyro_vi.fitting.loop import Loop
from pyro_vi.fitting.settings import Settings
from pyro_vi.programs.build import build_pair
from pyro_vi.programs.isolation import isolated
from pyro_vi.support.randomness import generators

ROWS, BATCH = 20, 8
Optimizer = torch.optim.Optimizer


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation takes a second, and so does every run without a look at its operations."""
    now = [0.0]

    def tick() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(cost, "time", SimpleNamespace(thread_time=tick, perf_counter=tick))


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-12)


def test_fused_operations_and_others(ticking):
    """By hand: a product, a sort and random numbers take what they took, three are fused, and a view takes no time."""
    a = torch.ones(3, 3)
    found = measure(lambda: torch.sort((a @ a.t() * 2).sum(0) + torch.rand(3)))
    operation = 1.0 - SECONDS["operation"]
    assert found.operations == 7
    assert found.eager == 1.0
    assert found.compiled == close(SECONDS["call"] + (3 + 3 * FUSED) * operation)
    assert found.captured == close(6.0)  # a transpose takes nothing


def test_a_large_product_is_timed_as_compiled_code_computes_it(ticking, monkeypatch):
    """By another call, of which only the time counts."""
    one, two = torch.rand(128, 256), torch.rand(256, 128)
    if not has_onednn():
        pytest.skip("this torch has no oneDNN")
    assert torch.allclose(by_onednn(one, two), one @ two)
    calls = []
    monkeypatch.setattr(cost, "by_onednn", lambda *factors: calls.append(factors))
    monkeypatch.setattr(products, "LARGE", 128 * 256 * 128)
    measure(lambda: one @ two)
    assert calls
    calls.clear()
    monkeypatch.setattr(products, "LARGE", 128 * 256 * 128 + 1)
    measure(lambda: one @ two)
    assert calls == []


def test_the_backward_pass_counts(ticking):
    """mm, sum; ones_like, expand, t, mm and what the gradient of a sum is made of."""
    a = torch.ones(3, 3, requires_grad=True)
    forward = measure(lambda: (a @ torch.ones(3, 3)).sum())
    both = measure(lambda: torch.autograd.grad((a @ torch.ones(3, 3)).sum(), a))
    assert both.operations > forward.operations + 3
    assert both.compiled > forward.compiled + 0.9  # the product of the gradient


def test_a_run_that_takes_long_is_not_repeated(monkeypatch):
    now, runs = [0.0], [0]

    def run() -> None:
        runs[0] += 1
        now[0] += 0.4

    clock = lambda: now[0]  # noqa: E731
    monkeypatch.setattr(cost, "time", SimpleNamespace(thread_time=clock, perf_counter=clock))
    assert measure(run).eager == close(0.4)
    assert runs == [2]


def test_what_is_slower_compiled_saves_nothing():
    assert Estimate(2.0, 0.5, 1).saving == 1.5
    assert Estimate(0.5, 2.0, 1).saving == 0.0


def test_captured_steps_spare_what_is_not_in_operations_at_most_a_share():
    assert Estimate(2.0, 0.5, 1, captured=1.5).spared == 0.5
    assert Estimate(2.0, 0.5, 1, captured=0.1).spared == close(2.0 * SAVED)
    assert Estimate(2.0, 0.5, 1, captured=2.5).spared == 0.0


def test_the_compiler_is_loaded_once(monkeypatch):
    each = SECONDS["graph"] + SECONDS["node"] * (100 + 4 * PER_TENSOR)
    monkeypatch.setattr(cost, "loaded", lambda: False)
    assert to_compile(100, changed=4) == close(SECONDS["first"] + each)
    monkeypatch.setattr(cost, "loaded", lambda: True)
    assert to_compile(100, changed=4) == close(each)


class Model(nn.Module):
    """Everything that a program may change: a buffer, a frozen parameter, a number and a list of Python, generators."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.calls, self.rows = nn.BatchNorm1d(2), 0, list[int]()
        self.book = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x: Tensor) -> None:
        self.calls += 1
        self.rows.append(len(x))
        with torch.no_grad():
            self.book += 1
        np.random.rand()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.norm(z), 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, scale = self.net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class Awkward(torch.optim.SGD):
    """Cannot step once copied: a copy lacks the attribute."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, 0.1)
        self.own = 1

    def step(self, closure: Any = None) -> Any:
        self.own += 1
        return super().step(closure)


def adam(parameters: Any) -> Optimizer:
    return torch.optim.Adam(parameters, 0.1)


def one_step(make: Callable[[Any], Optimizer], model: Any = Model) -> Loop:
    """A fit after its first step."""
    data = load(torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0)), heldout=0.0)
    pair = build_pair(model(), Guide(), data)
    settings = Settings(100, BATCH, "constant", 1.0, beta=0.5, warmup=0, seed=0, kept=())
    loop = Loop(pair, get("trace"), data, settings, make, compile=False)
    loop.take(1)
    return loop


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every batch of which the loss is computed, noted where putting back a program's state cannot reach."""
    rows, call = list[int](), Objective.__call__

    def noting(self: Objective, batch: Any, *weight: Any) -> Tensor:
        rows.append(len(batch[0]))
        return call(self, batch, *weight)

    monkeypatch.setattr(Objective, "__call__", noting)
    return rows


def state_of(loop: Loop) -> Any:
    model: Any = loop.pair.model
    gradients = [p.grad for p in loop.steps.parameters]
    drawn = {name: state for name, state in generators().items() if name != "python"}  # beartype draws from it
    everything = loop.pair.state_dict(), loop.steps.stepper.optimizer.state_dict(), gradients, drawn
    return copy.deepcopy((*everything, model.calls, model.rows))


def same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, Tensor) else bool(one == two)


@pytest.mark.parametrize("make", [adam, Awkward])
def test_a_measured_fit_stands_where_it_stood(make, seen):
    loop = one_step(make)
    before = state_of(loop)
    seen.clear()
    found = measured(loop)
    assert same(before, state_of(loop))
    assert found.operations > 30
    assert found.eager > 0
    assert len(seen) >= 2
    assert set(seen) == {BATCH}
    loop.take(1)
    assert not same(before, state_of(loop))


def measured(loop: Loop) -> Estimate:
    with isolated(validation=False):
        batch = loop.data.example(BATCH)
        return estimate_step(loop.steps.objective, 0.5, loop.steps.stepper.optimizer, 1.0, lambda: batch)


def test_the_optimizer_is_measured_where_it_can_be_copied(ticking):
    """Adam takes some ten operations for each of four parameters; a copy that cannot step is left out."""
    with_update, without = (measured(one_step(make)) for make in (adam, Awkward))
    assert with_update.operations > without.operations + 4 * 5


def test_a_program_that_fails_has_no_estimate():
    loop = one_step(adam)
    before = state_of(loop)

    def fetch() -> Any:
        raise ValueError("no more data")

    with pytest.raises(NoGraph, match="no more data"):
        estimate_step(loop.steps.objective, 1.0, loop.steps.stepper.optimizer, None, fetch)
    assert same(before, state_of(loop))


def test_auto_measures_the_batches_of_the_fit_alone(seen, monkeypatch):
    """Eight rows, and four where an epoch ends; no other number, such as those of an example."""
    loop = one_step(adam)
    loop.steps.compile, loop.steps.choice = "auto", None
    monkeypatch.setattr("pyro_vi.compiling.choice.to_capture", lambda *_: 1e6)
    seen.clear()
    loop.take(1)
    assert loop.choice is not None
    assert "capturing would save about" in loop.choice.note
    assert {BATCH} <= {*seen} <= {BATCH, ROWS % BATCH}


def test_capturing_takes_time_for_each_operation():
    assert to_capture(0) == SECONDS["capture"]
    assert to_capture(40) - to_capture(20) == close(20 * SECONDS["captured"])
    assert to_capture(100) < to_compile(100)


def test_the_least_of_some_runs_counts(monkeypatch):
    """Of five, or of fewer where these take long."""
    now, takes = [0.0], iter([0.003, 0.001, 0.002, 0.004, 0.005, 0.0001])

    def run() -> None:
        now[0] += next(takes)

    clock = lambda: now[0]  # noqa: E731
    monkeypatch.setattr(cost, "time", SimpleNamespace(thread_time=clock, perf_counter=clock))
    assert timed(run) == close(0.001)
    assert next(takes) == 0.0001
    runs = []

    def slow() -> None:
        runs.append(1)
        now[0] += 0.04

    assert timed(slow, longest=0.05) == close(0.04)
    assert len(runs) == 2


def test_the_part_of_the_optimizer_is_measured_apart(ticking):
    """Captured steps call it as before; it is nothing where it cannot be copied."""
    found, without = (measured(one_step(make)) for make in (adam, Awkward))
    assert 0 < found.update < found.eager or found.update == 1.0  # a second between two looks at the clock
    assert found.changed == without.changed == 4
