"""Each command gives the numbers that it says, for people and as one JSON document."""

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from command_line import QUICK, SMALL, real

from pyro_vi.cli import entry as cli
from pyro_vi.cli.commands import Check, Compare, Fit, FittingCommand
from pyro_vi.data.loading import load
from pyro_vi.fitting import Options
from pyro_vi.programs.build import build_pair
from pyro_vi.reporting.pictures import plotting


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


@pytest.mark.slow
def test_fit_writes_its_folder_and_shows_its_numbers(folder, capsys):
    assert cli.main(["fit", *SMALL, *QUICK, "--out", "run"]) == 0
    out, err = capsys.readouterr()
    assert "held-out ELBO" in out and "3 steps in" in out and out.endswith("\nrun\n")
    assert "Traceback" not in err
    names = {path.name for path in Path("run").iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoint.pt", "result.nc"} <= names
    assert "run/latent_means.png\n" in out and {"training_curves.png", "latent_means.png"} <= names
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert f"{last['heldout_elbo']:.2f}" in out and f"{last['reconstruction']:.2f}" in out
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    best = max(records, key=lambda record: record["heldout_elbo"])
    assert f"highest held-out ELBO: {best['heldout_elbo']:.2f} at step {best['step']}" in out


@pytest.mark.slow
def test_fit_in_json(folder, capsys):
    assert cli.main(["fit", *SMALL, *QUICK, "--out", "run", "--format", "svg", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "run/reconstructions.svg" in document["plots"] and all(Path(path).is_file() for path in document["plots"])
    assert document["elbo"] == "mean_field" and document["out"] == "run"
    assert document["kl_source"] == {"z": "analytic"}
    assert document["last"] == json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.filterwarnings("default")
def test_a_picture_that_fails_loses_neither_the_table_nor_the_run(folder, capsys, monkeypatch):
    def broken(made):
        raise RuntimeError("no more ink\nand no paper")

    monkeypatch.setattr(plotting, "PICTURES", (plotting.Picture(broken),))
    assert cli.main(["fit", *SMALL, *QUICK, "--out", "run"]) == 0
    out, err = capsys.readouterr()
    assert "held-out ELBO" in out and out.endswith("\nrun\n") and Path("run/result.nc").is_file()
    assert [line for line in err.splitlines() if "warning" in line] == [
        "warning: no picture broken: RuntimeError: no more ink"
    ]


@pytest.mark.slow
def test_without_out_each_run_has_a_folder_of_its_own(folder, capsys):
    for _ in range(2):
        assert cli.main(["fit", *SMALL, *QUICK, "--json"]) == 0
    assert len(list(Path("runs").iterdir())) == 2


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_options_of_a_fit_reach_it(folder, capsys):
    """A step has 5 + 5 of the 36 training rows, and the last one of an epoch is left out."""
    options = ["--batch-size", "5", "--accumulate", "2", "--drop-last", "--cycles", "1", "--free-bits", "0.1"]
    assert cli.main(["fit", *SMALL, *QUICK, *options, "--out", "run"]) == 0
    config = json.loads(Path("run/config.json").read_text())
    found = {name: config[name] for name in ("batch_size", "accumulate", "drop_last", "cycles", "free_bits")}
    assert found == {"batch_size": 5, "accumulate": 2, "drop_last": True, "cycles": 1, "free_bits": 0.1}
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["beta"] for line in lines] == pytest.approx([0.0, 2 / 3, 1.0])


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


@pytest.mark.slow
def test_gaps_are_split_on_training_and_held_out_data_and_drawn(fitted, capsys, tmp_path):
    """The evidence and the approximation gap of the model have closed forms."""
    capsys.readouterr()
    assert cli.main(on(fitted, "gaps", "--rows", "4", "--json", "--out", str(tmp_path))) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["training", "held-out"]
    assert (tmp_path / "gaps.png").stat().st_size > 1000
    data = load(str(fitted / "data.npy"), seed=3)
    pair = build_pair(*SMALL, data, seed=3)
    pair.load_state_dict(torch.load(fitted / "run" / "checkpoint.pt", weights_only=True)["pair"])
    x = data.heldout[0]
    x = x[torch.linspace(0, len(x) - 1, 4).round().long()]
    precision = torch.linalg.inv(pair.model.posterior(x)["z"].covariance_matrix[0].detach())
    best = float(0.5 * (precision.diagonal().log().sum() - precision.logdet()))
    assert found["held-out"]["method"] == "exact"
    assert found["held-out"]["approximation"]["diag_normal"] == pytest.approx(best, abs=1e-4)
    evidence = float(pair.model.log_evidence(x).detach().mean())
    assert found["held-out"]["log_evidence"] == pytest.approx(evidence, abs=1e-4)
    assert found["held-out"]["elbo"] + found["held-out"]["gap"] == pytest.approx(evidence, abs=1e-4)
    assert cli.main(on(fitted, "gaps", "--rows", "4")) == 0
    out = capsys.readouterr().out
    assert "held-out: " in out and "amortization" in out and "The gap log p(x)" in out


@pytest.mark.slow
def test_diagnose_prints_each_verdict_with_its_sentences(fitted, capsys):
    capsys.readouterr()
    assert cli.main(on(fitted, "diagnose", "--only", "linear_response", "reliability", "--rows", "5")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("5 of 6 held-out rows, evenly spaced; sentences count rows within these, from 0")
    assert [line.split(":")[0] for line in lines if line and not line.startswith(" ")][1:] == [
        "reliability",
        "linear_response",
    ]
    assert cli.main(on(fitted, "diagnose", "--only", "reliability", "--json")) == 0
    assert set(json.loads(capsys.readouterr().out)["reliability"]) >= {"verdict", "sentences", "draws"}
    assert cli.main(on(fitted, "diagnose", "--only", "khat")) == 2
    assert "there is no diagnostic 'khat'" in capsys.readouterr().err


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


@pytest.mark.slow
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
    assert [finding["code"] for finding in found] == ["missing-in-guide"]
    assert found[0].keys() == {"code", "severity", "site", "message", "remedy"}
    assert cli.main(["check", "vae", "programs.py:other"]) == 1
    assert capsys.readouterr().out.startswith("error: the guide has no site 'z'")
    assert cli.main(["check", *SMALL, "--data", "five.npy", "--steps", "5", "--warmup", "9"]) == 1
    assert capsys.readouterr().out.endswith("use warmup=1, or more steps [warmup-too-long]\n")


def test_show_says_what_a_fit_does(fitted, capsys):
    """Of a run with the rows and the estimator of that run, though the command's seed is another."""
    assert cli.main(["show", *SMALL, "--data", str(fitted / "data.npy"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"]["note"] == "all 54 rows in each step, in the given order; 6 held out"
    assert {name: one["count"] for name, one in found["parameters"].items() if one["owner"] == "model"} == {
        "weight": 10,
        "bias": 5,
        "log_scale": 1,
    }
    assert found["sites"]["z"]["kl"] == "analytic" and found["elbo"] == "mean_field"
    assert cli.main(on(fitted, "show", "--elbo", "trace", "--batch-size", "20", "--out", str(fitted / "shown"))) == 0
    out = capsys.readouterr().out
    assert "rows: 54 rows in batches of 20, shuffled; 6 held out (every latent site belongs to a row)" in out
    assert "│ z    │ Normal       │" in out and "│ sampled │" in out and "numbers in all: model 16, guide " in out
    assert json.loads((fitted / "shown" / "layout.json").read_text())["elbo"] == "trace"


@pytest.mark.slow
def test_show_of_a_run_has_its_batches_and_its_estimator(folder, capsys):
    assert cli.main(["fit", *SMALL, *QUICK, "--elbo", "stl", "--shuffle", "False", "--out", "run"]) == 0
    capsys.readouterr()
    assert cli.main(["show", *SMALL, "--data", "five.npy", "--run", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"]["note"] == "36 rows in batches of 20, in the given order; 4 held out"
    assert found["elbo"] == "stl" and found["sites"]["z"]["kl"] == "sampled"
    assert cli.main(["show", "linear_gaussian(latent_dim=3)", SMALL[1], "--data", "five.npy", "--run", "run"]) == 1
    assert "is of another pair" in capsys.readouterr().err


def test_list_has_every_table(capsys):
    from pyro_vi import estimators, guides, models
    from pyro_vi.data.loading import available
    from pyro_vi.programs.lookup import AUTOGUIDES

    assert cli.main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"].keys() == models.TABLE.keys()
    assert found["guides"].keys() == guides.TABLE.keys() | AUTOGUIDES.keys()
    assert found["data"].keys() == available().keys()
    assert found["estimators"].keys() == estimators.TABLE.keys()
    assert all(about for table in found.values() for about in table.values())
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for table in found.values() for name in table)
    assert "pairs that go together" not in shown


@pytest.mark.slow
def test_list_of_pairs_tries_each_model_with_each_guide(capsys):
    from pyro_vi import guides, models

    assert cli.main(["list", "--pairs", "--json"]) == 0
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert {(pair["model"], pair["guide"]) for pair in pairs} == {(m, g) for m in models.TABLE for g in guides.TABLE}
    assert {"vae", "linear_gaussian"} <= {pair["model"] for pair in pairs if not pair["reason"]}


def test_list_of_pairs_shows_both_tables(capsys, monkeypatch):
    from pyro_vi import overview
    from pyro_vi.overview.shelves import Match

    monkeypatch.setattr(overview, "matches", lambda: [Match("vae", "prior", "d"), Match("vae", "exact", "d", "no")])
    assert cli.main(["list", "--pairs"]) == 0
    shown = capsys.readouterr().out
    assert "pairs that go together" in shown and "pairs that do not" in shown and "NAME" in shown


@pytest.mark.parametrize("args", [["--help"], ["fit", "--help"], ["list"], ["list", "--json"]], ids=" ".join)
def test_help_and_names_import_neither_torch_nor_pyro(args):
    """Help and names are shown at once; torch and Pyro take seconds."""
    code = (
        "import sys\nfrom pyro_vi.cli.entry import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    assert "diag_normal" in done.stdout or "compare" in done.stdout
    assert not {"torch", "pyro", "numpy", "matplotlib"} & set(done.stderr.split())


def test_the_defaults_of_a_fit_are_the_same_in_commands():
    names = {option.name: option.default for option in dataclasses.fields(Options)}
    for command in (FittingCommand, Compare, Fit, Check):
        for option in dataclasses.fields(command):
            if option.name in names and option.name not in ("compile", "allow"):
                assert option.default == names[option.name], (command, option.name)


@pytest.mark.slow
def test_list_of_a_name_has_its_options(capsys):
    assert cli.main(["list", "diag_normal"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "hidden" in line)
    assert "tuple[int, ...] | int" in row and "(64,)" in row and "It goes with the models: vae, linear_gaussian" in out
    assert cli.main(["list", "digits", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["kind"] == "data set" and found["options"]["standardize"]["default"] == "False"


@pytest.mark.slow
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


@pytest.mark.slow
def test_guides_are_compared_under_two_seeds(folder, capsys):
    """One of them has nothing to fit, one is refused."""
    model, one, two = "linear_gaussian(latent_dim=2, learn=False)", SMALL[1], "diag_normal(init_scale=0.0)"
    args = ["compare", model, one, two, "exact", *QUICK, "--seeds", "2", "--out", "them"]
    assert cli.main(args) == 0
    out, _ = capsys.readouterr()
    assert "with 3 guides under mean_field on five" in out and "Over 2 seeds, " in out
    assert "is not compared: init_scale is a standard deviation" in out
    document = json.loads(Path("them/result.json").read_text())
    assert list(document["guides"]) == [one, "exact", two] and document["seeds"] == [0, 1]
    assert [Path(path).name for path in document["plots"]][:2] == ["training_curves.png", "behind_the_best.png"]
    paths = out[out.rindex("\n\n") :].split()
    assert sum(path.endswith("result.nc") for path in paths) == 4 and all(Path(path).is_file() for path in paths)
    assert cli.main([*args, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["guides"]["exact"]["elbo"] == document["guides"]["exact"]["elbo"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_main_job_with_all_its_defaults(folder):
    """`pyro-vi compare`: the numbers are finite, consistent and those that a VAE of digits has."""
    done = real("compare", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)

    def numbers(value: Any) -> Iterator[Any]:
        if isinstance(
            value, dict
        ):  # a guide with a density has no log p(x, z) at a point, local latents no predictive density
            value = [item for key, item in value.items() if key not in ("log_joint", "heldout_lpd")]
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
    # At initialisation the guide is near the prior, and the KL in closed form leaves the encoder
    # a smaller variance: by a factor of 20 to 500.
    assert 20 < first[0]["grad_var"]["guide"] / first[1]["grad_var"]["guide"] < 500
    assert all((folder / path).is_file() for path in document["plots"]) and len(document["plots"]) >= 5


@pytest.mark.slow
def test_the_folder_of_a_run_is_enough(fitted, folder, capsys):
    """Model, guide, data, seed and what was held out are in it; new data are scored on all their rows."""
    capsys.readouterr()
    assert cli.main(on(fitted, "evidence", "--json")) == 0
    named = json.loads(capsys.readouterr().out)
    run = ["--run", str(fitted / "run")]
    assert cli.main(["evidence", *run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == named and named["on"] == "held-out" and named["rows"] == 6
    assert cli.main(["evidence", *run, "--data", "five.npy"]) == 0
    out = capsys.readouterr().out
    x = torch.as_tensor(np.load("five.npy"), dtype=torch.float32)
    pair = build_pair(*SMALL, load(str(fitted / "data.npy"), seed=3), seed=3)
    pair.load_state_dict(torch.load(fitted / "run" / "checkpoint.pt", weights_only=True)["pair"])
    assert out.startswith(f"log p(x) = {float(pair.model.log_evidence(x).detach().mean()):.3f} ± ")
    assert "nats per new datum (exact)\nall 40 rows of five.npy are scored; none of them is held out\n" in out
    assert cli.main(["check", *run]) == 0
    assert (
        "nothing found: linear_gaussian(latent_dim=2) with guide diag_normal(hidden=(4,)) on" in capsys.readouterr().out
    )
    assert cli.main(["check", *run, "--data", "five.npy"]) == 0
    assert capsys.readouterr().out.endswith("on five.npy\n")
    assert cli.main(["show", *run, "--data", "five.npy"]) == 2
    assert "leave --data out" in capsys.readouterr().err
    assert cli.main(["show", *run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["heldout"] == 6
    assert cli.main(["plot", str(fitted / "run"), "--only", "training_curves", "--out", "drawn"]) == 0
    assert capsys.readouterr().out == "drawn/training_curves.png\n" and Path("drawn/training_curves.png").is_file()
    assert cli.main(["evidence", *run, "--label", "kind"]) == 2
    assert "leave the options of data out, or give --data" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_export_that_fails_loses_neither_the_table_nor_the_run(folder, capsys, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no room")

    monkeypatch.setattr("pyro_vi.afterwards.exporting.datatree_of_pair", broken)
    for command, line in (("fit", "no result.nc: "), ("compare", "no result.nc for mean_field: ")):
        assert cli.main([command, *SMALL, *QUICK, "--out", command]) == 0
        out, err = capsys.readouterr()
        assert "held-out ELBO" in out and f"warning: {line}RuntimeError: no room" in err.splitlines()
