"""The command line as people meet it: a line for each bad input, one JSON document, and Ctrl-C."""

import configparser
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from pyro_vi.cli import entry as cli
from pyro_vi.data.loading import load
from pyro_vi.programs.build import build_pair

PROGRAMS = '''
import pyro, torch
import pyro.distributions as dist
from torch import nn


class Wide(nn.Module):
    """A model of data with as many features as `width`, whatever the data."""

    def __init__(self, data, *, width=7):
        super().__init__()
        self.decoder = nn.Linear(1, width)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


class Grey(nn.Module):
    def __init__(self, data):
        super().__init__()
        self.decoder = nn.Linear(1, *data.event_shape)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


def other(x):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(loc, 1.0).to_event(1))
'''


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
    yield tmp_path
    sys.modules.pop("programs", None)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def real(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "pyro_vi", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


GREY = "digits(binarize=False)"
BAD: dict[str, tuple[tuple[str, ...], int, str]] = {
    "unknown model": (("fit", "vea"), 2, "no model named 'vea'; did you mean 'vae'? Available: "),
    "unknown guide": (("compare", "vae", "diag_norml"), 2, "no guide named 'diag_norml'; did you mean 'diag_normal'?"),
    "unknown data": (("fit", "--data", "digts"), 2, "no data set named 'digts'; did you mean 'digits'?"),
    "unknown estimator": (("fit", "--elbo", "tracee"), 2, "no ELBO estimator named 'tracee'; did you mean 'trace'?"),
    "unknown estimators": (("compare", "--elbos", "trace", "mean_feild"), 2, "no ELBO estimator named 'mean_feild'"),
    "an estimator twice": (("compare", "--elbos", "trace", "trace"), 2, "'trace' is named twice"),
    "unknown option": (("fit", "vae(latent=3)"), 2, "has no option 'latent'; did you mean 'latent_dim'?"),
    "unreadable options": (("fit", "vae(latent_dim=open('x'))"), 2, "is not a Python literal"),
    "unbalanced options": (("fit", "vae(latent_dim=3"), 2, "cannot read 'vae(latent_dim=3'"),
    "wrong option": (("fit", "vae(latent_dim=0)"), 1, "latent_dim must be a whole number of at least 1, not 0"),
    "no such program file": (("fit", "absent.py:Wide"), 2, "model file 'absent.py' does not exist"),
    "program file that fails": (
        ("fit", "broken.py:Wide"),
        1,
        "ModuleNotFoundError: No module named 'nothing_of_this_name'",
    ),
    "not in the program file": (("fit", "programs.py:Wdie"), 2, "named 'Wdie'; did you mean 'Wide'?"),
    "program file without a name": (("fit", "programs.py"), 2, "names a file but no program in it"),
    "no such package": (("fit", "no.package:Model"), 2, "cannot be imported"),
    "no such data file": (("fit", "--data", "absent.npy"), 1, "there is no file 'absent.npy'"),
    "other width": (("fit", "programs.py:Wide", "--data", "five.npy"), 1, "on a batch of shape (36, 5)"),
    "width that broadcasts": (("fit", "programs.py:Wide(width=1)", "--data", "five.npy"), 1, "scored several times"),
    "NaN in an array": (("fit", "--data", "nan.npy"), 1, "1 value (first in row 3, counted from 0) is NaN or infinite"),
    "infinity in a table": (
        ("compare", "--data", "infinite.csv"),
        1,
        "(first in row 3, counted from 0) is NaN or infinite",
    ),
    "grey pixels, ours": (
        ("fit", "vae(likelihood='bernoulli')", "--data", GREY),
        1,
        "a bernoulli likelihood has no density",
    ),
    "grey pixels, theirs": (
        ("fit", "programs.py:Grey", "--data", GREY),
        1,
        "are outside the support of Independent(Bernoulli)",
    ),
    "guide without the site": (("fit", "vae", "programs.py:other"), 1, "the guide has no site 'z'"),
    "exact guide": (("fit", "vae", "exact"), 1, "needs a model with a closed form"),
    "no parameters": (
        ("fit", "linear_gaussian(learn=False)", "exact", "--data", "five.npy"),
        2,
        "no parameters to fit",
    ),
    "zero steps": (("fit", "--steps", "0"), 2, "steps must be at least 1, not 0"),
    "zero epochs": (("compare", "--epochs", "0"), 2, "epochs must be at least 1, not 0"),
    "steps and epochs": (("compare", "--epochs", "1", "--steps", "1"), 2, "give steps or epochs, not both"),
    "zero batch": (("fit", "--batch-size", "0"), 2, "batch_size 0 is out of range"),
    "negative rate": (("fit", "--lr", "-1"), 2, "lr -1.0 is out of range"),
    "negative seed": (("fit", "--seed", "-1"), 1, "the seed (-1)"),
    "unknown schedule": (("fit", "--schedule", "exponential"), 2, "it must be one of constant, linear, cosine"),
    "long warmup": (
        ("fit", "--steps", "5", "--warmup", "6"),
        2,
        "a warmup of 6 steps is longer than the fit (5 steps)",
    ),
    "few audit draws": (("compare", "--audit-draws", "3"), 2, "audit_draws must be at least 20"),
    "few particles": (("compare", "--particles", "0"), 2, "particles must be at least 2"),
    "unwritable folder": (("fit", "--steps", "2", "--out", "file/run"), 1, "the folder 'file/run' cannot be written"),
    "a file as folder": (("compare", "--steps", "2", "--out", "file"), 1, "cannot be written"),
    "resume what": (("fit", "--resume"), 2, "--resume needs the folder of a run; give it with --out FOLDER"),
    "resume which comparison": (("compare", "--resume"), 2, "--resume needs the folder of a run; give it with --out"),
    "audit of no run": (("audit", "--run", "absent"), 1, "'absent' holds no run"),
    "evidence of no run": (("evidence", "--run", "."), 1, "'.' holds no run"),
    "exact evidence of a vae": (("evidence", "--method", "exact"), 1, "has no closed form log_evidence(x)"),
    "too few audit draws": (("audit", "--draws", "5"), 1, "at least 20 draws"),
    "check of no model": (("check", "vea"), 2, "did you mean 'vae'?"),
}
# One of each way to fail: each costs a few seconds, most of them imports.
REAL = (
    "unknown model",
    "unknown guide",
    "unknown data",
    "unknown estimator",
    "no such program file",
    "program file that fails",
    "no such data file",
    "other width",
    "NaN in an array",
    "infinity in a table",
    "grey pixels, theirs",
    "zero steps",
    "unwritable folder",
)


def judge(case: str, code: int, out: str, err: str) -> None:
    _, expected, text = BAD[case]
    assert code == expected, (case, err)
    assert out == "", case
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), (case, err)
    assert text in err, (case, err)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_leaves_nothing(case, folder, capsys):
    before = files(folder)
    code = cli.main(list(BAD[case][0]))
    judge(case, code, *capsys.readouterr())
    assert files(folder) == before


def test_the_real_command_gives_one_line_and_leaves_nothing(folder):
    """The same through processes of their own, two at a time."""
    before = files(folder)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda case: real(*BAD[case][0], cwd=folder), REAL))
    for case, process in zip(REAL, done, strict=True):
        judge(case, process.returncode, process.stdout, process.stderr)
    assert files(folder) == before


def test_version_is_that_of_the_distribution(folder, capsys):
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parent.parent / "setup.cfg", encoding="utf-8")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"pyro-vi {setup['metadata']['version']}\n", "")
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    assert "--version" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args",
    [
        ("--nonsense",),
        ("fit", "--epoch", "3"),
        ("fit", "--steps", "many"),
        ("evidence", "--method", "guess"),
        ("fly",),
        (),
    ],
)
def test_bad_usage_exits_2_with_a_hint_on_stderr(args, folder, capsys):
    before = files(folder)
    with pytest.raises(SystemExit) as caught:
        cli.main(list(args))
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == "" and err and "Traceback" not in err
    assert files(folder) == before


def test_debug_shows_where(folder):
    with pytest.raises(ValueError, match="did you mean 'vae'"):
        cli.main(["fit", "vea", "--debug"])


def test_an_unknown_error_is_one_line_too(monkeypatch, capsys, folder):
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("pyro_vi.data.load", fails)
    assert cli.main(["check"]) == 1
    assert capsys.readouterr() == ("", "error: RuntimeError: first (--debug shows where)\n")


# ---- what the commands give


QUICK = ("--data", "five.npy", "--steps", "3", "--batch-size", "20")
SMALL = ("linear_gaussian(latent_dim=2)", "diag_normal(hidden=(4,))")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a pair with a known evidence, with its data beside it; made with another seed than 0."""
    parent = tmp_path_factory.mktemp("fitted")
    np.save(parent / "data.npy", np.random.default_rng(0).normal(size=(60, 5)))
    args = [
        "fit",
        *SMALL,
        "--data",
        str(parent / "data.npy"),
        "--steps",
        "40",
        "--seed",
        "3",
        "--out",
        str(parent / "run"),
    ]
    assert cli.main([*args, "--lr", "0.05"]) == 0
    return parent


def on(fitted: Path, command: str, *args: str) -> list[str]:
    return [command, *SMALL, "--data", str(fitted / "data.npy"), "--run", str(fitted / "run"), *args]


def test_fit_writes_its_folder_and_shows_its_numbers(folder, capsys):
    assert cli.main(["fit", *SMALL, *QUICK, "--out", "run"]) == 0
    out, err = capsys.readouterr()
    assert "held-out ELBO" in out and "3 steps in" in out and out.endswith("\nrun\n")
    assert "Traceback" not in err
    assert {"config.json", "metrics.jsonl", "checkpoint.pt", "result.nc"} <= {
        path.name for path in Path("run").iterdir()
    }
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert f"{last['heldout_elbo']:.2f}" in out and f"{last['reconstruction']:.2f}" in out


def test_fit_in_json(folder, capsys):
    assert cli.main(["fit", *SMALL, *QUICK, "--out", "run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["elbo"] == "mean_field" and document["out"] == "run"
    assert document["kl_source"] == {"z": "analytic"}
    assert document["last"] == json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])


def test_without_out_each_run_has_a_folder_of_its_own(folder, capsys):
    for _ in range(2):
        assert cli.main(["fit", *SMALL, *QUICK, "--json"]) == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_a_folder_with_a_run_is_refused_and_resumed(folder, capsys):
    args = ["fit", *SMALL, *QUICK, "--out", "run"]
    assert cli.main(args) == 0
    capsys.readouterr()
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: 'run' holds a run already; continue it with --resume")
    assert cli.main([*args, "--resume"]) == 0
    assert cli.main([*args, "--resume", "--beta", "2"]) == 2
    assert "(beta was 1.0, is 2.0)" in capsys.readouterr().err


def test_evidence_of_a_run_is_that_of_its_parameters_on_what_it_held_out(fitted, capsys):
    """Also though the command's seed is another: it would split the data otherwise."""
    capsys.readouterr()
    assert cli.main(on(fitted, "evidence", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    data = load(str(fitted / "data.npy"), seed=3)
    pair = build_pair(*SMALL, data, seed=3)
    pair.load_state_dict(torch.load(fitted / "run" / "checkpoint.pt", weights_only=True)["pair"])
    exact = pair.model.log_evidence(data.heldout[0]).detach()
    assert found["method"] == "exact"
    assert abs(found["value"] - float(exact.mean())) < 1e-5
    assert cli.main(on(fitted, "evidence", "--method", "iw", "--particles", "5000", "--json")) == 0
    sampled = json.loads(capsys.readouterr().out)
    assert sampled["method"] == "iw" and sampled["particles"] == 5000
    assert abs(sampled["value"] - found["value"]) < 0.05  # the initial parameters are four times as far away
    assert cli.main(["evidence", *SMALL, "--data", str(fitted / "data.npy"), "--json"]) == 0
    assert abs(json.loads(capsys.readouterr().out)["value"] - found["value"]) > 0.2
    assert cli.main(on(fitted, "evidence")) == 0
    assert capsys.readouterr().out == (
        f"log p(x) = {found['value']:.3f} ± {found['se']:.3f} nats per held-out datum (exact)\n"
    )


def test_a_run_of_another_pair_or_a_damaged_one_is_refused(fitted, folder, capsys):
    capsys.readouterr()
    args = ["evidence", "linear_gaussian(latent_dim=3)", SMALL[1], "--data", str(fitted / "data.npy")]
    assert cli.main([*args, "--run", str(fitted / "run")]) == 1
    assert "is of another pair" in capsys.readouterr().err
    Path("damaged").mkdir()
    (folder / "damaged" / "config.json").write_text((fitted / "run" / "config.json").read_text())
    (folder / "damaged" / "checkpoint.pt").write_bytes(b"nothing that torch wrote")
    assert cli.main(["evidence", *SMALL, "--data", str(fitted / "data.npy"), "--run", "damaged"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: 'damaged/checkpoint.pt' cannot be read") and err.count("\n") == 1


def test_audit_of_a_run_is_at_its_parameters(fitted, capsys):
    capsys.readouterr()
    assert cli.main(on(fitted, "audit", "--draws", "20", "--json")) == 0
    at_run = json.loads(capsys.readouterr().out)
    assert cli.main(["audit", *SMALL, "--data", str(fitted / "data.npy"), "--draws", "20", "--json"]) == 0
    at_start = json.loads(capsys.readouterr().out)
    assert at_run["coords"]["elbo"]["data"] == ["trace", "mean_field"]
    assert at_run["data_vars"]["value_mean"]["data"][0] > at_start["data_vars"]["value_mean"]["data"][0] + 0.2
    assert cli.main(on(fitted, "audit", "--draws", "20")) == 0
    out, err = capsys.readouterr()
    assert "guide parameters" in out and "KL of z: analytic under mean_field." in out and err == ""
    assert "work-normalised variance" in out


def test_check_says_what_is_wrong_and_exits_1_on_an_error(folder, capsys):
    assert cli.main(["check", *SMALL, "--data", "five.npy"]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert cli.main(["check", "vae", "programs.py:other", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in found] == ["missing-in-guide", "missing-in-model"]
    assert found[0].keys() == {"code", "severity", "site", "message", "remedy"}
    assert cli.main(["check", "vae", "programs.py:other"]) == 1
    assert capsys.readouterr().out.startswith("error: the guide has no site 'z'")


def test_list_has_every_table(capsys):
    from pyro_vi import estimators, guides, models
    from pyro_vi.data import loading as data

    assert cli.main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"].keys() == models.TABLE.keys()
    assert found["guides"].keys() == guides.TABLE.keys()
    assert found["data"].keys() == data.available().keys()
    assert found["estimators"].keys() == estimators.TABLE.keys()
    assert all(about for table in found.values() for about in table.values())
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for table in found.values() for name in table)


def test_compare_in_json_is_one_document(folder, capsys):
    args = ["compare", *SMALL, *QUICK, "--audit-draws", "20", "--out", "both", "--json"]
    assert cli.main(args) == 0
    out, _ = capsys.readouterr()
    document = json.loads(out)
    assert out.startswith("{") and out.endswith("}\n")
    assert document == json.loads(Path("both/result.json").read_text())
    assert document["estimators"].keys() == {"trace", "mean_field"}
    assert document["out"] == "both" and document["data"] == "five"
    assert document["plots"] and all(Path(path).stat().st_size > 1000 for path in document["plots"])
    for name in ("trace", "mean_field"):
        with xr.open_datatree(f"both/{name}/result.nc", engine="h5netcdf") as tree:
            assert {"posterior", "fit", "audit"} <= set(tree.children)


def test_compare_for_people_has_the_table_and_paths_that_exist(folder, capsys):
    args = [
        "compare",
        *SMALL,
        *QUICK,
        "--audit-draws",
        "0",
        "--elbos",
        "mean_field",
        "trace(num_particles=2)",
        "--out",
        "it",
    ]
    assert cli.main(args) == 0
    out, _ = capsys.readouterr()
    assert "held-out ELBO" in out and "TraceMeanField_ELBO" in out and "evidence (exact)" in out
    document = json.loads(Path("it/result.json").read_text())
    for result in document["estimators"].values():
        assert f"{result['elbo']:.2f} ± {result['elbo_se']:.2f}" in out
        assert f"{result['evidence']['value']:.2f} ± {result['evidence']['se']:.2f}" in out
    paths = out[out.rindex("\n\n") :].split()
    assert len(paths) >= 5 and all(Path(path).is_file() for path in paths)
    config = json.loads(Path("it/trace_num_particles=2/config.json").read_text())
    assert config["elbo"] == "trace(num_particles=2)" and config["data"] == "five.npy"


def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on(folder):
    """To the same bits as a run that was left alone, though the folder was not named."""
    args = ("fit", *SMALL, "--data", "five.npy", "--steps", "20000", "--batch-size", "20")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pyro_vi", *args]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob("runs/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    run = next(folder.glob("runs/*"))
    assert out == ""
    assert err.splitlines()[-1] == f"interrupted; continue with --out {run.relative_to(folder)} --resume"
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert 0 < state["position"]["step"] < 20000
    config = json.loads((run / "config.json").read_text())
    # To the end it would take a minute: the last steps tell as much. The schedule keeps its length.
    assert config["steps"] == 20000 and "Traceback" not in err


def test_ctrl_c_and_resume_in_one_process(folder, monkeypatch, capsys):
    from pyro_vi.fitting.progress import Progress

    update = Progress.update

    def press(self: Progress, step: int, elbo: float) -> None:
        update(self, step, elbo)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    args = ["compare", *SMALL, "--data", "five.npy", "--steps", "6", "--audit-draws", "0", "--out"]
    monkeypatch.setattr(Progress, "update", press)
    assert cli.main([*args, "one"]) == 130
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1] == "interrupted; continue with --out one --resume"
    monkeypatch.setattr(Progress, "update", update)
    assert cli.main([*args, "one", "--resume", "--json"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert cli.main([*args, "two", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    for name, result in whole["estimators"].items():
        assert {k: v for k, v in resumed["estimators"][name].items() if k != "train_seconds"} == {
            k: v for k, v in result.items() if k != "train_seconds"
        }


def test_the_main_job_with_all_its_defaults(folder):
    """`pyro-vi compare`: the numbers are finite, consistent and those that a VAE of digits has."""
    done = real("compare", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)

    def numbers(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from numbers(item)
        else:
            yield value

    assert all(value is not None and (isinstance(value, str) or math.isfinite(value)) for value in numbers(document))
    assert (document["model"], document["guide"], document["data"]) == ("vae", "diag_normal", "digits")
    assert document["num_data"] == 1498
    for name, result in document["estimators"].items():
        assert abs(result["reconstruction"] - result["kl"] - result["elbo"]) < 1e-4
        assert result["gap"] == pytest.approx(result["evidence"]["value"] - result["elbo"], abs=1e-9)
        assert 0 < result["gap"] < 1
        assert -26 < result["elbo"] < -22, name  # an untrained VAE has 64 log 2 = 44 nats
        assert [audit["step"] for audit in result["audits"]] == [0, 600, 1200]
    first = document["estimators"]["trace"]["audits"][0], document["estimators"]["mean_field"]["audits"][0]
    # Oracles, section 1: at initialisation the analytic KL has the smaller variance in the encoder by a factor of 20 to 500.
    assert 20 < first[0]["grad_var"]["guide"] / first[1]["grad_var"]["guide"] < 500
    assert all((folder / path).is_file() for path in document["plots"]) and len(document["plots"]) >= 5
