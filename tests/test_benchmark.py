"""The benchmark times what it says, under a clock of the tests' own, and its contenders do the same work."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from script_files import SCRIPTS, script

TICK = 2.0**-10
"""Seconds between two readings of the clock: a power of two, so that differences are exact."""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, with the compiler's cache, and with a clock that moves on by a tick whenever it is read."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "0")
    module = script("benchmark_step")
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=itertools.count(0.0, TICK).__next__))
    monkeypatch.setattr(module, "TURN", TICK)
    yield module
    sys.modules.pop("contenders")


def found_steps(written: dict[str, Any], printed: str) -> dict[str, Any]:
    """The rows of the contenders, whose times are those of the clock: a turn is one pass of 24 steps and takes a tick."""
    steps = {row["contender"]: row for row in written["step"]}
    time = TICK * 1e6 / 24
    for row in steps.values():
        assert row["microseconds"] == pytest.approx({"median": time, "low": time, "high": time, "iqr": 0.0})
        assert row["turns"] == pytest.approx([time, time])
        assert (row["steps_per_turn"], row["start_seconds"]) == (24, TICK)
        # Five features that are 1 with probability 0.3: no code is shorter than 3.05 nats, one that knows nothing has 3.47.
        assert 2.8 < row["last_loss"] < 3.47
        assert row["contender"] in printed
    return steps


@pytest.mark.slow
def test_benchmark_of_steps_audit_and_evidence(benchmark, tmp_path, capsys):
    contenders, parts = ("stock", "torch", "eager"), ("step", "audit", "evidence")
    given = {"sizes": ("tiny",), "objectives": ("mean_field",), "contenders": contenders, "parts": parts}
    benchmark.main(benchmark.Options(**given, rounds=2, draws=20, particles=200, out=tmp_path))
    written = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))
    assert written["processor"] and written["threads"] >= 1 and written["versions"]["torch"]
    assert found_steps(written, capsys.readouterr().out).keys() == set(contenders)

    rates = {row["way"]: row["per_second"]["median"] for row in written["audit"]}
    assert rates == dict.fromkeys(("audit, at once", "audit, one by one", "loop in stock Pyro"), 20 / TICK)
    assert [row["per_second"]["median"] for row in written["evidence"]] == [30 / TICK] * 3
    ours, uncompiled, loop = (row["nats_per_datum"] for row in written["evidence"])
    assert ours == pytest.approx(uncompiled, abs=1e-5)  # the same draws
    # Both are means over 30 data, each with a Monte Carlo error of its own.
    problem = benchmark.Problem("tiny", "trace")
    programs = benchmark.contenders.programs(problem)
    errors = benchmark.pyro_vi.evidence(*programs, problem.rows()[:30], particles=200).mc_se.values
    assert abs(ours - loop) < 4 * float(np.sqrt(2 * np.square(errors).sum())) / 30
    with Image.open(tmp_path / "step.png") as image:
        assert min(image.size) > 400
        assert len(np.unique(np.asarray(image.convert("L")))) > 20


@pytest.mark.slow
def test_benchmark_of_compiled_steps(benchmark, monkeypatch, tmp_path, capsys):
    """Without PyTorch's own compiler, which takes most of a minute: its contender's loss is run as it is."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    contenders = ("torch_compiled", "compiled")
    given = {"sizes": ("tiny",), "objectives": ("mean_field",), "contenders": contenders, "parts": ("step",)}
    benchmark.main(benchmark.Options(**given, rounds=2, out=tmp_path))
    written = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))
    assert found_steps(written, capsys.readouterr().out).keys() == set(contenders)


@pytest.mark.slow
def test_benchmark_of_a_start(benchmark, monkeypatch):
    """One process, with the compiler's cache of these tests; the others only say what they were started with."""
    real, own, started = subprocess.run, os.environ["TORCHINDUCTOR_CACHE_DIR"], []

    def run(command: list[str], env: dict[str, str], **options: Any) -> Any:
        done = started[0][1] if started else real(command, env={**env, "TORCHINDUCTOR_CACHE_DIR": own}, **options)
        started.append((env, done))
        return done

    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(run=run))
    rows = benchmark.measure_starts()
    assert [row["which"] for row in rows] == ["no cache", "cache", "cache"]
    assert all(0 < row["compile_seconds"] < row["fit_seconds"] for row in rows)
    (folder,) = {env["TORCHINDUCTOR_CACHE_DIR"] for env, _ in started}
    assert folder != own and not Path(folder).exists()
    assert {env["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] for env, _ in started} == {"0"}


@pytest.mark.parametrize("objective", ["trace", "mean_field", "iwae", "flow"])
def test_hand_written_loss_is_the_estimators(objective):
    """From the same draws, in value and gradient: what is timed against Pyro is the same work."""
    validation = torch.distributions.Distribution._validate_args
    contenders = script("contenders")
    problem = contenders.Problem("tiny", objective)
    model, guide = (program.double() for program in contenders.programs(problem))
    torch.distributions.Distribution.set_default_validate_args(validation)  # importing zuko turns it off
    x, elbo = problem.rows()[: contenders.BATCH].double(), problem.elbo()
    parameters = [*model.parameters(), *guide.parameters()]
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        losses = (contenders.hand_written(objective, model, guide), lambda x: elbo.differentiable_loss(model, guide, x))
        elbo.loss(model, guide, x)  # a first meeting of the pair takes draws of its own
        values, gradients = [], []
        for loss in losses:
            torch.manual_seed(1)
            value = loss(x)
            values.append(value.item())
            gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)]))
    finally:
        torch.set_default_dtype(dtype)
    assert values[0] == pytest.approx(values[1], rel=1e-10)
    assert torch.allclose(*gradients, rtol=1e-8, atol=1e-8)


def test_missing_package_is_named_with_how_to_install_it(monkeypatch):
    contenders = script("contenders")
    monkeypatch.setattr(contenders, "find_spec", lambda package: None if package in ("numpyro", "zuko") else object())
    assert contenders.missing("numpyro_scan", "trace") == "numpyro is not installed: pip install 'pyro-vi[bench]'"
    assert contenders.missing("compiled", "flow").startswith("zuko is not installed")
    assert {contenders.missing(way, "iwae") for way in contenders.WAYS if not way.startswith("numpyro")} == {""}
