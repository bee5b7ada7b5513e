"""The code that a run folder names runs if the run is one's own, or if one says so."""

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_toys import message

import pyro_vi
from pyro_vi import UsageError
from pyro_vi.cli.entry import main
from pyro_vi.comparing import resuming
from pyro_vi.fitting.reading import signed

QUICK = {"steps": 2, "compile": False, "progress": False, "check": False}
PROGRAM = """
import os
import pyro
import pyro.distributions as dist

with open(os.environ["MARKER"], "a") as file:
    file.write("x")


def model(x):
    loc = pyro.param("loc", x.new_zeros(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + loc, 1.0).to_event(1), obs=x)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program that leaves a marker, data, and a run of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    Path("mine.py").write_text(PROGRAM)
    np.save("x.npy", np.random.default_rng(0).normal(size=(20, 2)))
    pyro_vi.fit("mine.py:model", "diag_normal", "x.npy", out="run", **QUICK)
    for name in [name for name in sys.modules if name.startswith("_pyro_vi_file_")]:
        monkeypatch.delitem(sys.modules, name)
    Path("marker").unlink()
    return tmp_path


def test_a_run_of_ones_own_goes_on_anywhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "else").mkdir()
    monkeypatch.chdir(place / "else")
    assert pyro_vi.open(place / "run").embed().shape == (2, 2)
    assert pyro_vi.resume(place / "run", progress=False).steps == 2
    assert (place / "marker").exists() and (place / "state" / "pyro_vi" / "key").stat().st_mode & 0o77 == 0


@pytest.mark.slow
def test_the_code_of_anothers_run_does_not_run_unasked(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (
        "not made by you on this machine, and would run the code of its model 'mine.py:model'; if you trust that code"
    )
    for key in (place / "another", place / "none"):
        monkeypatch.setenv("XDG_STATE_HOME", str(key))
        if key.name == "another":
            pyro_vi.fit("mine.py:model", "diag_normal", "x.npy", out="other", **QUICK)  # this user has a key
            Path("marker").unlink(missing_ok=True)
        assert said in message(pyro_vi.open, "run", error=UsageError)
        assert said in message(pyro_vi.resume, "run", error=UsageError)
        for command in (["resume", "run"], ["check", "--run", "run"], ["plot", "run"]):
            assert main(command) == 2 and said in capsys.readouterr().err
        assert not Path("marker").exists()
    assert not (place / "none").exists()  # a key is made to sign, and not to look
    assert pyro_vi.open("run", model="mine.py:model").embed().shape == (2, 2)  # who names the code has said so
    assert main(["check", "--run", "run", "--trust"]) == 0
    assert pyro_vi.open("run", trust=True).embed().shape == (2, 2)
    assert pyro_vi.resume("run", trust=True, progress=False).steps == 2
    assert pyro_vi.resume("run", progress=False).steps == 2  # from now on it is one's own


def test_a_signature_is_of_one_configuration(place: Path) -> None:
    """A folder that names a function of a package, signed as a run of this user was."""
    config = json.loads(Path("run/config.json").read_text())
    assert len(config["signature"]) == 64
    name = f"subprocess:check_output(args=['touch', {str(place / 'marker')!r}])"
    config["model"] = config["given"]["arguments"]["model"] = name
    Path("run/config.json").write_text(json.dumps({**signed(config), "signature": config["signature"]}))
    for call in (pyro_vi.open, pyro_vi.resume):
        assert "the code of its model 'subprocess:check_output'" in message(call, "run", error=UsageError)
    assert not Path("marker").exists()


def test_runs_without_code_are_open_to_all(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "none"))
    pyro_vi.fit("linear_gaussian(latent_dim=1)", "diag_normal", "x.npy", out="plain", **QUICK)
    assert pyro_vi.open("plain").embed().shape == (2, 1) and not (place / "none").exists()


def test_no_module_is_imported_from_a_folder_that_a_run_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python looks for modules in its present folder if it is interactive, and resuming changes that folder."""
    pyro_vi.fit("linear_gaussian(latent_dim=1)", "diag_normal", "x.npy", out="plain", **QUICK)
    (place / "else").mkdir()
    monkeypatch.chdir(place / "else")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    seen: list[tuple[str, list[str]]] = []

    @functools.wraps(pyro_vi.fit)
    def looking(**options: Any) -> Any:
        seen.append((os.getcwd(), sys.path[:]))
        return pyro_vi.fit(**options)

    monkeypatch.setattr(resuming, "fit", looking)
    pyro_vi.resume(place / "plain", progress=False)
    ((folder, path),) = seen
    assert folder == str(place) and path[0] == str(place / "else") and "" not in path and sys.path[0] == ""
