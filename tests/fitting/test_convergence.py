"""The test for convergence: known falls, noise, restarts, its state; and fits that it stops."""

import math
from typing import Any

import numpy as np
import pytest
from catalogue import columns
from scipy.stats import binom
from script_files import script
from small_fits import quick, same_fit, untimed

import pyro_vi
from pyro_vi import InputError, Run, UsageError
from pyro_vi.data.loading import load
from pyro_vi.fitting import convergence
from pyro_vi.fitting.convergence import Watch
from pyro_vi.fitting.loop import Loop


def watched(losses: Any, weights: Any = None, rates: Any = None, **options: Any) -> Watch:
    watch, count = Watch(**options), len(losses)
    controls = zip(weights or [1.0] * count, rates or [1.0] * count, strict=True)
    watch.add([float(loss) for loss in losses], list(controls))
    return watch


T = np.arange(2048)


def test_a_fall_without_noise_is_known_exactly():
    """A fall of 0.3 in the 1024 steps ahead is more than the tolerance of 0.1, and one of 0.06 is less."""
    falls, flat, rises = (watched(-T * fall / 1024).verdict() for fall in (0.3, 0.06, -0.3))
    assert (falls.converged, flat.converged, rises.converged) == (False, True, False)
    assert "a fall of 0.3 nats in 1024 steps (limits of the fall 0.3 and 0.3, tolerance 0.1)" in falls.evidence
    assert flat.steady and "a rise of 0.3 nats" in rises.evidence
    assert watched(-T * 0.06 / 1024, budget=8192).verdict().converged is False  # 0.12 in a quarter of the budget


def test_sentences_have_the_unit_of_the_user():
    said = watched(-T * 0.3e-3 / 1024, tolerance=1e-4, per=(1000.0, "nats for all")).verdict().evidence
    assert "a fall of 0.3 nats for all in 1024 steps" in said


def test_no_verdict_before_there_are_enough_steps_at_the_final_weight():
    assert watched(T[:504] * 0.0).verdict().converged is None
    assert watched(T[:512] * 0.0).verdict().converged is True
    weights = [min(1.0, t / 1600) for t in T]
    assert watched(T * 0.0, weights).verdict().converged is None  # 448 steps since the weight of the KL last changed


def test_time_is_counted_in_learning_rates_and_a_decay_stops_nothing():
    """At half the rate, twice as many steps make a block; a line in the sum of rates is a line for the test."""
    rates = [1.0] * 1024 + [0.5] * 1024
    verdict = watched(-np.cumsum(rates) * 0.3 / 768, rates=rates).verdict()
    assert verdict.converged is False and not verdict.steady
    assert "a fall of 0.3" in verdict.evidence
    assert not watched(T * 0.0, rates=rates).verdict().steady


def test_outliers_do_not_hide_a_fall():
    rng = np.random.default_rng(0)
    spikes = (rng.random(2048) < 0.005) * 1e4
    assert watched(-T * 0.3 / 1024 + spikes).verdict().converged is False
    assert watched(T * 0.0 + spikes).verdict().converged is True


def test_the_state_is_small_and_goes_on_where_it_was():
    losses = np.random.default_rng(0).normal(size=5000).tolist()
    whole, other = Watch(), Watch()
    whole.add(losses)
    for start in range(0, 5000, 7):
        again = Watch()
        again.restore(other.state())
        again.add(losses[start : start + 7])
        other = again
    assert other.state() == whole.state()
    assert len(whole.blocks) < convergence.BLOCKS
    assert sum(block[2] for block in whole.blocks) + whole.part[2] == 5000
    assert sum(block[0] for block in whole.blocks) + whole.part[0] == pytest.approx(sum(losses), abs=1e-9)


@pytest.mark.parametrize("state", [{}, {"size": 1.0}, [], {**Watch().state(), "blocks": [["x"] * 4]}], ids=str)
def test_a_foreign_state_is_refused(state):
    with pytest.raises(InputError, match="no state of the test for convergence"):
        Watch().restore(state)


@pytest.mark.slow
def test_a_simulated_fit_of_each_kind():
    """A few fits: the long table is in a slow test."""
    study = script("study_convergence")
    found = [study.simulated(kind, 3000, seed) for kind in study.KINDS for seed in range(4)]
    assert sum(false for _, false, _ in found) <= 2  # P = 0.03 at 5 %
    assert sum(stop is not None for stop, *_ in found) >= 4


@pytest.mark.slow
def test_false_stops_are_at_most_at_the_stated_rate():
    """600 fits: each kind, and all together, within the interval of a binomial count at 5 %."""
    found = script("study_convergence").measure(100)
    false = {kind: round(100 * numbers["false stops"]) for kind, numbers in found.items()}
    assert all(count <= binom.ppf(0.995, 100, 0.05) for count in false.values()), false
    assert sum(false.values()) <= 0.05 * 600, false
    assert found["plateau"]["median delay"] < 2.5 and found["exponential"]["no stop"] < 0.9


# ---- fits


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts after 16 steps."""
    for name, value in (("LEAST", 16), ("SHORTEST", 1), ("BLOCKS", 16), ("FEWEST", 4)):
        monkeypatch.setattr(convergence, name, value)


def still(**options: Any) -> Run:
    """A fit of parameters that hardly move."""
    data = load(columns(50))
    settings = {"lr": 1e-9, "steps": 400, "compile": False, "stop": "converged", **options}
    return quick(data=data, **settings)


@pytest.mark.slow
def test_a_fit_stops_when_it_has_converged_and_resumes_to_the_same_bits(soon, monkeypatch, tmp_path):
    monkeypatch.setattr(convergence, "DEVIATIONS", 1.0)
    whole = still(snapshots=(0.0, 1.0))
    assert whole.converged and 16 <= whole.steps < 400 and whole.evidence.startswith("converged: a ")
    assert whole.history[-1]["converged"] is True and list(whole.snapshots) == [0, whole.steps]
    assert whole.history[-1]["lr"] == 1e-9  # the schedule is constant by default
    end = still(stop=None, schedule="constant", steps=400)
    assert end.steps == 400 and untimed(end.history)[: len(whole.history)] == untimed(whole.history)
    folder = tmp_path / "run"
    records = []

    class Killed(Exception):
        pass

    original = Loop._record

    def record(self: Loop) -> None:
        original(self)
        records.append(self.position.step)
        if len(records) == 3:
            self._checkpoint()
            raise Killed

    monkeypatch.setattr(Loop, "_record", record)
    with pytest.raises(Killed):
        still(out=folder, snapshots=(0.0, 1.0))
    resumed = still(out=folder, snapshots=(0.0, 1.0), resume=True)
    assert same_fit(resumed, whole) and resumed.evidence == whole.evidence
    again = still(out=folder, snapshots=(0.0, 1.0), resume=True)
    assert same_fit(again, whole) and again.evidence == whole.evidence and again.steps == whole.steps
    opened = pyro_vi.open(folder, data=load(columns(50))).run
    assert (opened.converged, opened.evidence, [*opened.snapshots]) == (True, whole.evidence, [0, whole.steps])


def test_a_fit_that_is_too_short_says_so():
    run = quick()
    assert run.converged is None and run.evidence.startswith("too short to tell: fewer than 512 steps")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stop": "soon"}, "stop must be None, 'converged' or 'heldout', not 'soon'"),
        ({"stop": "converged", "schedule": "cosine"}, "cannot end a fit whose rate decays until its last step"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(options, text):
    with pytest.raises(UsageError, match=text):
        quick(**options)


@pytest.mark.slow
def test_the_unit_is_that_of_the_latents():
    """Nats per datum where latents belong to data; blocks of whole epochs where the order is fixed."""
    run = quick(data=load(columns(50)), steps=600, lr=1e-9, stop="converged", compile=False, batch_size=20)
    assert math.isfinite(run.history[-1]["loss"]) and "nats per datum" in run.evidence
