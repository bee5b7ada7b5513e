"""A folder to work in."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import PROGRAMS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with people's programs and data; what a command leaves in it beside these is seen."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "programs.py").write_text(PROGRAMS)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "file").write_text("a regular file, below which nothing can be made\n")
    values = np.random.default_rng(0).normal(size=(40, 5))
    np.save("five.npy", values)
    np.savetxt("five.csv", values, delimiter=",")
    values[3, 2] = math.nan
    np.save("nan.npy", values)
    values[3, 2] = math.inf
    np.savetxt("infinite.csv", values, delimiter=",")
    rows = [f"{a:.3f},{kind},{b:.3f},{c:.3f}" for (a, b, c, *_), kind in zip(values, 20 * ["red", "blue"], strict=True)]
    (tmp_path / "kinds.csv").write_text("\n".join(["a,kind,b,c", *rows]).replace("inf", "0") + "\n")
    yield tmp_path
    sys.modules.pop("programs", None)
