"""The benchmark of whole solutions notes when lines arrive, keeps caches apart, and its contenders solve the same problem."""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from script_files import SCRIPTS, script

NEEDS_DATA = pytest.mark.skipif("PYRO_VI_DATA" not in os.environ, reason="PYRO_VI_DATA is not set")


@pytest.fixture
def benchmark() -> ModuleType:
    return script("benchmark_solution")


def printing(*lines: dict[str, Any]) -> list[str]:
    """A command that prints lines."""
    return [sys.executable, "-c", f"for line in {list(map(json.dumps, lines))}: print(line)"]


def test_times_are_those_at_which_lines_arrive(benchmark, monkeypatch):
    clock = itertools.count(10.0)
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=clock.__next__))
    lines = [{"heldout": -3.0, "seen": 1}, {"heldout": -1.0, "seen": 2}, {"heldout": -0.5, "seen": 3}, {"final": -0.4}]
    found = benchmark.run(printing(*lines), dict(os.environ), -2.0)
    assert found.pop("processor") > 0
    assert found == {
        "bound": 1.5,  # halfway between the first two
        "seen": 2,
        "final": -0.4,
        "note": "",
        "seconds": 5.0,
        "lines": [[1.0, 1, -3.0], [2.0, 2, -1.0], [3.0, 3, -0.5]],
    }


def test_a_bound_that_is_not_reached_has_no_time(benchmark):
    found = benchmark.run(
        printing({"heldout": math.nan, "seen": 1}, {"heldout": -3.0, "seen": 2}), dict(os.environ), -2.0
    )
    assert (found["bound"], found["seen"]) == (None, None)


@pytest.mark.parametrize("before", [[], [[1.0, 1, math.nan]]], ids=["nothing", "not a number"])
def test_a_bound_is_passed_at_the_first_evaluation_if_none_is_before(benchmark, before):
    assert benchmark.passed([*before, [2.0, 2, -1.0]], -2.0) == {"bound": 2.0, "seen": 2}


def test_a_failed_run_says_why(benchmark):
    with pytest.raises(RuntimeError, match=r"(?s)exit status 1.*ValueError: no such thing"):
        benchmark.run([sys.executable, "-c", "raise ValueError('no such thing')"], dict(os.environ), None)


def test_runs_take_turns_and_a_warm_one_has_the_cache_of_the_cold_one(benchmark, monkeypatch):
    seen: list[tuple[str, str, str | None]] = []

    def run(given: list[str], env: dict[str, str], bound: float) -> dict[str, Any]:
        seen.append((given[2], env["TORCHINDUCTOR_CACHE_DIR"], env.get("OMP_NUM_THREADS")))
        assert env["JAX_COMPILATION_CACHE_DIR"] == str(Path(env["TORCHINDUCTOR_CACHE_DIR"]).with_name("jax"))
        if given[2] == "torch":
            raise RuntimeError("exit status 1: it fails")
        return {"seconds": 1.0, "final": -1.0, "note": ""}

    monkeypatch.setattr(benchmark, "run", run)
    ways = ("stock", "torch", "torch_compiled", "pyro_vi_auto", "pyro_vi_eager")
    rows = list(benchmark.measure("regression", benchmark.Options(ways=ways, rounds=3, threads=2)))
    kinds = [[(row["way"], row["cache"]) for row in rows if row["round"] == number] for number in range(3)]
    cold, warm = {(way, "cold") for way in ways}, {("torch_compiled", "warm"), ("pyro_vi_auto", "warm")}
    assert all(set(kind[:5]) == cold and set(kind[5:]) == warm for kind in kinds)
    assert len({tuple(kind) for kind in kinds}) > 1  # not always in the same order
    assert {threads for *_, threads in seen} == {"2"}
    folders: dict[tuple[str, int], set[str]] = {}
    for (way, folder, _), row in zip(seen, rows, strict=True):
        assert way == row["way"]
        folders.setdefault((way, row["round"]), set()).add(folder)
    assert all(len(found) == 1 for found in folders.values())
    assert len(set.union(*folders.values())) == len(folders) == 15
    assert {row["way"] for row in rows if "failed" in row} == {"torch"}


def made_up(way: str, cache: str, seconds: float, bound: float | None) -> dict[str, Any]:
    found = {"task": "mnist", "way": way, "cache": cache, "final": -100.0, "seen": None, "note": ""}
    return {**found, "seconds": seconds, "bound": bound, "processor": seconds}


def test_tables_have_medians_and_ratios(benchmark):
    rows = [made_up("torch", "cold", seconds, seconds / 2) for seconds in (30.0, 10.0, 20.0)]
    rows += [made_up("numpyro", "cold", 8.0, 4.0), made_up("numpyro", "warm", 5.0, 2.0)]
    rows += [made_up("pyro_vi_auto", "cold", 12.0, 5.0), made_up("pyro_vi_auto", "warm", 10.0, None)]
    rows += [made_up("stock", "cold", 80.0, 40.0) | {"failed": "it fails"}]
    lines = benchmark.tables(rows, "mnist")
    assert lines[0].startswith("| a VAE on MNIST, 10 passes; bound -104.5 | to the bound, cold | to the bound, warm |")
    assert lines[2] == "| `stock` | - | - | - | - | - | - | - |"
    assert lines[3] == "| `torch` | 10.0 | 10.0 | 20.0 | 20.0 | 20.0 | 20.0 | -100.00 |"
    assert lines[4] == "| `numpyro` | 4.0 | 2.0 | 8.0 | 5.0 | 8.0 | 5.0 | -100.00 |"
    assert lines[5] == "| `pyro_vi_auto` | 5.0 | - | 12.0 | 10.0 | 12.0 | 10.0 | -100.00 |"
    assert lines[9:11] == [
        "| `pyro_vi_auto` / `numpyro` | 1.25 | - | 1.50 | 2.00 | 1.50 | 2.00 |",
        "| `pyro_vi_auto` / `torch` | 0.50 | - | 0.60 | 0.50 | 0.60 | 0.50 |",
    ]


def test_what_is_left_out_is_said(benchmark, monkeypatch):
    monkeypatch.delenv("PYRO_VI_DATA", raising=False)
    monkeypatch.setattr(benchmark, "find_spec", lambda package: None)
    assert benchmark.missing("mnist", "stock") == "PYRO_VI_DATA is not set"
    assert benchmark.missing("regression", "numpyro") == "numpyro is not installed: pip install 'pyro-vi[bench]'"
    assert benchmark.missing("regression", "stock") == ""
    # MNIST has every contender, and the chorales all but one.
    monkeypatch.setenv("PYRO_VI_DATA", "folder")
    assert benchmark.missing("chorales", "numpyro").startswith("numpyro is not installed")
    assert [*benchmark.TASKS["chorales"].absent] == ["torch_compiled"]
    assert all(why == "" for why in (benchmark.missing("mnist", way) for way in ("stock", "torch", "torch_compiled")))
    assert not benchmark.TASKS["mnist"].absent


def finals(program: str, ways: tuple[str, ...], *small: str) -> dict[str, list[float]]:
    """All bounds that ways to solve a problem print."""
    found = {}
    for way in ways:
        command = [sys.executable, str(SCRIPTS / "solutions" / f"{program}.py"), way, *small]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found[way] = [line[key] for line in lines for key in ("heldout", "final") if key in line]
    return found


@pytest.mark.slow
@NEEDS_DATA
@pytest.mark.parametrize("program", ["mnist", "chorales"])
def test_pyro_and_pytorch_take_the_same_steps(program, benchmark):
    """From the same parameters and draws: the loss by hand is that of `pyro.infer.SVI`, whose Adam is not the fused one."""
    stock, torch = finals(program, ("stock", "torch"), *benchmark.TASKS[program].small).values()
    assert len(stock) == 2
    assert stock == pytest.approx(torch, rel=1e-3)


@pytest.mark.slow
@NEEDS_DATA
def test_pyro_vi_solves_the_problems_on_larger_data(benchmark):
    """Of other starts and other draws: bounds of the same size, after a few steps."""
    for program, digits in (("mnist", 0.3), ("chorales", 0.3)):
        ours, torch = finals(program, ("pyro_vi_eager", "torch"), *benchmark.TASKS[program].small).values()
        assert ours[-1] == pytest.approx(torch[-1], rel=digits)


@pytest.mark.slow
@NEEDS_DATA
def test_numpyro_solves_the_chorales(benchmark):
    """Of another start and other draws: bounds of the same size as in PyTorch, after a few steps."""
    pytest.importorskip("numpyro")
    numpyro, torch = finals("chorales", ("numpyro", "torch"), *benchmark.TASKS["chorales"].small).values()
    assert len(numpyro) == 2
    assert numpyro == pytest.approx(torch, rel=0.1)


@pytest.mark.slow
def test_benchmark_in_its_small_form(benchmark, tmp_path, capsys):
    given: dict[str, Any] = {
        "ways": ("stock", "torch", "pyro_vi_eager"),
        "caches": ("cold",),
        "rounds": 1,
        "small": True,
    }
    code = benchmark.main(benchmark.Options(tasks=("regression", "demo"), threads=1, out=tmp_path, **given))
    printed = capsys.readouterr().out
    assert code == 0, printed
    runs = json.loads((tmp_path / "solution.json").read_text(encoding="utf-8"))["runs"]
    assert {(row["task"], row["way"]) for row in runs} == {
        *(("regression", way) for way in given["ways"]),
        ("demo", "pyro_vi_eager"),
    }
    assert all(row["seconds"] > 0 and math.isfinite(row["final"]) for row in runs)
    (demo,) = (row for row in runs if row["task"] == "demo")
    assert 0 < demo["fits"] < demo["seconds"]
    assert "| `pyro_vi_eager` / `torch` |" in printed and "demo: without stock, torch: " in printed
    with Image.open(tmp_path / "solution.png") as image:
        assert min(image.size) > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
