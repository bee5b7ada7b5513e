"""The check of a device finds what differs, counts operations and bytes, and runs through on the CPU."""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from script_files import SCRIPTS, script


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(SCRIPTS)
    yield script("check_device")
    for name in ("contenders", "device_times"):
        sys.modules.pop(name, None)


def made_up(loss: float, *values: float) -> Any:
    """A fit with one record and one tensor of parameters."""
    state = {"a": torch.tensor(values, dtype=torch.float64)}
    return SimpleNamespace(history=[{"loss": loss, "seconds": loss}], pair=SimpleNamespace(state_dict=lambda: state))


def test_differences_are_relative(check):
    one = made_up(2.0, 1.0, -2.0)
    assert check.differences(one, one) == (0.0, 0.0)
    assert check.differences(one, made_up(2.0002, 1.0, -2.5)) == (pytest.approx(1e-4), pytest.approx(0.25))
    assert check.equal_bits(one, one) and not check.equal_bits(one, made_up(2.0, 1.0, -2.0 + 1e-15))
    other = made_up(2.0, 1.0, -2.0)
    other.history[0]["seconds"] = 1.0
    assert check.equal_bits(one, other)
    other.history[0]["loss"] += 1e-15
    assert not check.equal_bits(one, other)


def test_floor_counts_products_and_bytes(check):
    times = check.Times(torch.device("cpu"), (True,), 1, True, lambda: False, {"flops": 1e9, "bytes": 1e9})
    found = times.floor("tiny", 10)  # 5-16-2
    weights = 5 * 16 + 16 * 4 + 2 * 16 + 16 * 5
    # Forward, gradient of the weights, and gradient of the inputs, which the data have not.
    assert found["flops"] == 2 * 10 * (weights + weights + weights - 5 * 16)
    assert found["bytes"] == 4 * (6 * (weights + 16 + 4 + 16 + 5) + 10 * 5)
    assert found["floor"] == pytest.approx(max(found["flops"], found["bytes"]) / 1e9)


def test_nothing_starts_late(check):
    late = check.Check(check.Options(small=True), torch.device("cpu"), lambda: True)
    assert {row["ok"] for row in itertools.chain(late.proof(), late.same())} == {None}
    times = check.Times(torch.device("cpu"), (True,), 1, True, lambda: True)
    assert [row["contender"] for row in times.steps()] == ["left out: no time"]


@pytest.mark.slow
def test_a_failed_proof_gives_an_exit_status(check, monkeypatch, tmp_path):
    monkeypatch.setattr(check, "differences", lambda one, two: (1.0, 0.0))
    assert check.main(check.Options(device="cpu", parts=("proof",), steps=4, small=True, out=tmp_path)) == 1


@pytest.mark.slow
def test_check_runs_on_the_cpu(check, tmp_path, capsys):
    code = check.main(check.Options(device="cpu", steps=6, rounds=1, small=True, out=tmp_path))
    printed = capsys.readouterr().out
    assert code == 0, printed
    written = json.loads(Path(tmp_path / "check.json").read_text(encoding="utf-8"))
    compiled = [row for row in written["proof"] if row["mode"] == "compiled"]
    assert compiled and all(row["ok"] and row["losses"] < 1e-9 for row in compiled)
    assert [row["ok"] for row in written["same"][:2]] == [True, True]
    assert {row["contender"] for row in written["steps"]} >= {"torch", "eager"}
    assert all(row["seconds"] > row["floor"] > 0 for row in written["steps"])
    assert all(row["value"] > 0 for row in written["device"] + written["draws"])
