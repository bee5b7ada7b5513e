"""The best record of a fit: fits that stop by held-out data, their parameters, and what a folder keeps of them."""

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from catalogue import columns, global_pair, number, scalars
from small_fits import DIAGONAL, in_main_thread, interrupting, quick, same, same_fit, untimed
from torch import nn

import pyro_vi
from pyro_vi import InputError, Run, UsageError
from pyro_vi.data.loading import load
from pyro_vi.fitting.best import Best, BestSoFar, number_of
from pyro_vi.fitting.sealed import read_sealed, write_sealed
from pyro_vi.fitting.settings import Settings

WIDE = "linear_gaussian(latent_dim=6)"


def overfitting(**options: Any) -> Run:
    """Six factors on 18 rows: the held-out ELBO falls from step 6 on, and rises again later."""
    data = load(columns(24, 8), heldout=0.25)
    return quick(WIDE, DIAGONAL, data, **{"steps": 200, "lr": 0.05, "compile": False, "check": False, **options})


hurried = partial(interrupting, lr=0.05)


def early(**options: Any) -> Run:
    return overfitting(stop="heldout", patience=3, optimizer=hurried(), **options)


def settings(stop: str | None = "heldout", warmup: int = 0, patience: int = 2) -> Settings:
    return Settings(9, 5, "constant", None, 1.0, warmup, 0, (), stop, patience=patience)


@pytest.fixture(scope="module")
def whole() -> Run:
    return early()


def test_the_result_of_an_overfitting_fit_is_a_fit_stopped_at_its_best_record(whole):
    """Three records after the best one the fit ends; each step has a record in so short a fit."""
    values = {record["step"]: record["heldout_elbo"] for record in whole.history}
    best = max(values, key=values.__getitem__)
    assert whole.best == Best(best, values[best], "heldout_elbo") and whole.chosen == best
    assert [*values].index(best) == len(values) - 4 and whole.steps == [*values][-1] < 200
    short = overfitting(steps=best, optimizer=hurried(), schedule="constant")
    assert same(short.pair.state_dict(), whole.pair.state_dict())
    assert same(whole.at(whole.best).state_dict(), whole.pair.state_dict())
    assert whole.state is not None and not same(whole.state["pair"], whole.pair.state_dict())  # of the last step
    assert whole.record["step"] == best and f"at step {best} (the result)" in repr(whole)


def test_a_fit_that_rises_to_its_end_is_not_stopped():
    run = overfitting(steps=12, lr=1e-3, stop="heldout", patience=1)
    values = [record["heldout_elbo"] for record in run.history]
    assert values == sorted(values) and len({*values}) == 12
    assert run.steps == run.chosen == 12 and run.best.step == 12 and "the last one" in repr(run)


def test_all_records_use_the_same_draws_only_if_they_are_compared():
    """Of parameters that do not move, the held-out numbers are equal under the same draws."""
    still = {"steps": 4, "lr": 1e-30, "optimizer": "sgd", "schedule": "constant"}
    compared, other = (overfitting(stop=stop, **still) for stop in ("heldout", None))
    assert len({record["heldout_elbo"] for record in compared.history}) == 1
    assert len({record["elbo"] for record in compared.history}) == 1
    assert len({record["heldout_elbo"] for record in other.history}) == 4


@in_main_thread
@pytest.mark.parametrize("stops", [(4,), pytest.param((7, 2), marks=pytest.mark.slow)], ids=str)
def test_a_resumed_fit_has_the_same_best_record(stops, whole, tmp_path):
    for i, stop in enumerate(stops):
        with pytest.raises(KeyboardInterrupt):
            overfitting(stop="heldout", patience=3, optimizer=hurried(stop), out=tmp_path / "run", resume=i > 0)
    for _ in range(2):  # a finished run gives its result again
        resumed = early(out=tmp_path / "run", resume=True)
        assert same_fit(resumed, whole) and (resumed.best, resumed.chosen) == (whole.best, whole.chosen)
    opened = pyro_vi.open(tmp_path / "run", data=load(columns(24, 8), heldout=0.25))
    assert same(opened.pair.state_dict(), whole.pair.state_dict()) and opened.best == whole.best
    assert opened.run.chosen == whole.chosen and opened.run.steps == whole.steps
    assert same(opened.at(opened.best).state_dict(), whole.pair.state_dict())
    last = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert same(last["pair"], whole.state["pair"])


@pytest.mark.slow
def test_more_patience_goes_on_from_the_last_step(whole, tmp_path):
    early(out=tmp_path / "run")
    on = overfitting(
        stop="heldout", patience=6, optimizer=hurried(), out=tmp_path / "run", resume=True, allow="patience"
    )
    expected = overfitting(stop="heldout", patience=6, optimizer=hurried())
    assert expected.steps > whole.steps and same_fit(on, expected) and on.best == expected.best


def test_a_run_in_memory_is_saved_with_its_best_parameters(whole, tmp_path):
    opened = pyro_vi.open(pyro_vi.open(whole).save(tmp_path / "run"), model=WIDE, guide=DIAGONAL)
    assert same(opened.pair.state_dict(), whole.pair.state_dict()) and opened.run.chosen == whole.chosen


@pytest.mark.slow
def test_any_fit_with_held_out_rows_keeps_its_best_record_in_its_folder(tmp_path):
    options = {"steps": 12, "schedule": "constant", "snapshots": (0.25, 0.5, 0.75)}
    run, plain = overfitting(out=tmp_path / "run", **options), overfitting(**options)
    assert same_fit(run, plain) and run.best == plain.best and run.chosen is None
    values = {record["step"]: record["heldout_elbo"] for record in run.history}
    assert run.best.step == max(values, key=values.__getitem__) < 12
    at = run.at(run.best).state_dict()
    assert same(at, overfitting(steps=run.best.step, schedule="constant").pair.state_dict())
    assert f"step {run.best.step}" in repr(run) and "lower at the last step" in repr(run)
    assert "best.pt" not in {path.name for path in tmp_path.glob("run/*.tmp")} and (tmp_path / "run/best.pt").is_file()
    with pytest.raises(
        UsageError, match=r"^the parameters of the best record \(step \d+\) are not kept: the run has no"
    ):
        plain.at(Best(5, 0.0, "heldout_elbo"))
    without = quick(WIDE, DIAGONAL, load(columns(24, 8), heldout=0.0), steps=2, out=tmp_path / "none")
    assert without.best is None and not (tmp_path / "none" / "best.pt").exists()


@pytest.mark.parametrize(
    "damage", ["missing", *(pytest.param(d, marks=pytest.mark.slow) for d in ("cut", "of another step"))]
)
def test_a_best_file_that_cannot_be_used_is_one_line(damage, whole, tmp_path):
    folder = tmp_path / "run"
    early(out=folder)
    best = folder / "best.pt"
    if damage == "missing":
        best.unlink()
    elif damage == "cut":
        best.write_bytes(best.read_bytes()[:-9])
    else:
        state, run = read_sealed(best, None, "best"), read_sealed(folder / "checkpoint.pt", None, "checkpoint")
        write_sealed(best, {**state, "step": 1}, run["config"]["run"], "best")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed = early(out=folder, resume=True)
        opened = pyro_vi.open(folder, data=load(columns(24, 8), heldout=0.25))
    said = [str(warning.message) for warning in caught]
    assert len(said) == 3 and all("\n" not in line for line in said), said
    assert "best.pt' is not used: it " in said[0] and "are lost" in said[0] and "are lost" in said[1]
    assert "best.pt' is not used: it " in said[2] and "those of the last step" in said[2]
    assert untimed(resumed.history) == untimed(whole.history) and resumed.best == whole.best
    for run in (resumed, opened.run):
        assert run.chosen is None and same(run.pair.state_dict(), whole.state["pair"])


@pytest.mark.slow
def test_a_better_file_than_that_of_the_checkpoint_is_found_again(whole, tmp_path):
    """As a process leaves it that was killed between the two writes: the steps come again."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        overfitting(stop="heldout", patience=3, optimizer=hurried(2), out=folder)
    early_one = (folder / "checkpoint.pt").read_bytes()
    early(out=folder, resume=True)
    (folder / "checkpoint.pt").write_bytes(early_one)
    assert same_fit(early(out=folder, resume=True), whole)


def test_where_latents_are_shared_the_predictive_density_counts():
    run = quick(*global_pair(), load(scalars(50), heldout=0.2), steps=8, stop="heldout", patience=3)
    values = {record["step"]: record["heldout_lpd"] for record in run.history}
    assert run.best == Best(max(values, key=values.__getitem__), max(values.values()), "heldout_lpd")


def test_records_of_the_warm_up_do_not_count_and_a_number_that_is_none_is_no_better():
    def seen(*values: float, **options: Any) -> BestSoFar:
        found = BestSoFar(settings(**options))
        for step, value in enumerate(values, 1):
            found.see({"step": step, "heldout_elbo": value}, nn.Linear(1, 1), None)
        return found

    assert seen(1.0, 0.5, 0.6).stopped and seen(1.0, 0.5, math.nan).stopped
    assert not seen(1.0, 0.5, 1.5, 1.5).stopped and seen(1.0, 0.5, 1.5, 1.5).best.step == 3
    assert seen(1.0, 0.5, 0.5, 0.5, warmup=3).since == 1
    assert not seen(1.0, 0.5, 0.5, 0.5, stop=None).stopped
    assert seen(math.nan).best is None
    assert number_of({"elbo": 1.0}) is None and number_of({"heldout_elbo": number(2.0).item()}) == ("heldout_elbo", 2.0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"stop": "heldout", "heldout": 0.0},
            "stop='heldout' needs held-out rows, and this fit holds out none; give hel",
        ),
        ({"patience": 0, "stop": "heldout"}, "patience must be a whole number of at least 1, not 0"),
        ({"patience": 5}, "patience is for stop='heldout'; give both, or leave patience out"),
        ({"stop": "held"}, "stop must be None, 'converged' or 'heldout', not 'held'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(options, text, tmp_path):
    with pytest.raises(UsageError, match=text):
        quick(data=columns(50).numpy(), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("junk", [3, {"best": [1], "since": 0}, {"best": None, "since": -1}, {"best": ["a", 1.0, "b"]}])
def test_a_state_that_someone_made_up_is_one_line(junk):
    with pytest.raises(InputError, match="the checkpoint has no state of the best record; start the run again"):
        BestSoFar(settings()).restore(junk)


@pytest.mark.slow
def test_compiled_steps_stop_at_the_same_record():
    eager, compiled = (overfitting(stop="heldout", patience=3, compile=how) for how in (False, True))
    assert compiled.compiled and compiled.best.step == eager.best.step and compiled.steps == eager.steps
    assert abs(compiled.best.value - eager.best.value) < 1e-8


@pytest.mark.slow
def test_a_comparison_of_fits_that_stop(tmp_path: Path):
    data = load(columns(24, 8), heldout=0.25)
    options = {"steps": 60, "lr": 0.05, "stop": "heldout", "patience": 3, "audit_draws": 0, "particles": 20, "draws": 2}
    made = pyro_vi.compare(WIDE, DIAGONAL, data, progress=False, compile=False, **options)
    single = overfitting(stop="heldout", patience=3, steps=60)
    assert made.results["mean_field"].run.best == single.best and made.results["trace"].run.chosen is not None
    with pytest.raises(InputError, match="stop='heldout' needs held-out rows"):
        pyro_vi.compare(WIDE, [DIAGONAL, "exact"], load(columns(24), heldout=0.0), progress=False, **options)
