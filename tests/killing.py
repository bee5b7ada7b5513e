"""Fits that are killed at random moments and continued: ``python killing.py FOLDER COMPILE COUNT``.

Each fit is a child of a process that has imported everything, but has not computed a gradient: no child could after that.
"""

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from catalogue import columns
from small_fits import DIAGONAL, LINEAR, same, untimed

import pyro_vi

STEPS = {False: 300, True: 3000}


def child(work: Callable[[], object]) -> int:
    """Run a function in a child; return its number."""
    number = os.fork()
    if not number:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(code)
    return number


def states(folder: Path) -> tuple[dict, list]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return torch.load(folder / "checkpoint.pt", weights_only=True), untimed(lines)


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


def main(folder: Path, compiled: bool, count: int) -> None:
    """Compare each fit that was killed and continued with one that was not; print how many were in which state."""
    draw, data = random.Random(count), pyro_vi.load(columns(100))
    options = {
        "steps": STEPS[compiled],
        "compile": compiled,
        "progress": False,
        "snapshots": (0.5, 1.0),
        "batch_size": 30,
    }

    def run(out: Path, resume: bool) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*has no checkpoint; the run starts again")
            pyro_vi.fit(LINEAR, DIAGONAL, data, out=out, resume=resume, **options)

    def wait(number: int) -> int:
        return os.waitpid(number, 0)[1]

    def first() -> None:  # fills the compiler's cache, and tells what else is imported
        run(folder / "first", False)
        (folder / "imported").write_text("\n".join(sys.modules))

    assert wait(child(first)) == 0
    for name in (folder / "imported").read_text().split():
        if name.split(".")[0] in ("torch", "pyro", "pyro_vi", "sympy"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    start = time.monotonic()
    assert wait(child(lambda: run(folder / "whole", False))) == 0
    seconds = time.monotonic() - start
    wanted, lines = states(folder / "whole")
    killed = begun = tmp = 0
    for i in range(count):
        out = folder / str(i)
        number = child(lambda out=out: run(out, False))
        # The moment is random in the progress of the fit, however fast that is, and at last in time.
        target, metrics = draw.randrange(len(lines)), out / "metrics.jsonl"
        while target and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= target):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 2 * seconds / len(lines)))
        os.kill(number, signal.SIGKILL)
        killed += os.WIFSIGNALED(wait(number))
        resume = (out / "config.json").exists()
        begun += (out / "checkpoint.pt").exists()
        tmp += any(out.glob("*.tmp"))
        assert wait(child(lambda out=out, resume=resume: run(out, resume))) == 0, f"{i} was not continued"
        found, records = states(out)
        for key in wanted.keys() - {"config", "history", "position", "compiled"}:
            assert equal(found[key], wanted[key]), f"{i}: other {key}"
        assert records == lines and untimed(found["history"]) == lines, f"{i}: other records"
        for name in (f"snapshot-{STEPS[compiled] // 2}.pt", f"snapshot-{STEPS[compiled]}.pt"):
            assert same(*(torch.load(at / name, weights_only=True) for at in (out, folder / "whole"))), f"{i}: {name}"
        best = [torch.load(at / "best.pt", weights_only=True) for at in (out, folder / "whole")]
        assert best[0]["step"] == best[1]["step"] and same(best[0]["pair"], best[1]["pair"]), f"{i}: best.pt"
        assert not list(out.glob("*.tmp"))
    print(json.dumps({"killed": killed, "begun": begun, "half written": tmp, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "True", int(sys.argv[3]))
