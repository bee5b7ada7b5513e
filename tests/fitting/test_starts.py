"""Fits from several starts: which one is kept, what is said of the others, and how an interrupted one goes on."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.initialization import init_to_sample
from small_fits import ENCODER, VAE, in_main_thread, quick, same, same_fit
from torch import Tensor

import pyro_vi
from pyro_vi import FitError, UsageError, compare, fit, resume
from pyro_vi.data.loading import load
from pyro_vi.fitting.reading import read_starts

ROWS = 20
SEED, GOOD, BAD = 6, 2, 5
DATA = torch.zeros(ROWS, dtype=torch.float64)


def two_modes(x: Tensor) -> None:
    """log p(x | w) is higher by log 4 per datum near w = 10 than near w = -10."""
    w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=x.dtype), 10.0))
    weights = dist.Categorical(torch.tensor([0.2, 0.8], dtype=x.dtype))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MixtureSameFamily(weights, dist.Normal(torch.stack([w + 10, w - 10]), 1.0)), obs=x)


def found(**options: Any) -> pyro_vi.Run:
    guide = AutoDelta(two_modes, init_loc_fn=init_to_sample)
    settings: dict[str, Any] = {
        "steps": 40,
        "optimizer": "sgd",
        "lr": 0.5,
        "progress": False,
        "compile": False,
        "check": False,
    }
    return fit(two_modes, guide, load(DATA, heldout=0.0), **{**settings, **options})


@pytest.mark.slow
def test_the_better_mode_is_kept_where_the_first_start_misses_it(few_records):
    plain, run = found(seed=SEED), found(seed=SEED, starts=3)
    mode = 10 * ROWS / (ROWS + 0.01)
    assert float(*plain.params.values()) == pytest.approx(-mode, abs=1e-3)
    assert float(*run.params.values()) == pytest.approx(mode, abs=1e-3)
    assert [one["seed"] for one in run.starts] == [SEED, SEED + 1, SEED + 2]
    assert {one["measure"] for one in run.starts} == {"training log p(x, z)"} and plain.starts == []
    best = max(one["elbo"] for one in run.starts)
    assert best - run.starts[0]["elbo"] == pytest.approx(math.log(4), abs=1e-5)
    exact = float(dist.Normal(0.0, 1.0).log_prob(torch.tensor(mode - 10.0))) + math.log(0.8)
    exact += float(dist.Normal(0.0, 10.0).log_prob(torch.tensor(mode))) / ROWS
    assert best == pytest.approx(exact, abs=1e-5)
    assert all(one["error"] == 0 for one in run.starts)
    assert "starts     best of 3 starts: seed " in repr(run)


@pytest.mark.slow
def test_the_first_start_is_the_fit_without_others_and_the_best_by_held_out_elbo_is_kept(few_records):
    runs = [quick(seed=0, starts=count, lr=0.1) for count in (1, 3)]
    assert runs[0].starts == [] and len(runs[1].starts) == 3
    scores = [one["elbo"] for one in runs[1].starts]
    assert len(set(scores)) == 3 and all(0 < one["error"] < 1 for one in runs[1].starts)
    best = scores.index(max(scores))
    assert runs[1].starts[best]["measure"] == "held-out ELBO"
    assert torch.equal(runs[0].data.heldout[0], runs[1].data.heldout[0])
    assert same_fit(runs[0], runs[1]) is (best == 0)


def pressing(at: int) -> Callable[[dict[str, Any]], None]:
    """A callback that presses Ctrl-C at a record."""
    seen = [0]

    def callback(record: dict[str, Any]) -> None:
        seen[0] += 1
        if seen[0] == at:
            os.kill(os.getpid(), signal.SIGINT)

    return callback


def of_digits(out: Path | None = None, **options: Any) -> pyro_vi.Run:
    settings: dict[str, Any] = {"steps": 4, "batch_size": 400, "starts": 3, "lr": 0.05, "progress": False}
    return fit(VAE, ENCODER, "digits", out=out, **{**settings, **options})


@pytest.mark.slow
@in_main_thread
def test_an_interrupted_fit_goes_on_in_its_start_and_ends_with_the_same_bits(few_records, tmp_path):
    whole, out = of_digits(snapshots=(0.0, 1.0)), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):  # there are 4 records in each start
        of_digits(out, snapshots=(0.0, 1.0), callbacks=[pressing(6)])
    assert sorted(path.name for path in out.iterdir()) == ["start-1", "start-2"]
    assert torch.load(out / "start-2" / "checkpoint.pt", weights_only=True)["position"]["step"] == 2
    with pytest.raises(UsageError, match=r"'.*start-2' is one start of a fit; .*: pyro-vi resume .*run$"):
        resume(out / "start-2", progress=False)
    with pytest.raises(UsageError, match="holds a run already"):
        of_digits(out)
    resumed = resume(out, progress=False)
    assert isinstance(resumed, pyro_vi.Run) and same_fit(resumed, whole) and resumed.starts == whole.starts
    again = resume(out, progress=False)
    assert isinstance(again, pyro_vi.Run) and same_fit(again, whole) and again.starts == whole.starts
    opened = pyro_vi.open(out).run
    assert same_fit(opened, whole) and opened.starts == whole.starts == read_starts(out)
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):  # as if it was killed before it wrote them
        (out / name).unlink(missing_ok=True)
    rewritten = resume(out, progress=False)
    assert isinstance(rewritten, pyro_vi.Run) and same_fit(rewritten, whole) and rewritten.starts == whole.starts


@pytest.mark.slow
def test_the_best_goes_on_with_more_steps_as_any_run(few_records, tmp_path):
    first = of_digits(tmp_path / "run", schedule="constant")
    best = max(first.starts, key=lambda one: one["elbo"])["seed"]
    more = of_digits(tmp_path / "run", schedule="constant", steps=6, resume=True, allow=("steps",))
    assert more.steps == 6 and more.starts == first.starts
    whole = of_digits(tmp_path / "whole", schedule="constant", steps=6)
    alone = pyro_vi.open(tmp_path / "whole" / f"start-{best + 1}").run
    assert same(more.pair.state_dict(), alone.pair.state_dict()) and whole.steps == 6


def test_a_start_that_fails_is_left_out(few_records):
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", lambda: torch.randn((), dtype=x.dtype))  # negative for some seeds
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, scale.sqrt(), validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    def run(**options: Any) -> pyro_vi.Run:
        return fit(
            model, guide, load(DATA, heldout=0.0), steps=4, check=False, progress=False, compile=False, **options
        )

    kept = run(seed=GOOD, starts=2)
    assert [("failed" in one) for one in kept.starts] == [False, True] and math.isnan(kept.starts[1]["elbo"])
    assert f"seed {GOOD + 1} failed" in repr(kept)
    with pytest.raises(FitError):
        run(seed=BAD, starts=2)


@pytest.mark.slow
def test_a_callback_that_fails_ends_the_fit_and_no_start_is_left_out(tmp_path):
    seen: list[int] = []

    def failing(record: dict[str, Any]) -> None:
        seen.append(record["step"])
        if len(seen) == 2:
            raise ValueError("full")

    with pytest.raises(FitError, match=r"callback .*failing fails at step 2: ValueError: full"):
        of_digits(tmp_path / "run", starts=2, callbacks=failing)
    assert "failed" not in str(of_digits(tmp_path / "run", starts=2, resume=True).starts)


def test_what_has_no_use_for_starts_refuses_them(tmp_path):
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros((), dtype=x.dtype))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pass

    with pytest.raises(UsageError, match="the initial parameters of this pair do not depend on the seed"):
        fit(model, guide, load(DATA, heldout=0.0), steps=1, starts=2, progress=False, check=False, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="the fits of a comparison begin at the same parameters; leave starts out"):
        compare(VAE, ENCODER, "digits", starts=2, progress=False)
    with pytest.raises(UsageError, match="starts must be a whole number of at least 1"):
        quick(starts=0)
    with pytest.raises(UsageError, match="more has no option 'starts'"):
        pyro_vi.open(quick()).more(steps=1, starts=2)
