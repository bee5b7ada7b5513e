"""The command line as people meet it: a line for each bad input, one JSON document, and Ctrl-C."""

import configparser
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from command_line import FAILED, SMALL, files, real

from pyro_vi.cli import entry as cli
from pyro_vi.cli.commands import PairCommand
from pyro_vi.data import load

GREY = "digits(binarize=False)"


BAD: dict[str, tuple[tuple[str, ...], int, str]] = {
    "unknown model": (("fit", "vea"), 2, "no model named 'vea'; did you mean 'vae'? Available: "),
    "unknown guide": (("compare", "vae", "diag_norml"), 2, "no guide named 'diag_norml'; did you mean 'diag_normal'?"),
    "unknown data": (("fit", "--data", "digts"), 2, "no data set named 'digts'; did you mean 'digits'?"),
    "unknown estimator": (("fit", "--elbo", "tracee"), 2, "no ELBO estimator named 'tracee'; did you mean 'trace'?"),
    "unknown estimators": (("compare", "--elbos", "trace", "mean_feild"), 2, "no ELBO estimator named 'mean_feild'"),
    "an estimator twice": (("compare", "--elbos", "trace", "trace"), 2, "'trace' is named twice"),
    "a guide twice": (("compare", "vae", "exact", "exact"), 2, "guide 'exact' is named twice"),
    "guides and estimators": (
        ("compare", "vae", "diag_normal", "exact", "--elbos", "trace", "stl"),
        2,
        "several guides are compared under one estimator, not under trace, stl",
    ),
    "no seeds": (("compare", "--seeds", "0"), 2, "seeds must be a whole number of at least 1, not 0"),
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
    "other width": (("fit", "programs.py:Wide", "--data", "five.npy"), 1, "its observed values have shape (36, 5)"),
    "width that broadcasts": (
        ("fit", "programs.py:Wide(width=1)", "--data", "five.npy"),
        1,
        "one prediction counts for several values",
    ),
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
        "are outside the support of Bernoulli",
    ),
    "guide without the site": (("fit", "vae", "programs.py:other"), 1, "the guide has no site 'z'"),
    "exact guide": (("fit", "vae", "exact"), 1, "needs a model with a closed form"),
    "no parameters": (
        ("fit", "linear_gaussian(learn=False)", "exact", "--data", "five.npy"),
        2,
        "no parameters to fit",
    ),
    "zero steps": (("fit", "--steps", "0"), 2, "steps must be a whole number of at least 1, not 0"),
    "zero epochs": (("compare", "--epochs", "0"), 2, "epochs must be a whole number of at least 1, not 0"),
    "steps and epochs": (("compare", "--epochs", "1", "--steps", "1"), 2, "give steps or epochs, not both"),
    "zero batch": (("fit", "--batch-size", "0"), 2, "batch_size must be a whole number of at least 1, not 0"),
    "negative rate": (("fit", "--lr", "-1"), 2, "lr must be a number above 0, not -1.0"),
    "negative seed": (("fit", "--seed", "-1"), 2, "seed must be a whole number from 0 to "),
    "unknown schedule": (
        ("fit", "--schedule", "exponential"),
        2,
        "schedule must be one of constant, linear, cosine, plateau",
    ),
    "long warmup": (
        ("fit", "--steps", "5", "--warmup", "6"),
        2,
        "a warmup of 6 steps is longer than the fit (5 steps)",
    ),
    "few audit draws": (("compare", "--audit-draws", "3"), 2, "audit_draws must be at least 20"),
    "few particles": (("compare", "--particles", "0"), 2, "particles must be a whole number of at least 2, not 0"),
    "unwritable folder": (("fit", "--steps", "2", "--out", "file/run"), 1, "the folder 'file/run' cannot be written"),
    "a file as folder": (("compare", "--steps", "2", "--out", "file"), 1, "cannot be written"),
    "resume what": (("fit", "--resume"), 2, "--resume needs the folder of a run; give it with --out FOLDER"),
    "resume of nothing": (
        ("resume", "absent"),
        1,
        "'absent' holds no run to resume; give the folder of a fit or a comp",
    ),
    "resume which comparison": (("compare", "--resume"), 2, "--resume needs the folder of a run; give it with --out"),
    "audit of no run": (("audit", "--run", "absent"), 1, "'absent' holds no run"),
    "evidence of no run": (("evidence", "--run", "."), 1, "'.' holds no run"),
    "exact evidence of a vae": (("evidence", "--method", "exact"), 1, "has no closed form log_evidence(x)"),
    "too few audit draws": (("audit", "--draws", "5"), 1, "at least 20 draws"),
    "check of no model": (("check", "vea"), 2, "did you mean 'vae'?"),
    "show of no model": (("show", "vea"), 2, "did you mean 'vae'?"),
    "show of no run": (("show", "--run", "absent"), 1, "'absent' holds no run"),
    "show under no estimator": (("show", "--elbo", "tracee"), 2, "did you mean 'trace'?"),
    "show of no batch": (("show", "--batch-size", "0"), 2, "batch_size must be a whole number of at least 1, not 0"),
    "show into a file": (("show", *SMALL, "--data", "five.npy", "--out", "file/x"), 1, "cannot be written"),
    "label that is not there": (
        ("fit", "--data", "kinds.csv", "--label", "knd"),
        2,
        "no column named 'knd'; did you mean",
    ),
    "label of an array": (
        ("fit", "--data", "five.npy", "--label", "a"),
        2,
        "has no named columns, so label cannot be chosen",
    ),
    "label of a data set": (
        ("fit", "--label", "a"),
        2,
        "data set 'digits' has no option 'label'; did you mean 'labels'?",
    ),
    "standardised twice": (
        ("fit", "--data", "wine(standardize=True)", "--standardize"),
        2,
        "'standardize' is given twice",
    ),
    "labels of no number": (("fit", "--labels", "some"), 2, "--labels some is not allowed; give 'all', or how many"),
    "labels of no row": (
        ("fit", "--labels", "0"),
        2,
        "--labels 0 is not allowed; give 'all', or how many of each class",
    ),
    "list of no name": (("list", "diag_norml"), 2, "estimator named 'diag_norml'; did you mean 'diag_normal'?"),
}


# One of each way to fail: each costs a few seconds, most of them imports.

REAL = (
    "unknown model",
    *(
        pytest.param(case, marks=pytest.mark.slow)
        for case in ("program file that fails", "other width", "grey pixels, theirs", "unwritable folder")
    ),
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


@pytest.mark.slow
@pytest.mark.parametrize("case", REAL)
def test_the_real_command_gives_one_line_and_leaves_nothing(case, folder):
    """The same through a process of its own."""
    before = files(folder)
    done = real(*BAD[case][0], cwd=folder)
    judge(case, done.returncode, done.stdout, done.stderr)
    assert files(folder) == before


@pytest.mark.slow
def test_columns_of_a_table_are_chosen_and_kept_in_the_run(folder, capsys):
    args = [
        "--data",
        "kinds.csv",
        "--columns",
        "a,b",
        "--label",
        "kind",
        "--standardize",
        "--steps",
        "2",
        "--compile",
        "no",
        "--out",
        "run",
    ]
    assert cli.main(["fit", "vae(latent_dim=1)", *args]) == 0
    name = "kinds.csv(columns='a,b', label='kind', standardize=True)"
    assert json.loads((folder / "run" / "config.json").read_text())["data"] == name
    data = load(name)
    assert (data.spec.features, data.classes) == (("a", "b"), ("blue", "red"))
    assert float(data.train()[0].mean(0).abs().max()) < 1e-6
    tree = xr.open_datatree(folder / "run" / "result.nc")
    assert tree["observed_data"]["x_dim_0"].values.tolist() == ["a", "b"]
    tree.close()


def test_options_of_tables_are_those_of_the_data():
    found = PairCommand(data="a.csv", label="kind", labels="all", target="y", group="county").source
    assert found == "a.csv(label='kind', target='y', group='county', labels=True)"
    assert PairCommand(labels="20").source == "digits(labels=20)"


def test_version_is_that_of_the_distribution(folder, capsys):
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
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

    monkeypatch.setattr("pyro_vi.fitting.plan_of", fails)
    assert cli.main(["check"]) == 1
    assert capsys.readouterr() == ("", "error: RuntimeError: first (--debug shows where)\n")


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on(folder):
    """To the same bits as a run that was left alone, though the folder was not named."""
    args = ("fit", *SMALL, "--data", "five.npy", "--steps", "20000", "--batch-size", "20")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pyro_vi", *args]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + FAILED
    while not list(folder.glob("runs/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=FAILED)
    assert process.returncode == 130, err
    run = next(folder.glob("runs/*"))
    assert out == ""
    assert (
        err.splitlines()[-1]
        == f"interrupted; continue with: pyro-vi resume {shlex.quote(str(run.relative_to(folder)))}"
    )
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert 0 < state["position"]["step"] < 20000
    config = json.loads((run / "config.json").read_text())
    # To the end it would take a minute: the last steps tell as much. The schedule keeps its length.
    assert config["steps"] == 20000 and "Traceback" not in err


@pytest.mark.slow
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
    assert out == "" and err.splitlines()[-1] == "interrupted; continue with: pyro-vi resume one"
    monkeypatch.setattr(Progress, "update", update)
    assert cli.main(["resume", "one/trace"]) == 2
    assert "is one fit of a comparison; continue all of it with: pyro-vi resume one\n" in capsys.readouterr().err
    assert cli.main(["resume", "one", "--json"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert cli.main([*args, "two", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    for name, result in whole["estimators"].items():
        assert {k: v for k, v in resumed["estimators"][name].items() if k != "train_seconds"} == {
            k: v for k, v in result.items() if k != "train_seconds"
        }
