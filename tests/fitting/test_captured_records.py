"""The numbers of records from replayed graphs are those of the programs, bit for bit, and nothing else changes."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, number, scalars
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from small_fits import DIAGONAL, LINEAR, quick
from torch import Tensor, nn

from pyro_vi import Run
from pyro_vi.data import Data
from pyro_vi.data.loading import load
from pyro_vi.errors import NoGraph
from pyro_vi.estimators.objective import Objective
from pyro_vi.fitting import captured_records
from pyro_vi.fitting.captured_records import Replayed, replayed
from pyro_vi.fitting.records import Records
from pyro_vi.fitting.settings import Position
from pyro_vi.support import generators

SEEDS = (0, 7, 12345)


def records_of(pair: Any, data: Data, elbo: Any = None) -> Records:
    return Records(Objective(pair, elbo or Trace_ELBO()), data, data.example(8))


def made(records: Records, seed: int, replaying: bool) -> dict[str, Any]:
    records.replaying = replaying
    found = records.make(Position(step=seed), weight=1.0, lr=0.1, norm=0.0)
    return {key: str(value) for key, value in found.items()}  # NaN is not equal to itself


def graphs(records: Records) -> list[str]:
    """The numbers that come from a graph."""
    return sorted(
        f"{'train' if train else 'heldout'} {name}"
        for (train, name), graph in records._graphs.items()
        if graph is not None
    )


def state_of(pair: Any) -> list[Tensor]:
    return [value.detach().clone() for value in (*pair.parameters(), *pair.buffers())]


def drawn_from() -> str:
    return repr({key: value.tolist() if isinstance(value, Tensor) else value for key, value in generators().items()})


def assert_replayed(run: Run, data: Data, expected: list[str], elbo: Any = None) -> Records:
    """Records of several seeds, also after the parameters have changed; the programs do not run."""
    pair = run.pair
    records = records_of(pair, data, elbo)
    made(records, 99, replaying=True)
    assert graphs(records) == expected
    before, generator = state_of(pair), drawn_from()
    for factor in (1.0, 0.9):
        with torch.no_grad():
            for parameter in pair.parameters():
                parameter.mul_(factor)
        before, modes = state_of(pair), [module.training for module in pair.modules()]
        for seed in SEEDS:
            wanted = made(records, seed, replaying=False)
            with pytest.MonkeyPatch.context() as patched:
                for name in ("measure", "log_predictive"):
                    patched.setattr(f"pyro_vi.fitting.records.{name}", unasked)
                assert made(records, seed, replaying=True) == wanted
        assert all(map(torch.equal, state_of(pair), before))
        assert drawn_from() == generator
        assert [module.training for module in pair.modules()] == modes
    assert made(records, 1, replaying=True) != made(records, 2, replaying=True)
    return records


def unasked(*_: Any, **__: Any) -> Any:
    raise AssertionError("the programs must not run")


BOTH = ["heldout _means", "train _means"]
NAMED: dict[str, tuple[str, str]] = {
    "vae": ("vae(latent_dim=2, hidden=(4,))", "diag_normal(hidden=(4,))"),
    "flow": ("vae(latent_dim=2, hidden=(4,))", "flow(hidden=(4,), flow_hidden=(4,), transforms=2)"),
    "student": ("vae(latent_dim=2, hidden=(4,))", "student(hidden=(4,))"),
    "linear": (LINEAR, DIAGONAL),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("linear", torch.float64),
        *(
            pytest.param(name, dtype, marks=pytest.mark.slow)
            for name in NAMED
            for dtype in (torch.float32, torch.float64)
            if (name, dtype) != ("linear", torch.float64)
        ),
    ],
)
def test_named_pairs(name, dtype):
    values = columns(30, 3)
    data = load(values.to(dtype) if name == "linear" else (values > 0).to(dtype), heldout=0.2)
    run = quick(*NAMED[name], data, steps=2, batch_size=8, check=False)
    assert next(run.pair.parameters()).dtype == dtype
    assert_replayed(run, data, BOTH)


def of_two(x: Tensor) -> None:
    """A mixture of two normals for each datum."""
    with pyro.plate("rows", len(x)):
        k = pyro.sample("k", dist.Bernoulli(number(0.4)))
        pyro.sample("x", dist.Normal(2 * k - 1, 1.0), obs=x)


class WhichOfTwo(nn.Module):
    """Which of the two, enumerated."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(number(0.5))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=self.slope * x), infer={"enumerate": "parallel"})


def test_enumerated_sites():
    data = load(scalars(30), heldout=0.2)
    run = quick(of_two, WhichOfTwo(), data, elbo="enum", steps=2, batch_size=8, check=False)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    records = records_of(run.pair, data, elbo)
    made(records, 99, replaying=True)
    assert graphs(records) == BOTH
    for seed in SEEDS:
        assert made(records, seed, replaying=True) == made(records, seed, replaying=False)


class Shared(nn.Module):
    """N(x | slope, 1) with slope ~ N(0, 1) for all data."""

    def forward(self, x: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(number(0.0), 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(slope, 1.0), obs=x)


def of_shared(x: Tensor) -> None:
    loc = pyro.param("loc", number(0.3))
    scale = pyro.param("scale", number(0.7), constraint=dist.constraints.positive)
    pyro.sample("slope", dist.Normal(loc, scale))


@pytest.mark.slow
def test_latents_that_all_data_share():
    """Held-out: the log predictive density."""
    data = load(scalars(30), heldout=0.2)
    run = quick(Shared(), of_shared, data, steps=2, check=False)
    records = assert_replayed(run, data, ["heldout _density", "train _means"])
    assert "heldout_lpd" in made(records, 0, replaying=True)


@pytest.mark.slow
def test_points():
    """Their record has log p(x, z), and depends on no draws."""
    data = load(scalars(30), heldout=0.2)
    run = quick(Shared(), "point", data, steps=2, check=False)
    records = records_of(run.pair, data)
    made(records, 0, replaying=True)
    assert "train _means" in graphs(records)
    for seed in SEEDS:
        found = made(records, seed, replaying=True)
        assert found == made(records, seed, replaying=False)
        assert "log_joint" in found


class Normed(nn.Module):
    """An encoder with running statistics and dropout, and a decoder; in evaluation mode neither draws nor counts."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Dropout(0.4), nn.Linear(3, 1)).double()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.net(x[:, None])[:, 0], 1.0))


class Emitting(nn.Module):
    """A decoder with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Dropout(0.4), nn.Linear(2, 1)).double()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(self.net(z[:, None])[:, 0], 1.0), obs=x)


@pytest.mark.slow
def test_running_statistics_and_dropout():
    data = load(scalars(30), heldout=0.2)
    run = quick(Emitting(), Normed(), data, steps=3, batch_size=8, check=False)
    records = assert_replayed(run, data, BOTH)
    before = made(records, 3, replaying=True)
    with torch.no_grad():  # statistics that move are read anew
        for name, value in run.pair.named_buffers():
            if name.endswith("running_var"):
                value.mul_(2.0)
    assert made(records, 3, replaying=True) == made(records, 3, replaying=False) != before


@pytest.mark.slow
def test_a_parameter_that_lies_elsewhere():
    """Then the programs run; with its old place, the graph is replayed again."""
    data = load(columns(30), heldout=0.2)
    run = quick(LINEAR, DIAGONAL, data, steps=2, batch_size=8, check=False)
    records = records_of(run.pair, data)
    before = made(records, 1, replaying=True)
    for parameter in run.pair.parameters():
        parameter.data = parameter.data * 1.5
    found = made(records, 1, replaying=True)
    assert found == made(records, 1, replaying=False) != before


def test_rows_of_another_kind_are_not_replayed():
    """`elbo_of` evaluates rows that a graph does not know."""
    data = load(columns(30), heldout=0.2)
    run = quick(LINEAR, DIAGONAL, data, steps=2, batch_size=8, check=False)
    records = records_of(run.pair, data)
    records.replaying = True
    rows = data.example(5)
    found = records.elbo_of(rows, 3)
    assert records._graphs == {}
    records.replaying = False
    assert found == records.elbo_of(rows, 3)


# ---- what has no graph


class Reading(Shared):
    """It reads the value of a tensor."""

    def forward(self, x: Tensor) -> None:
        if float(x.sum()) < 1e9:
            super().forward(x)


class Counting(Shared):
    """It counts its runs, and its scale follows."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> None:
        self.count += 1
        slope = pyro.sample("slope", dist.Normal(number(0.0), 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(slope, 1.0 + self.count), obs=x)


class Elsewhere(Shared):
    """It draws from NumPy's generator, and from Python's."""

    def forward(self, x: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(number(0.0), 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(slope + np.random.rand() + random.random(), 1.0), obs=x)


class Buffered(Shared):
    """It counts in a buffer, also as it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", number(0.0))

    def forward(self, x: Tensor) -> None:
        self.count += 1.0
        slope = pyro.sample("slope", dist.Normal(number(0.0), 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(slope, 1.0 + self.count), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize("make", [Reading, Counting, Elsewhere, Buffered])
def test_programs_without_a_graph_run(make: Callable[[], Any]):
    data = load(scalars(30), heldout=0.2)
    run = quick(make(), of_shared, data, steps=2, check=False)
    records, state = records_of(run.pair, data), drawn_from()
    count = getattr(run.pair.model, "count", None)
    found = [made(records, seed, replaying=True) for seed in SEEDS]
    assert graphs(records) == []
    assert len(records._graphs) == 2  # they were tried once
    assert drawn_from() == state
    if make is Counting:
        assert run.pair.model.count > count  # it goes on counting, as without graphs
    else:
        assert found == [made(records, seed, replaying=False) for seed in SEEDS]


@pytest.mark.slow
def test_a_graph_with_other_numbers_is_refused(monkeypatch):
    data = load(columns(30), heldout=0.2)
    run = quick(LINEAR, DIAGONAL, data, steps=2, batch_size=8, check=False)
    records = records_of(run.pair, data)
    numbers = records._means

    def off(rows: Any, seed: int | None) -> Any:
        found = dict(numbers(rows, seed))
        return found if seed is None else {**found, "elbo": found["elbo"] + 1e-3}

    def fewer(rows: Any, seed: int | None) -> Any:
        found = dict(numbers(rows, seed))
        return found if seed is None else {"elbo": found["elbo"]}

    assert isinstance(replayed(run.pair, records.train, numbers), Replayed)
    for wrong, message in ((off, "another 'elbo' than"), (fewer, "other numbers than")):
        assert replayed(run.pair, records.train, wrong) is None
        with pytest.raises(NoGraph, match=message):
            Replayed(run.pair, records.train, wrong)


# ---- fits


@pytest.mark.slow
def test_nothing_is_replayed_with_eager_steps(monkeypatch):
    made_of: list[Any] = []
    init = Replayed.__init__

    def noted(self: Replayed, *arguments: Any) -> None:
        made_of.append(arguments)
        init(self, *arguments)

    monkeypatch.setattr(captured_records.Replayed, "__init__", noted)
    data = load(columns(30), heldout=0.2)
    options = {"steps": 30, "batch_size": 8, "check": False}
    eager = quick(LINEAR, DIAGONAL, data, compile=False, **options)
    assert made_of == []
    captured = quick(LINEAR, DIAGONAL, data, compile="captured", **options)
    assert len(made_of) == 2
    for one, two in zip(eager.history, captured.history, strict=True):
        for key in ("elbo", "reconstruction", "kl", "heldout_elbo"):
            assert one[key] == two[key], (key, one["step"])


@pytest.mark.slow
@pytest.mark.parametrize(("records", "asked"), [(30, True), (29, False)])
def test_a_fit_with_few_records_takes_them_from_the_programs(records, asked, monkeypatch):
    """The interval is 2 steps in both cases."""
    seen: list[Any] = []

    def spying(*given: Any) -> Replayed | None:
        seen.append(given)
        return replayed(*given)

    monkeypatch.setattr("pyro_vi.fitting.records.replayed", spying)
    quick(steps=2 * records, records=records, compile="captured")
    assert bool(seen) is asked


@pytest.mark.slow
def test_a_graph_that_is_too_large_is_not_made(monkeypatch):
    run = quick(steps=2)
    records = records_of(run.pair, load(columns(50)))
    monkeypatch.setattr(captured_records, "MOST", 20)
    with pytest.raises(NoGraph, match="so large"):
        Replayed(run.pair, records.train, records._means)
    assert made(records, 3, replaying=True) == made(records, 3, replaying=False)
    assert graphs(records) == []


def test_large_rows_are_not_captured(monkeypatch):
    """A capture keeps the values of all operations, which are as large as the rows."""
    run = quick(steps=2)
    records = records_of(run.pair, load(columns(50)))
    monkeypatch.setattr(captured_records, "LARGE", sum(value.nbytes for value in records.train) - 1)
    with pytest.raises(NoGraph, match="the rows are so large"):
        Replayed(run.pair, records.train, records._means)
    monkeypatch.undo()
    assert Replayed(run.pair, records.train, records._means)
