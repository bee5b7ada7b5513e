"""Fits and comparisons go on from their folder alone."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from small_fits import DIAGONAL, LINEAR, in_main_thread, quick, same_fit

from pyro_vi import InputError, UsageError, compare, fit, resume
from pyro_vi.fitting import config_of
from pyro_vi.fitting.progress import Progress
from pyro_vi.fitting.reading import signed
from pyro_vi.support import write_json

OWN = """
import torch, pyro, pyro.distributions as dist

def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, SCALE))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

def guide(x):
    loc = pyro.param("a", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x[:, 0], 1.0))
"""
OPTIONS = {"steps": 8, "batch_size": 20, "lr": {"a": 0.1}, "seed": 3, "snapshots": (0.5,), "compile": False}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program and data, and another one to work in later."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("own.py").write_text(OWN.replace("SCALE", "1.0"))
    np.save("x.npy", np.random.default_rng(0).normal(size=(40, 2)).astype("f4"))
    return tmp_path


def stopping_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Progress.update

    def press(self: Progress, now: int, elbo: float) -> None:
        update(self, now, elbo)
        if now == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", press)


def edit(text: str) -> None:
    """Change the program, as between two processes."""
    Path("own.py").write_text(text)
    for name in [name for name in sys.modules if name.startswith("_pyro_vi_file_")]:
        del sys.modules[name]


def begun(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopping_at(5, patch)
        fit("own.py:model", "own.py:guide", "x.npy", out="run", progress=False, **OPTIONS)


@pytest.mark.slow
@in_main_thread
def test_a_fit_of_own_programs_goes_on_from_another_folder(place, monkeypatch):
    whole = fit("own.py:model", "own.py:guide", "x.npy", progress=False, **OPTIONS)
    begun(monkeypatch)
    monkeypatch.chdir(place / "there")
    assert same_fit(resume(place / "here" / "run", progress=False), whole)
    assert same_fit(resume("../here/run", progress=False), whole)  # which is done
    assert Path.cwd() == place / "there" and not list(Path().iterdir())


@pytest.mark.slow
@in_main_thread
def test_a_program_that_has_changed_is_named_and_may_be_allowed(place, monkeypatch):
    begun(monkeypatch)
    before = Path("run/config.json").read_bytes()
    edit("# a comment\n" + OWN.replace("SCALE", "1.0"))
    monkeypatch.setattr(Progress, "update", lambda *_: pytest.fail("it went on"))
    with pytest.raises(pytest.fail.Exception):  # a comment changes nothing
        resume("run", progress=False)
    monkeypatch.undo()
    monkeypatch.chdir(place / "here")
    edit(OWN.replace("SCALE", "100.0"))
    with pytest.raises(
        UsageError, match=r"\(the code of the model or the guide has changed\); .* allow it: --allow code$"
    ):
        resume("run", progress=False)
    assert Path("run/config.json").read_bytes() == before
    assert resume("run", allow=("code",), progress=False).steps == 8
    np.save("x.npy", np.zeros((40, 2), "f4"))
    with pytest.raises(UsageError, match=r"\(data_checksum was \d+, is \d+\)"):
        resume("run", allow=("code",), progress=False)


def test_a_call_that_this_version_does_not_know_is_one_line(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)).astype("f4"))
    run = fit(LINEAR, DIAGONAL, str(tmp_path / "x.npy"), steps=1, progress=False, compile=False, out=tmp_path / "run")
    config = config_of(run.out)
    given = config["given"]
    strange = {**given, "arguments": {**given["arguments"], "colour": 1}}
    write_json(run.out / "config.json", signed({**config, "given": strange}))
    with pytest.raises(InputError, match="by another version of pyro_vi, with colour; res"):
        resume(run.out, progress=False)
    write_json(run.out / "config.json", signed({**config, "given": {**given, "arguments": 3}}))
    with pytest.warns(UserWarning, match=r"its arguments are none; the copy in checkpoint\.pt is"):
        assert resume(run.out, progress=False).steps == 1


def test_a_finished_run_takes_no_other_options(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)).astype("f4"))
    out = tmp_path / "run"
    fit(LINEAR, DIAGONAL, str(tmp_path / "x.npy"), steps=2, progress=False, compile=False, out=out)
    before = (out / "config.json").read_bytes()
    with pytest.raises(
        UsageError, match=r"all its 2 steps, so lr would change nothing; .*more\(steps=\.\.\., lr=0\.1\)$"
    ):
        resume(out, lr=0.1, progress=False)
    assert (out / "config.json").read_bytes() == before


@pytest.mark.slow
def test_what_was_made_from_objects_needs_them(tmp_path):
    quick(
        out=tmp_path / "run", elbo="trace", optimizer=lambda parameters: __import__("torch").optim.SGD(parameters, 0.1)
    )
    with pytest.raises(
        InputError, match=r"was made from Python objects \(data, optimizer\), .* call pyro_vi\.fit\(\.\.\., out='"
    ):
        resume(tmp_path / "run")
    with pytest.raises(InputError, match=r"holds no run to resume; give the folder of a fit or a comparison$"):
        resume(tmp_path)


@pytest.mark.slow
@in_main_thread
def test_a_comparison_goes_on(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)).astype("f4"))
    monkeypatch.chdir(tmp_path)
    options = {"steps": 6, "seeds": 2, "audit_draws": 0, "particles": 10, "progress": False, "compile": False}
    whole = compare(LINEAR, DIAGONAL, "x.npy", elbos=("trace", "stl"), **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopping_at(3, patch)
        compare(LINEAR, DIAGONAL, "x.npy", elbos=("trace", "stl"), out=tmp_path / "out", **options)
    assert [path.name for path in (tmp_path / "out" / "seed0").iterdir()] == ["trace"]
    with pytest.raises(UsageError, match=rf"is one fit of a comparison; .* with: pyro-vi resume {tmp_path / 'out'}$"):
        resume(tmp_path / "out" / "seed0" / "trace")
    found = resume(tmp_path / "out", progress=False)
    for one, other in zip(found.every, whole.every, strict=True):
        assert all(same_fit(one.results[name].run, other.results[name].run) for name in ("trace", "stl"))
