"""Time of one SVI step of the same VAE, eight ways, and of an audit and an evidence: `python scripts/benchmark_step.py`.

The contenders (see `contenders.py`):

* ``stock``: `pyro.infer.SVI` with its defaults.
* ``eager``, ``captured``, ``compiled``: the steps of a pyro_vi fit, taken in these three ways.
* ``torch``: the loss by hand in PyTorch. ``torch_compiled``: the same under `torch.compile`.
* ``numpyro_update``, ``numpyro_scan``: NumPyro in float32 on the CPU, with one compiled step or one pass over the data
  per call.

All contenders run every objective, except that NumPyro does not run ``flow``. Every step takes a batch, computes loss and
gradients, takes a step of Adam, and gives the loss as a number. Only pyro_vi also orders and gathers the data; the others
get ready batches. Each contender uses torch's default number of threads, but a fit of pyro_vi uses one thread where that is
faster, as always. ``--threads 1`` gives every contender one thread.

All contenders run in one process. After a warm-up, each takes one turn per round, in shuffled order. A turn lasts about 50
ms and at least 24 steps. The tables show medians over rounds ± half the interquartile range. The start of a contender that
compiles is the time from building it until two steps are done (``numpyro_scan``: one pass), without caches, after the
compiler itself was loaded.

The other parts compare draws per second of `pyro_vi.audit` with a loop over draws, and data per second of
`pyro_vi.evidence` (K = 5000) with a loop over traces of 100 draws of 100 data at once. Both loops are in stock Pyro.
"""

import dataclasses
import gc
import itertools
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # a start is measured without caches

import contenders
import matplotlib
import numpy as np
import torch
import tyro
from contenders import BATCH, BATCHES, COMPILED, WAYS, Problem
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich.console import Console
from rich.table import Table

import pyro_vi
from pyro_vi.reporting.look import LOOK, legend, looks
from pyro_vi.support import versions

RATIOS = (
    *(("compiled", other) for other in ("stock", "torch", "torch_compiled", "numpyro_update", "numpyro_scan")),
    ("captured", "stock"),
    ("captured", "torch"),
    ("eager", "stock"),
)
Way = Literal["stock", "torch", "torch_compiled", "numpyro_update", "numpyro_scan", "eager", "captured", "compiled"]
TURN = 0.05
"""Least seconds of a turn."""


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
        sizes: sizes of the VAE.
        objectives: ``flow`` is ``trace`` with a flow as the guide.
        contenders: the ways to take a step.
        parts: step: time of a step; start: time until the first compiled step; audit and evidence: comparison with a loop in
            stock Pyro, for tiny and digits.
        rounds: turns of each contender; at most 5 for an audit or an evidence.
        draws: draws of an audit.
        particles: draws of an evidence for each datum.
        threads: threads of torch and XLA; by default their own numbers.
        out: folder for the numbers and the picture.
    """

    sizes: tuple[Literal["tiny", "digits", "mnist"], ...] = ("tiny", "digits", "mnist")
    objectives: tuple[Literal["trace", "mean_field", "iwae", "flow"], ...] = ("trace", "mean_field", "iwae", "flow")
    contenders: tuple[Way, ...] = tuple(WAYS)
    parts: tuple[Literal["step", "start", "audit", "evidence"], ...] = ("step", "start", "audit", "evidence")
    rounds: int = 15
    draws: int = 1000
    particles: int = 5000
    threads: int | None = None
    out: Path = Path("runs/benchmark_step")


def in_turns(turns: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each turn; the order is shuffled, so that drift of the machine affects all turns equally."""
    order, found = random.Random(0), {name: [] for name in turns}
    # Objects that exist now are never collected, and the garbage of a turn is collected before the next turn is timed.
    gc.freeze()
    for _ in range(rounds):
        for name in order.sample(list(turns), len(turns)):
            gc.collect()
            start = time.perf_counter()
            turns[name]()
            found[name].append(time.perf_counter() - start)
    gc.unfreeze()
    return found


def quartiles(values: list[float], scale: float) -> dict[str, float]:
    """Return median, quartiles and interquartile range of the values, multiplied by ``scale``."""
    low, middle, high = np.quantile(np.array(values) * scale, (0.25, 0.5, 0.75)).tolist()
    return {"median": middle, "low": low, "high": high, "iqr": high - low}


def measure_steps(problem: Problem, names: tuple[str, ...], rounds: int) -> list[dict[str, Any]]:
    """Return the microseconds per step of each contender, and the seconds until its first two steps are done."""
    torch.compiler.reset()  # otherwise code compiled for other problems counts towards the limit of recompilations
    turns, counts, starts, losses = {}, {}, {}, {}
    for name in names:
        start = time.perf_counter()
        steps = WAYS[name](problem)
        steps(2)  # a fit of pyro_vi compiles after its first one
        starts[name] = time.perf_counter() - start
        steps(BATCHES)
        start = time.perf_counter()
        steps(BATCHES)
        passes = max(1, round(TURN / (time.perf_counter() - start)))

        def turn(name: str = name, steps: contenders.Steps = steps, count: int = passes * BATCHES) -> None:
            losses[name] = steps(count)

        turns[name], counts[name] = turn, passes * BATCHES
    times = in_turns(turns, rounds)
    return [
        {
            **dataclasses.asdict(problem),
            "contender": name,
            "microseconds": quartiles(times[name], 1e6 / counts[name]),
            "start_seconds": starts[name],
            "steps_per_turn": counts[name],
            "last_loss": losses[name],
            "turns": [seconds / counts[name] * 1e6 for seconds in times[name]],
        }
        for name in names
    ]


def measure_all_steps(options: Options, console: Console) -> list[dict[str, Any]]:
    """Measure the available contenders on all problems, and print a table after each objective."""
    absent: dict[str, list[str]] = {}
    for objective, name in itertools.product(options.objectives, options.contenders):
        absent.setdefault(contenders.missing(name, objective), []).append(f"{name} ({objective})")
    absent.pop("", None)
    for why, names in absent.items():
        console.print(f"Not measured: {', '.join(names)}: {why}", markup=False, soft_wrap=True)
    if any(name in ("torch_compiled", "compiled") for name in options.contenders):
        torch.compile(lambda x: x + 1)(torch.ones(2))  # loads the compiler
    rows = []
    for objective in options.objectives:
        names = tuple(name for name in options.contenders if not contenders.missing(name, objective))
        for size in options.sizes:
            rows += measure_steps(Problem(size, objective), names, options.rounds)
        console.print(step_table(rows, objective))
    return rows


def measure_audit(size: str, draws: int, rounds: int) -> list[dict[str, Any]]:
    """Return the draws per second of audits, and of a loop that computes mean and variance only."""
    problem = Problem(size, "trace")
    which = (*contenders.programs(problem), problem.rows()[:BATCH])
    audit = partial(pyro_vi.audit, *which, elbos="trace", draws=draws)
    turns = {
        "audit, at once": partial(audit, vectorize=True),
        "audit, one by one": partial(audit, vectorize=False),
        "loop in stock Pyro": partial(contenders.gradient_moments, *which, draws),
    }
    return _rates(size, turns, draws, rounds)


def measure_evidence(size: str, particles: int, rounds: int) -> list[dict[str, Any]]:
    """Return the data per second of the evidence of all rows, including the time to compile, and the evidence."""
    problem = Problem(size, "trace")
    model, guide, rows = *contenders.programs(problem), problem.rows()[: 3000 if particles > 1000 else 30]
    ours = partial(pyro_vi.evidence, model, guide, rows, particles=particles)

    def loop() -> torch.Tensor:
        return torch.cat([contenders.log_evidence(model, guide, x, particles) for x in rows.split(100)])

    turns = {
        "pyro_vi.evidence": ours,
        "the same, compile=False": partial(ours, compile=False),
        "loop in stock Pyro": loop,
    }
    values = [ours().attrs["value"], ours(compile=False).attrs["value"], float(loop().mean())]
    found = _rates(size, turns, len(rows), min(rounds, 2))
    return [{**row, "nats_per_datum": value} for row, value in zip(found, values, strict=True)]


def measure_starts() -> list[dict[str, Any]]:
    """Return the seconds until the first compiled step of a fit at tiny, in new processes, without and with a cache on disk."""
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import contenders, pyro_vi; "
        "problem = contenders.Problem('tiny', 'mean_field'); start = time.perf_counter(); "
        "run = pyro_vi.fit(*contenders.programs(problem), problem.rows(), steps=2, compile=True, progress=False); "
        "print(time.perf_counter() - start, run.choice.seconds)"
    )
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        surroundings = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "0"}
        for which in ("no cache", "cache", "cache"):
            command = [sys.executable, "-c", program, str(Path(__file__).parent)]
            start = time.perf_counter()
            done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
            fit, compiling = map(float, done.stdout.split())
            whole = time.perf_counter() - start
            rows.append({"which": which, "fit_seconds": fit, "compile_seconds": compiling, "process_seconds": whole})
    return rows


def _rates(size: str, turns: Mapping[str, Callable[[], Any]], count: int, rounds: int) -> list[dict[str, Any]]:
    for turn in turns.values():
        turn()
    times = in_turns(turns, min(rounds, 5))
    return [
        {"size": size, "way": way, "per_second": quartiles([1 / t for t in taken], count)}
        for way, taken in times.items()
    ]


def step_table(rows: list[dict[str, Any]], objective: str) -> Table:
    """Return the table of one objective: times, their ratios, and the time to start, with a column for each size."""
    found = {(row["contender"], row["size"]): row for row in rows if row["objective"] == objective}
    names, sizes = dict.fromkeys(name for name, _ in found), dict.fromkeys(size for _, size in found)
    table = Table("contender", title=f"{objective}: µs per step, median ± IQR/2", title_justify="left")
    for size in sizes:
        table.add_column(f"{size} ({'-'.join(map(str, contenders.SIZES[size]))})", justify="right")

    def time_of(name: str, size: str) -> float:
        return found[name, size]["microseconds"]["median"]

    for name in names:
        table.add_row(name, *(_spread(found[name, size]["microseconds"]) for size in sizes))
    table.add_section()
    for one, other in RATIOS:
        if one in names and other in names:
            table.add_row(f"{one} / {other}", *(f"{time_of(one, size) / time_of(other, size):.3g}" for size in sizes))
    table.add_section()
    for name in COMPILED:
        if name in names:
            table.add_row(f"time to start {name}", *(f"{found[name, size]['start_seconds']:.1f} s" for size in sizes))
    return table


def rate_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Return the table of rates and of their ratios to the last row, with two columns for each size."""
    found = {(row["way"], row["size"]): row["per_second"] for row in rows}
    ways, sizes = list(dict.fromkeys(way for way, _ in found)), dict.fromkeys(size for _, size in found)
    table = Table("", *(f"{size}{what}" for size in sizes for what in ("", ", ratio")), title=title)
    table.title_justify = "left"
    for way in ways:
        cells = ((found[way, s], found[way, s]["median"] / found[ways[-1], s]["median"]) for s in sizes)
        table.add_row(way, *(text for rate, ratio in cells for text in (_spread(rate), f"{ratio:.1f}")))
    return table


def _spread(found: Mapping[str, float]) -> str:
    digits = 0 if found["median"] >= 100 else 1
    return f"{found['median']:.{digits}f} ± {found['iqr'] / 2:.{digits}f}"


@matplotlib.rc_context(LOOK)
def draw(rows: list[dict[str, Any]], title: str) -> Figure:
    """Plot the time of a step: a panel for each size, a group of points for each objective; lines span the quartiles."""
    sizes, objectives = (list(dict.fromkeys(row[key] for row in rows)) for key in ("size", "objective"))
    styles = looks([name for name in WAYS if any(row["contender"] == name for row in rows)])
    figure = Figure(figsize=(9.5, 1.3 + 2.4 * len(sizes)), layout="constrained")
    width = 0.85 / len(styles)
    for axes, size in zip(figure.subplots(len(sizes), 1, squeeze=False)[:, 0], sizes, strict=True):
        for i, (name, look) in enumerate(styles.items()):
            shown = [row for row in rows if row["size"] == size and row["contender"] == name]
            place = [objectives.index(row["objective"]) + width * (i - (len(styles) - 1) / 2) for row in shown]
            low, middle, high = (np.array([r["microseconds"][key] for r in shown]) for key in ("low", "median", "high"))
            # Points, not bars, because the length of a bar has no meaning on a logarithmic scale.
            style = {"color": look.colour, "label": name, "marker": look.marker, "ls": "", "lw": 1, "ms": 6}
            axes.errorbar(place, middle, yerr=[middle - low, high - middle], **style)
        axes.set(yscale="log", ylabel="µs a step", title=f"{size}: {'-'.join(map(str, contenders.SIZES[size]))}")
        axes.set_xticks(range(len(objectives)), objectives)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y", color="0.9", linewidth=0.6, zorder=0)
    legend(figure)
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def processor() -> str:
    """Return the name of the processor, on Linux from /proc/cpuinfo."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def main(options: Options) -> None:
    """Measure, print the tables, and write the numbers and the picture."""
    if options.threads is not None:
        contenders.use_threads(options.threads)
    name, threads, console = processor(), torch.get_num_threads(), Console(highlight=False, width=120)
    written: dict[str, Any] = {"processor": name, "threads": threads, "batch": BATCH, "rounds": options.rounds}
    extras = [package for package in ("numpyro", "jax", "zuko") if find_spec(package)]
    written["versions"] = versions() | {package: version(package) for package in extras}
    console.print(heading := f"{name}, threads: {threads}")
    options.out.mkdir(parents=True, exist_ok=True)
    if "step" in options.parts:
        written["step"] = steps = measure_all_steps(options, console)
        draw(steps, heading).savefig(options.out / "step.png", dpi=150)
    if "start" in options.parts:
        written["start"] = measure_starts()
        for row in written["start"]:
            console.print(
                f"The first compiled step at tiny ({row['which']}) was done {row['fit_seconds']:.1f} s after the call of fit "
                f"and {row['process_seconds']:.1f} s after the start of the process."
            )
    small = [size for size in options.sizes if size != "mnist"]  # at mnist the loops would take hours
    if "audit" in options.parts and small:
        written["audit"] = [r for size in small for r in measure_audit(size, options.draws, options.rounds)]
        console.print(rate_table(written["audit"], f"Audit of {options.draws} draws: draws per second"))
    if "evidence" in options.parts and small:
        written["evidence"] = [r for size in small for r in measure_evidence(size, options.particles, options.rounds)]
        console.print(rate_table(written["evidence"], f"Evidence with K = {options.particles}: data per second"))
    (options.out / "step.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    print(*sorted(options.out.glob("step.*")), sep="\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")  # as it was asked to
    main(tyro.cli(Options, description=__doc__))
