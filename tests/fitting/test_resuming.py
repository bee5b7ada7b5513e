"""A resumed fit has the bits of an uninterrupted one; what a run folder keeps, and what it refuses."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from catalogue import (
    columns,
    global_pair,
    scalars,
)
from small_fits import (
    digits,
    in_main_thread,
    interrupting,
    quick,
    same,
    same_fit,
    untimed,
)

from pyro_vi import Run, UsageError, fit
from pyro_vi.data.loading import load


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return digits(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.slow
@in_main_thread
@pytest.mark.parametrize("stops", [(1,), (6,), (8,), (3, 4), (14,)], ids=str)
def test_a_resumed_fit_has_the_bits_of_an_uninterrupted_one(stops, whole, tmp_path):
    """At the first step, in the midst of an epoch, at its end, twice, and at the last step."""
    done = 0
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            digits(tmp_path / "run", stop, resume=done > 0)
        done += stop
        state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
        assert state["position"]["step"] == done
    resumed = digits(tmp_path / "run", resume=True)
    assert resumed.steps == 14
    assert same_fit(resumed, whole)
    for name in ("snapshot-0.pt", "snapshot-7.pt", "snapshot-14.pt"):
        assert same(*(torch.load(folder / name, weights_only=True) for folder in (tmp_path / "run", whole.out)))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == resumed.history
    assert untimed(lines) == untimed(whole.history)


@in_main_thread
def test_resuming_without_a_schedule_and_from_functions(tmp_path):
    def run(*stops: int, **options: Any) -> Run:
        return quick(
            *global_pair(),
            load(scalars(50), heldout=0.0),
            elbo="trace",
            batch_size=10,
            optimizer=interrupting(*stops),
            **options,
        )

    with pytest.raises(KeyboardInterrupt):
        run(4, out=tmp_path / "run")
    assert same_fit(run(out=tmp_path / "run", resume=True), run())


def test_resuming_a_finished_fit_gives_it_back(whole):
    assert same_fit(digits(whole.out, resume=True), whole)


def test_resuming_where_nothing_is_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"^'.*run' holds no run to resume; leave out resume to start one$"):
        digits(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@in_main_thread
def test_what_was_logged_after_the_checkpoint_is_cut_off(whole, tmp_path):
    """As a killed process leaves it: records of steps that are taken again, and half a line."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        digits(out, 6)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 0.0}\n{"step": 8, "lo')
    assert same_fit(digits(out, resume=True), whole)
    assert untimed([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]) == untimed(
        whole.history
    )


@pytest.mark.slow
@in_main_thread
def test_a_fit_killed_before_its_first_checkpoint_leaves_no_records(whole, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        digits(out, 3)
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (out / name).unlink()
    with pytest.warns(UserWarning, match="has no checkpoint; the run starts again at its first step"):
        assert same_fit(digits(out, resume=True), whole)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == len(whole.history)


def test_a_folder_that_holds_a_run_is_refused(whole):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in whole.out.iterdir())
    with pytest.raises(UsageError, match=r"holds a run already; continue it with --resume, or choose another folder$"):
        digits(whole.out)
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in whole.out.iterdir())


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"steps": 15, "snapshots": (0.0, 7 / 15, 14 / 15)}, "steps was 14, is 15"),
        ({"seed": 1, "data": load("digits")}, "seed was 0, is 1"),
        ({"beta": 2.0}, "beta was 1.0, is 2.0"),
        ({"elbo": "trace"}, "elbo was 'mean_field', is 'trace'"),
        ({"clip_norm": None}, "clip_norm was 5.0, is None"),
        ({"snapshots": (0.0,)}, "kept was [0, 7, 14], is [0]"),
        (
            {"optimizer": None, "lr": 2e-3},
            "lr was None, is 0.002; optimizer was 'interrupting.<locals>.made', is 'adam'",
        ),
        ({"schedule": "linear", "warmup": 3}, "schedule was 'cosine', is 'linear'; warmup was 6, is 3"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(whole, options, difference):
    with pytest.raises(UsageError) as caught:
        digits(whole.out, resume=True, **options)
    assert f"holds a run with other settings ({difference})" in str(caught.value)
    assert json.loads((whole.out / "config.json").read_text())["steps"] == 14


def test_a_run_is_not_resumed_on_other_data_of_the_same_name(tmp_path):
    options = {"steps": 2, "out": tmp_path / "run"}
    quick(data=columns(50), **options)
    with pytest.raises(UsageError, match="data_checksum was"):
        quick(data=columns(50, seed=8), resume=True, **options)
    quick(data=columns(50), resume=True, **options)


def test_the_configuration_repeats_the_fit(whole):
    config = json.loads((whole.out / "config.json").read_text())
    assert config["versions"]["torch"] == torch.__version__
    again = fit(
        config["model"],
        config["guide"],
        config["data"],
        elbo=config["elbo"],
        steps=config["steps"],
        batch_size=config["batch_size"],
        optimizer=interrupting(),
        lr=config["lr"],
        schedule=config["schedule"],
        clip_norm=config["clip_norm"],
        beta=config["beta"],
        warmup=config["warmup"],
        seed=config["seed"],
        snapshots=[step / config["steps"] for step in config["kept"]],
        progress=False,
    )
    assert same_fit(again, whole)


def test_the_configuration_names_the_file_that_the_data_came_from(tmp_path):
    path = tmp_path / "mine.npy"
    np.save(path, columns(50).numpy())
    quick(data=str(path), out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == str(path)


def test_the_checkpoint_holds_tensors_and_plain_numbers_only(whole):
    state = torch.load(whole.out / "checkpoint.pt", weights_only=True)
    assert state.keys() == {
        "pair",
        "optimizer",
        "factor",
        "generators",
        "position",
        "convergence",
        "best",
        "compiled",
        "config",
        "history",
    }
    assert same(state["pair"], whole.pair.state_dict())
    assert state["position"]["step"] == 14
    names = {path.name for path in whole.out.iterdir()}
    checkpoints = {"checkpoint.pt", "checkpoint-previous.pt", "best.pt"}
    assert names == {"config.json", "metrics.jsonl", *checkpoints, *(f"snapshot-{step}.pt" for step in (0, 7, 14))}
