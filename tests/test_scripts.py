"""The scripts can be imported, and run through as a person would start them; the claims of the studies: `test_studies.py`."""

import os
import runpy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from script_files import NAMES, SCRIPTS, script

# Small settings: enough for the script to run through, too few for its numbers.
STUDIES = {
    "guide_width": ["--draws", "40"],
    "many_samples": ["--rows", "20", "--draws", "20"],
    "evidence": ["--most", "2", "--repetitions", "4", "--rows", "2", "--steps", "10"],
    "floor_and_ceiling": ["--rounds", "4", "--steps", "3"],
    "kl_direction": ["--steps", "10"],
    "discrete": ["--evaluations", "5", "--draws", "20", "--sizes", "3"],
    "draws": ["--steps", "5", "--rows", "4", "--replications", "4"],
}
QUICK = "kl_direction"


@pytest.mark.parametrize("name", NAMES)
def test_script_can_be_imported(name, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    for variable in (
        "JAX_PLATFORMS",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES",
    ):  # the benchmark sets them as it is imported
        monkeypatch.setenv(variable, "")
    assert script(name).__doc__
    sys.modules.pop("contenders", None)


@pytest.mark.parametrize("name", [n if n == QUICK else pytest.param(n, marks=pytest.mark.slow) for n in STUDIES])
def test_study_runs_and_writes_its_picture(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"study_{name}.py", "--out", str(tmp_path / "out"), *STUDIES[name]])
    runpy.run_path(str(SCRIPTS / f"study_{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    picture = tmp_path / "out" / f"{name}.png"
    assert printed.count("│") > 10 and printed.rstrip().endswith(str(picture))  # a table, and where the picture is
    with Image.open(picture) as image:
        assert min(image.size) > 400
        assert len(np.unique(np.asarray(image.convert("L")))) > 20  # something is drawn


def test_evidence_identity_runs(capsys):
    runpy.run_path(str(SCRIPTS / "evidence_identity.py"), run_name="__main__")
    *_, first, second, third, evidence = (line.split()[-1] for line in capsys.readouterr().out.splitlines() if line)
    assert first == second == third == evidence


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fit_one_pair", "compare_estimators"])
def test_script_runs_as_it_is(name, tmp_path):
    done = subprocess.run([sys.executable, SCRIPTS / f"{name}.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ELBO" in done.stdout
    assert bool(list(tmp_path.rglob("*.png"))) == (name == "compare_estimators")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        pytest.param(
            "music",
            ["--steps", "2", "--particles", "2"],
            "nats a time step",
            marks=pytest.mark.skipif("PYRO_VI_DATA" not in os.environ, reason="PYRO_VI_DATA is not set"),
        ),
        ("robot", ["--data", "robot(sequences=12, steps=8)", "--steps", "2", "--draws", "2"], "last value"),
    ],
)
def test_scripts_of_sequences_run(name, args, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *args])
    runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    assert words in capsys.readouterr().out


def test_the_robot_is_predicted_from_the_past_only():
    """The errors of the last value and of the line are those of a known series: x_t = t² has steps 2t + 1 and curvature 2."""
    robot = script("robot")
    x = (torch.arange(6.0) ** 2).expand(2, 6).unsqueeze(-1)
    seen = []

    class Square:
        model = None

        def guide(self, past, lengths):
            seen.append(past.shape[1])
            assert lengths.tolist() == [past.shape[1]] * len(past)
            return {"z": past}

    run = Square()
    run.model = SimpleNamespace(transition=lambda z: (z.sqrt() + 1, torch.zeros_like(z)), decode=torch.square)
    found = robot.compared(run, x, torch.tensor([6, 4]), draws=3, seed=0)
    assert seen == [t for t in (2, 3, 4, 5) for _ in range(3)]
    assert found["deep Markov model"] == pytest.approx(0.0, abs=1e-9)
    assert found["last value"] == pytest.approx(np.mean(np.square([3, 3, 5, 5, 7, 9])))
    assert found["line through the last two"] == pytest.approx(4.0)
