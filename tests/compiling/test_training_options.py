"""Cycles, free bits and accumulated batches in compiled steps: parameters and records are those of eager steps, to rounding."""

import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, number, scalars
from small_fits import DIAGONAL, LINEAR, in_main_thread, nothing, quick, same, same_fit
from torch import Tensor

from pyro_vi import FitError, Run
from pyro_vi.data.loading import load


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole-step graph is run as it is: everything but Inductor, which takes seconds for each graph."""

    def graph_itself(graph: Any, inputs: Any) -> Callable[[list[Tensor]], Any]:
        return lambda arguments: graph(*arguments)

    monkeypatch.setattr("pyro_vi.compiling.steps.compile_graph", graph_itself)


@pytest.fixture(autouse=True)
def every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """With True, every length is compiled, as in long fits; a length of few steps would be captured."""
    monkeypatch.setattr("pyro_vi.compiling.choice.FEW", 0)


def assert_same(one: Run, two: Run) -> None:
    first, second = one.pair.state_dict(), two.pair.state_dict()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-9, atol=1e-12)
    for a, b in zip(one.history, two.history, strict=True):
        for key in ("step", "epoch", "loss", "elbo", "kl", "grad_norm", "lr", "beta"):
            assert b[key] == pytest.approx(a[key], rel=1e-9, abs=1e-11), key


def late(done: float) -> float:
    return 0.5 if done < 0.5 else 2.0


SAME: dict[str, dict[str, Any]] = {
    "cycles": {"cycles": 2},
    "function": {"beta": late},
    "free bits": {"free_bits": 0.3, "elbo": "mean_field", "warmup": 3},
    "free bits, path": {"free_bits": 0.3, "elbo": "stl"},
    "accumulated": {"batch_size": 4, "accumulate": 3, "clip_norm": 2.0},
    "accumulated, all": {"batch_size": 4, "accumulate": 3, "free_bits": 0.3, "elbo": "mean_field", "cycles": 2},
}
"""An epoch of 20 rows in steps of 8, or of 12 rows in batches of 4: the last step is shorter."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_compiled_steps_are_eager_steps(name, interpreted):
    options = {"steps": 12, "batch_size": 8, "elbo": "trace", "lr": 0.05, **SAME[name]}
    data = load(columns(20), heldout=0.0)
    kinds = (False, True, "captured")
    eager, compiled, captured = (quick(LINEAR, DIAGONAL, data, compile=kind, **options) for kind in kinds)
    assert compiled.choice is not None and captured.choice is not None
    lengths = {12, 8} if "accumulate" in options else {8, 4}
    assert set(compiled.choice.lengths) == set(captured.choice.captured) == lengths
    assert_same(eager, compiled)
    assert_same(eager, captured)


@pytest.mark.slow
def test_accumulated_batches_as_machine_code():
    options = {"steps": 12, "batch_size": 4, "accumulate": 3, "free_bits": 0.3, "cycles": 2, "lr": 0.05}
    data = load(columns(24), heldout=0.0)
    eager, compiled = (quick(LINEAR, DIAGONAL, data, compile=compile, **options) for compile in (False, True))
    assert compiled.choice is not None and compiled.choice.lengths == (12,)
    assert_same(eager, compiled)


@pytest.mark.slow
def test_accumulated_rows_that_are_read_from_a_file(interpreted, tmp_path):
    np.save(tmp_path / "rows.npy", columns(20).numpy())
    mapped = load(np.load(tmp_path / "rows.npy", mmap_mode="r"), dtype=torch.float64, heldout=0.0)
    options = {"steps": 6, "batch_size": 4, "accumulate": 3, "compile": True}
    one, two = (quick(LINEAR, DIAGONAL, data, **options) for data in (mapped, load(columns(20), heldout=0.0)))
    assert one.choice is not None and set(one.choice.lengths) == {12, 8}
    assert same(one.pair.state_dict(), two.pair.state_dict())


def logarithms(x: Tensor) -> None:
    """log x ~ N(m, 1): 0 has no density."""
    m = pyro.param("m", number(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0, validate_args=False), obs=x.log())


@pytest.mark.slow
def test_a_compiled_step_names_the_row_too(interpreted):
    """Row 21 is in the second batch of the third step, which is compiled."""
    x = scalars(24).abs() + 1.5
    x[21] = 0.0
    options = {"steps": 6, "batch_size": 4, "accumulate": 2, "shuffle": False, "elbo": "trace", "check": False}
    for compile in (False, True):
        with pytest.raises(FitError, match=r"at step 3 .*: log p of site 'x' is not finite for data 21; there"):
            quick(logarithms, nothing, load(x, heldout=0.0), compile=compile, **options)


@pytest.mark.slow
@in_main_thread
def test_a_resumed_fit_has_the_bits_of_an_uninterrupted_one(interpreted, tmp_path):
    """Ctrl-C comes with the record of step 5, in the midst of an epoch."""

    def run(stop: bool, **options: Any) -> Run:
        def interrupt(record: dict[str, Any]) -> None:
            if stop and record["step"] == 5:
                signal.raise_signal(signal.SIGINT)

        settings = {"steps": 12, "batch_size": 4, "accumulate": 3, "free_bits": 0.3, "cycles": 2, "compile": True}
        return quick(LINEAR, DIAGONAL, load(columns(20), heldout=0.0), callbacks=interrupt, **settings, **options)

    with pytest.raises(KeyboardInterrupt):
        run(True, out=tmp_path / "run")
    resumed = run(False, out=tmp_path / "run", resume=True)
    assert resumed.compiled
    assert same_fit(resumed, run(False))
