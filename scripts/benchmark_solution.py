"""Seconds from the start of a process to a held-out bound and to the final report: `python scripts/benchmark_solution.py`.

The tasks, whose programs are in `scripts/solutions`:

* ``demo``: `pyro-vi compare`, as `make demo` runs it: two fits of the VAE on the digits, audits, evidence and pictures. The
  time of the two fits is from the folders that they write.
* ``mnist``: a VAE 784-400-z40 with ReLU on static MNIST, 10 passes.
* ``regression``: a hierarchical regression of 10,000 rows.
* ``chorales``: a deep Markov model of the JSB chorales, 20 passes.
* ``compared``: `pyro_vi.compare` with two estimators, against two fits and a loop over draws in stock Pyro.

The contenders:

* ``stock``: `pyro.infer.SVI` with its defaults.
* ``torch``, ``torch_compiled``: PyTorch by hand, eager and under `torch.compile`.
* ``numpyro``: NumPyro, with many steps in one compiled `jax.lax.scan`.
* ``pyro_vi_auto``, ``pyro_vi_eager``, ``pyro_vi_captured``, ``pyro_vi_compiled``: `pyro_vi.fit` with ``compile="auto"``, False,
  ``"captured"`` and True.

Each run is a process of its own. The time is from its start until it passes the stated bound, and until it ends. It passes the
bound where the line through two successive evaluations does. A cold run has an empty folder for the caches of all compilers
(Inductor's, and JAX's persistent cache, which also keeps what was compiled in an instant). A warm run gets the folder of the
cold run before it. A contender that does not compile has no warm runs; its columns are equal. In each round, contenders take
turns in shuffled order. The tables have medians over rounds, in Markdown. `processor` is the time on the processor of the
process and its children, which other work on the machine hardly affects if ``--threads 1`` is given; it includes compiling in
the background, for which nobody waits.
"""

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure

from pyro_vi.reporting.look import LOOK, legend, looks
from pyro_vi.support import versions

FOLDER = Path(__file__).parent / "solutions"
OURS = ("pyro_vi_auto", "pyro_vi_eager", "pyro_vi_captured", "pyro_vi_compiled")
OTHERS = ("stock", "torch", "torch_compiled", "numpyro")
UNCOMPILED = ("stock", "torch", "pyro_vi_eager")  # without a cache to be warm
MODES = {"pyro_vi_auto": "auto", "pyro_vi_eager": "no", "pyro_vi_captured": "captured", "pyro_vi_compiled": "yes"}
COLUMNS = {"bound": "to the bound", "fits": "both fits", "seconds": "to the report", "processor": "on the processor"}


@dataclass(frozen=True)
class Task:
    """A problem.

    Attributes:
        title: what is fitted.
        bound: the held-out bound, or log predictive density, that is stated; None for the demo.
        small: arguments of a run that takes seconds.
        absent: contenders that are left out, and why.
    """

    title: str
    bound: float | None
    small: tuple[str, ...]
    absent: dict[str, str] = field(default_factory=dict)


TASKS = {
    "demo": Task(
        "the demo on digits",
        None,
        ("--steps", "12", "--audit-draws", "20", "--particles", "20"),
        dict.fromkeys(OTHERS, "the demo is a command of pyro_vi; compared has its counterpart in stock Pyro"),
    ),
    "mnist": Task("a VAE on MNIST, 10 passes", -104.5, ("--passes", "1", "--rows", "640")),
    "regression": Task("a hierarchical regression, 2000 steps", -1.45, ("--steps", "100", "--rows", "500")),
    "chorales": Task(
        "a deep Markov model of chorales, 20 passes",
        -9.0,
        ("--passes", "1", "--rows", "20", "--steps", "8"),
        {"torch_compiled": "it unrolls 129 steps, which takes minutes to compile"},
    ),
    "compared": Task(
        "two estimators compared on digits",
        -24.5,
        ("--passes", "1", "--draws", "20"),
        dict.fromkeys(OTHERS[1:], "the comparison is with a loop that a user of Pyro writes"),
    ),
}
Name = Literal["demo", "mnist", "regression", "chorales", "compared"]
Way = Literal[
    "stock", "torch", "torch_compiled", "numpyro", "pyro_vi_auto", "pyro_vi_eager", "pyro_vi_captured", "pyro_vi_compiled"
]  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
        tasks: the problems.
        ways: the contenders.
        caches: cold: an empty cache for each run; warm: another run with the cache that the cold one left.
        rounds: runs of each contender, cold and warm.
        threads: threads of each contender; by default their own numbers.
        small: a few steps of each, whose times mean nothing.
        out: folder for the numbers and the picture.
    """

    tasks: tuple[Name, ...] = tuple(TASKS)
    ways: tuple[Way, ...] = (*OTHERS, *OURS)
    caches: tuple[Literal["cold", "warm"], ...] = ("cold", "warm")
    rounds: int = 5
    threads: int | None = None
    small: bool = False
    out: Path = Path("runs/benchmark_solution")


def missing(task: str, way: str) -> str:
    """Return why a contender cannot run a task; empty if it can."""
    if way == "numpyro" and find_spec("numpyro") is None and way not in TASKS[task].absent:
        return "numpyro is not installed: pip install 'pyro-vi[bench]'"
    if task in ("mnist", "chorales") and not os.environ.get("PYRO_VI_DATA"):
        return "PYRO_VI_DATA is not set"
    return TASKS[task].absent.get(way, "")


def surroundings(cache: Path, threads: int | None) -> dict[str, str]:
    """Return the environment of a run: caches in a folder of their own, and a number of threads."""
    found = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "0",
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(cache / "other"),
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # a list of fonts is no cache of a compiler
    }
    if threads is not None:
        found |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "NPROC": str(threads)}
        if threads == 1:
            found["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    return found


def command(task: str, way: str, small: bool) -> list[str]:
    """Return the command of a run."""
    more = TASKS[task].small if small else ()
    if task == "demo":
        return [sys.executable, "-m", "pyro_vi", "compare", "--compile", MODES[way], "--out", "demo", *more]
    return [sys.executable, str((FOLDER / f"{task}.py").resolve()), way, *more]


def run(given: Sequence[str], env: dict[str, str], bound: float | None) -> dict[str, Any]:
    """Run a command in an empty folder; return its seconds, and those at which its held-out bound passed ``bound``.

    Raises:
        RuntimeError: the command fails; the message has the end of what it says.
    """
    found: dict[str, Any] = {"bound": None, "seen": None, "final": None, "note": "", "lines": []}
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "stderr").open("w+", encoding="utf-8") as errors:
        before, start = os.times(), time.perf_counter()
        process = subprocess.Popen(given, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                now = time.perf_counter() - start
                if line.startswith("{"):
                    said = json.loads(line)
                    found.update({key: said[key] for key in ("final", "note") if key in said})
                    if "heldout" in said:
                        found["lines"].append([now, said["seen"], said["heldout"]])
        code = process.wait()
        found |= passed(found["lines"], bound)
        found["seconds"], after = time.perf_counter() - start, os.times()
        found["processor"] = sum(getattr(after, k) - getattr(before, k) for k in ("children_user", "children_system"))
        if code:
            errors.seek(0)
            raise RuntimeError(f"exit status {code}: {errors.read()[-1000:]}")
        if (demo := Path(folder) / "demo").is_dir():
            found |= of_demo(demo)
    return found


def passed(lines: Sequence[Sequence[float]], bound: float | None) -> dict[str, Any]:
    """Return when the line through successive bounds passed the stated one, and the passes of the evaluation after that.

    Contenders evaluate once in a pass. Without the line, a bound that is missed by a hundredth of a nat would cost a pass.
    """
    before: Sequence[float] | None = None
    for line in lines:
        if bound is not None and line[2] >= bound:
            share = 1.0 if before is None else (bound - before[2]) / (line[2] - before[2])
            since = line[0] if before is None else before[0]
            return {"bound": since + share * (line[0] - since), "seen": line[1]}
        before = line if np.isfinite(line[2]) else None
    return {"bound": None, "seen": None}


def of_demo(folder: Path) -> dict[str, Any]:
    """Return the seconds of the fits of a comparison, from the times of their files, and the last held-out ELBO."""
    fits = [path.parent for path in folder.glob("*/metrics.jsonl")]
    seconds = sum((one / "checkpoint.pt").stat().st_mtime - (one / "config.json").stat().st_mtime for one in fits)
    last = (folder / "mean_field" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return {"fits": seconds, "final": json.loads(last)["heldout_elbo"]}


def measure(task: str, options: Options) -> Iterator[dict[str, Any]]:
    """Run all contenders of a task in turns, and yield a row for each run; a line about it goes to stderr."""
    ways, order = [way for way in options.ways if not missing(task, way)], random.Random(0)
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for cache in options.caches:
                for way in order.sample(ways, len(ways)):
                    if cache == "warm" and way in UNCOMPILED and "cold" in options.caches:
                        continue
                    row = {"task": task, "way": way, "cache": cache, "round": number}
                    env = surroundings(Path(folder) / way, options.threads)
                    try:
                        row |= run(command(task, way, options.small), env, TASKS[task].bound)
                    except RuntimeError as error:
                        row["failed"] = str(error)
                    said = row.get("failed") or f"{row['seconds']:.1f} s, final {row['final']:.3f} {row['note']}"
                    print(f"{task} {way} {cache}, round {number + 1}: {said}", file=sys.stderr, flush=True)
                    yield row


def middle(rows: list[dict[str, Any]], task: str, way: str, cache: str, key: str) -> float:
    """Return a median over rounds; NaN without runs, or if one of them did not pass the bound."""
    mine = [row for row in rows if (row["task"], row["way"]) == (task, way) and "failed" not in row]
    values = [row.get(key) for row in mine if row["cache"] == cache or way in UNCOMPILED]
    return float("nan") if not values or None in values else float(np.median(np.array(values, float)))


def tables(rows: list[dict[str, Any]], task: str) -> list[str]:
    """Return two tables in Markdown: medians, and ratios of pyro_vi to NumPyro, PyTorch and stock Pyro."""
    ways = list(dict.fromkeys(row["way"] for row in rows if row["task"] == task))
    ways.sort(key=(*OTHERS, *OURS).index)
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in rows if row["task"] == task)]
    pairs = [(key, cache) for key in keys for cache in ("cold", "warm")]
    bound = TASKS[task].bound
    title = TASKS[task].title + ("" if bound is None else f"; bound {bound:g}")
    lines = [
        f"| {title} | " + " | ".join(f"{COLUMNS[key]}, {cache}" for key, cache in pairs) + " | final |",
        "| --- " * (len(pairs) + 2) + "|",
    ]
    for way in ways:
        cells = [_shown(middle(rows, task, way, cache, key), 1) for key, cache in pairs]
        final = middle(rows, task, way, "cold", "final")
        final = middle(rows, task, way, "warm", "final") if np.isnan(final) else final
        lines.append(f"| `{way}` | " + " | ".join(cells) + f" | {_shown(final, 2)} |")
    others = [way for way in ("numpyro", "torch", "stock") if way in ways] or [
        w for w in ("pyro_vi_eager",) if w in ways
    ]
    mine = [way for way in OURS if way in ways and way not in others]
    if others and mine:
        lines += ["", "| divided by | " + " | ".join(f"{COLUMNS[k]}, {cache}" for k, cache in pairs) + " |"]
        lines.append("| --- " * (len(pairs) + 1) + "|")
        for way in mine:
            for other in others:
                values = (
                    middle(rows, task, way, cache, key) / middle(rows, task, other, cache, key) for key, cache in pairs
                )
                lines.append(f"| `{way}` / `{other}` | " + " | ".join(_shown(value, 2) for value in values) + " |")
    return lines


def _shown(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


@matplotlib.rc_context(LOOK)
def draw(rows: list[dict[str, Any]], title: str) -> Figure:
    """Plot the medians: a panel for each task, a line for each contender, a mark for each kind of time."""
    tasks = list(dict.fromkeys(row["task"] for row in rows if "failed" not in row))
    heights = [len({row["way"] for row in rows if row["task"] == task}) + 2 for task in tasks]
    figure = Figure(figsize=(8, 1.2 + 0.28 * sum(heights)), layout="constrained")
    styles = looks(("bound", "fits", "seconds"))
    panels = figure.subplots(len(tasks), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, task in zip(panels, tasks, strict=True):
        ways = [way for way in (*OURS[::-1], *OTHERS[::-1]) if any((r["task"], r["way"]) == (task, way) for r in rows)]
        for (key, look), cache in itertools.product(styles.items(), ("cold", "warm")):
            values = [middle(rows, task, way, cache, key) for way in ways]
            if np.isnan(values).all():
                continue
            style = {"color": look.colour, "mfc": look.colour if cache == "warm" else "none", "marker": look.marker}
            axes.plot(values, range(len(ways)), ls="", ms=6, label=f"{COLUMNS[key]}, {cache}", **style)
        axes.set_yticks(range(len(ways)), ways)
        axes.set(xlabel="seconds from the start of the process", title=TASKS[task].title, ylim=(-0.5, len(ways) - 0.5))
        axes.set_xlim(left=0)
        axes.grid(axis="both", color="0.9", linewidth=0.6, zorder=0)
    legend(figure)
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def main(options: Options) -> int:
    """Run, print the tables, and write the numbers and the picture; return 1 if a run failed."""
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    extras = {package: version(package) for package in ("numpyro", "jax") if find_spec(package)}
    facts = {"rounds": options.rounds, "threads": options.threads, "small": options.small, "processors": os.cpu_count()}
    subprocess.run([sys.executable, "-c", "import pyro_vi"], check=True)  # its files are in memory from now on
    for task in options.tasks:
        absent: dict[str, list[str]] = {}
        for way in options.ways:
            if why := missing(task, way):
                absent.setdefault(why, []).append(way)
        for why, names in absent.items():
            print(f"{task}: without {', '.join(names)}: {why}\n")
        for row in measure(task, options):
            rows.append(row)
            written = facts | {
                "versions": versions() | extras,
                "tasks": {k: asdict(t) for k, t in TASKS.items()},
                "runs": rows,
            }
            (options.out / "solution.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
        if any(row["task"] == task for row in rows):
            print(*tables(rows, task), "", sep="\n", flush=True)
    if any("failed" not in row for row in rows):
        threads = "their own threads" if options.threads is None else f"{options.threads} threads"
        draw(rows, f"{os.cpu_count()} processors, {threads}, median of {options.rounds}").savefig(
            options.out / "solution.png", dpi=150
        )
    print(*sorted(options.out.glob("solution.*")), sep="\n")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
