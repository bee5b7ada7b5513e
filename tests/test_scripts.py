"""The scripts can be imported, and run through as a person would start them; the claims of the studies: `test_studies.py`."""

import runpy
import subprocess
import sys

import numpy as np
import pytest
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
