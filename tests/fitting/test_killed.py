"""A fit that is killed at any moment goes on to the same bits."""

import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from small_fits import quick, same_fit, untimed

FAILED = 1800
OPTIONS = {"steps": 5, "batch_size": 20, "snapshots": (0.0, 0.5, 1.0)}


class Moments:
    """Calls that change a folder: before some of them, it is copied, as a kill would leave it."""

    def __init__(self, folder: Path, to: Path, at: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("replace", "link", "fsync"):
            original = getattr(os, name)

            def call(*args, original=original):
                if self.count in at:
                    shutil.copytree(folder, to / str(self.count))
                self.count += 1
                return original(*args)

            monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize("count", [3, pytest.param(None, marks=pytest.mark.slow)], ids=["three", "all"])
def test_whatever_a_kill_leaves_is_continued(count, tmp_path, monkeypatch):
    """At three moments, or at all."""
    with monkeypatch.context() as patch:
        moments = Moments(tmp_path / "run", tmp_path, set(), patch)
        whole = quick(out=tmp_path / "run", **OPTIONS)
    shutil.rmtree(tmp_path / "run")
    every = range(moments.count)
    at = set(every) if count is None else set(random.Random(0).sample(every, count))
    with monkeypatch.context() as patch:
        moments = Moments(tmp_path / "run", tmp_path, at, patch)
        quick(out=tmp_path / "run", **OPTIONS)
    assert moments.count == len(every)
    for moment in at:
        out = tmp_path / str(moment)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*has no checkpoint; the run starts again")
            resume = (out / "config.json").exists()
            if not resume:
                assert not (out / "metrics.jsonl").exists()
            assert same_fit(quick(out=out, resume=resume, **OPTIONS), whole)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert untimed(lines) == untimed(whole.history) and not list(out.glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_killed_process_is_continued_to_the_same_bits(compiled, tmp_path):
    """By SIGKILL at 20 random moments."""
    script = Path(__file__).parents[1] / "killing.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(compiled), "20"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=FAILED,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["killed"] >= 15 and found["begun"] >= 5, found
