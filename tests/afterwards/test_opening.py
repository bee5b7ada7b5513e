"""A run is opened from its folder alone, in any process, with the numbers that it had."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from catalogue import columns
from data_toys import message

import pyro_vi
from pyro_vi import InputError, UsageError

QUICK = {"steps": 2, "compile": False, "progress": False}


def program(x):
    import pyro
    import pyro.distributions as dist

    loc = pyro.param("loc", x.new_zeros(3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + loc, 1.0).to_event(1), obs=x)


@pytest.mark.slow
def test_a_new_process_gives_the_same_numbers(folder, tmp_path):
    code = f"""
import json, pyro_vi
run = pyro_vi.open({str(folder)!r})
new = {str(folder.parent / "new.npy")!r}
print(json.dumps([run.embed().tolist(), run.reconstruct(new).tolist(), run.log_evidence(new).attrs["total"],
                  run.sample(3).tolist(), run.history.elbo.tolist(), run.data.num_heldout]))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    here, new = pyro_vi.open(folder), folder.parent / "new.npy"
    wanted = [
        here.embed().tolist(),
        here.reconstruct(new).tolist(),
        here.log_evidence(new).attrs["total"],
        here.sample(3).tolist(),
        here.history.elbo.tolist(),
        6,
    ]
    assert json.loads(done.stdout.splitlines()[-1]) == wanted


def test_a_folder_gives_the_run_that_was_fitted(folder):
    opened = pyro_vi.open(folder)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(opened.pair.state_dict()[name], value) for name, value in state["pair"].items())
    assert opened.run.steps == 4 and opened.run.out == folder and opened.run.kl_source == {"z": "analytic"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert opened.run.history == [json.loads(line) for line in lines]
    assert opened.embed(folder.parent / "new.npy").shape == (41, 2)


def test_a_moved_file_is_asked_for(folder, tmp_path):
    pyro_vi.open(folder).save(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    from pyro_vi.fitting.reading import signed

    config["given"]["folder"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.json").write_text(json.dumps(signed(config)))
    text = message(pyro_vi.open, tmp_path / "run")
    assert "uses 'data.npy', which is not in" in text and text.endswith("say where it is: data='PATH'")
    found = pyro_vi.open(tmp_path / "run", data=str(folder.parent / "data.npy"))
    assert np.array_equal(found.embed(), pyro_vi.open(folder).embed())
    assert "are not those that the run" in message(pyro_vi.open, tmp_path / "run", data=folder.parent / "new.npy")


def test_what_the_folder_does_not_hold_is_asked_for_by_name(tmp_path):
    run = pyro_vi.fit(program, "diag_normal", columns(40), out=tmp_path / "run", **QUICK)
    text = message(pyro_vi.open, tmp_path / "run")
    assert "was made from Python objects (model, data)" in text and "model=..., data=...)" in text
    found = pyro_vi.open(tmp_path / "run", model=program, data=columns(40))
    assert np.array_equal(found.embed(), pyro_vi.open(run).embed())
    child = found.more(steps=1, out=tmp_path / "child", progress=False)
    assert child.parent["folder"] == str(tmp_path / "run")
    again = pyro_vi.open(tmp_path / "child", model=program)  # the data are in its folder
    assert np.array_equal(again.embed(), child.embed())


def test_a_run_in_memory_is_saved_and_opened(run, opened, tmp_path):
    assert opened.save(tmp_path / "run") == tmp_path / "run"
    again = pyro_vi.open(tmp_path / "run")
    assert again.run.history == run.history and again.run.steps == run.steps
    assert np.array_equal(again.embed(), opened.embed()) and np.array_equal(again.sample(3), opened.sample(3))
    assert "holds a run already" in message(opened.save, tmp_path / "run", error=UsageError)
    again.save(tmp_path / "copy")
    assert np.array_equal(pyro_vi.open(tmp_path / "copy").embed(), opened.embed())


def test_a_child_of_a_file_resumes_from_its_folder_alone(folder, tmp_path):
    child = pyro_vi.open(folder).more(steps=3, out=tmp_path / "child", progress=False)
    assert child.parent["folder"] == str(folder) and pyro_vi.open(tmp_path / "child").parent == child.parent
    (tmp_path / "child" / "checkpoint.pt").unlink()
    (tmp_path / "child" / "checkpoint-previous.pt").unlink(missing_ok=True)
    (tmp_path / "child" / "metrics.jsonl").unlink()
    again = pyro_vi.resume(tmp_path / "child", progress=False)  # from the first step, which is the parent's last state
    assert torch.equal(again.params["weight"], child.run.params["weight"])


def test_no_run_and_several_runs_are_one_line(tmp_path):
    assert "holds no run; give the folder of a fit" in message(pyro_vi.open, tmp_path)
    (tmp_path / "trace").mkdir()
    (tmp_path / "trace" / "config.json").write_text("{}")
    assert "holds several fits; open one of them: trace" in message(pyro_vi.open, tmp_path)


def test_code_that_has_changed_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = """
import pyro, torch
import pyro.distributions as dist

def model(x):
    loc = pyro.param("loc", torch.zeros(3, dtype=torch.float64))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + loc, 1.0).to_event(1), obs=x)
"""
    Path("mine.py").write_text(source)
    np.save("x.npy", columns(40).numpy())
    pyro_vi.fit("mine.py:model", "diag_normal", "x.npy", out="run", **QUICK)
    Path("mine.py").write_text(source.replace("z + loc", "2 * z + loc"))
    for name in [name for name in sys.modules if name.startswith("_pyro_vi_file_")]:
        del sys.modules[name]
    with pytest.warns(UserWarning, match="the code of the model has changed since the run"):
        pyro_vi.open("run")
    Path("mine.py").unlink()
    assert "model='PATH/mine.py:NAME'" in message(pyro_vi.open, "run", error=InputError)
