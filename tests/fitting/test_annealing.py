"""The weight of the KL over the steps: cycles and functions follow their formulas, and a resumed fit has the same bits."""

import json

import pytest
import torch
from catalogue import columns
from small_fits import DIAGONAL, LINEAR, digits, in_main_thread, quick, same_fit

from pyro_vi import UsageError, compare, fit
from pyro_vi.data.loading import load
from pyro_vi.fitting.annealing import settled, weight_at
from pyro_vi.fitting.best import BestSoFar
from pyro_vi.fitting.convergence import Watch
from pyro_vi.fitting.identity import differences
from pyro_vi.fitting.settings import Position, Settings


def late(done: float) -> float:
    return 0.5 if done < 0.5 else 2.0


def test_cycles_and_functions_give_the_weight_of_each_step():
    """Fu et al., equation 6, with half of each cycle for the rise: min(1, 2 τ), τ the fraction of the cycle that is done."""
    run = quick(steps=12, cycles=2, beta=3.0)
    assert [record["beta"] for record in run.history] == pytest.approx(2 * [0.0, 1.0, 2.0, 3.0, 3.0, 3.0])
    assert [record["beta"] for record in quick(steps=4, beta=late).history] == [0.5, 0.5, 2.0, 2.0]


def test_each_cycle_begins_at_nothing_where_it_does_not_divide_the_fit():
    weights = [weight_at(step, 10, 1.0, cycles=3) for step in range(10)]
    # The fractions of a cycle that are done, in thirtieths of the fit: 0, 3, 6, 9, 2, 5, 8, 1, 4, 7.
    assert weights == pytest.approx([0, 0.6, 1, 1, 0.4, 1, 1, 0.2, 0.8, 1])


def test_a_constant_function_gives_the_bits_of_the_number():
    assert same_fit(quick(beta=lambda done: 0.7), quick(beta=0.7))


def test_a_warmup_as_a_function_gives_the_bits_of_the_warmup():
    assert same_fit(quick(steps=8, beta=lambda done: min(1.0, done / 0.5)), quick(steps=8, warmup=4))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cycles": 0}, "cycles must be a whole number of at least 1, not 0"),
        ({"cycles": 4}, "4 cycles of the weight of the KL need at least 8 steps, and the fit has 6; give fewer cycles"),
        (
            {"cycles": 2, "warmup": 2},
            "warmup and cycles both change the weight of the KL over the steps; give one of them",
        ),
        ({"beta": late, "cycles": 2}, "a function as beta and cycles both change the weight of the KL"),
        ({"beta": lambda done: -done}, "beta(0.5) must be a number of at least 0, not -0.5"),
        (
            {"beta": lambda done: abs(1 / (done - 0.5))},
            "beta(0.5) fails (ZeroDivisionError: float division by zero); give",
        ),
        (
            {"beta": lambda done: done, "stop": "converged"},
            "beta changes until the last step, so stop='converged' could",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, text):
    with pytest.raises(UsageError) as caught:
        quick(**options)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


@in_main_thread
@pytest.mark.slow
@pytest.mark.parametrize("weight", [{"cycles": 3}, {"beta": late}], ids=["cycles", "function"])
def test_a_resumed_fit_has_the_bits_of_an_uninterrupted_one(weight, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        digits(tmp_path / "run", 6, warmup=0, **weight)
    assert same_fit(digits(tmp_path / "run", resume=True, warmup=0, **weight), digits(None, warmup=0, **weight))


def test_a_function_is_known_by_its_code(tmp_path):
    run = quick(steps=2, beta=late, out=tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["given"]["objects"] == ["beta", "data"]
    assert same_fit(quick(steps=2, beta=late, out=tmp_path / "run", resume=True), run)
    with pytest.raises(UsageError, match=r"holds a run with other settings \(beta was '[0-9a-f]{8}', is 1.0\)"):
        quick(steps=2, out=tmp_path / "run", resume=True)


def test_a_run_of_before_these_options_is_continued(tmp_path):
    """Its configuration lacks their names."""
    run = quick(out=tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    found = json.loads(path.read_text())
    assert {found[name] for name in ("cycles", "free_bits", "accumulate")} == {None}
    old = {name: value for name, value in found.items() if name not in ("cycles", "free_bits", "accumulate")}
    assert differences(old, run.config) == {}


def test_the_last_change_of_the_weight():
    assert settled(100, 1.0, None) == 0
    assert settled(100, late, None) == 50
    assert settled(100, 1.0, 1) == 50
    assert settled(10, lambda done: done, None) == 9
    assert Settings(100, 8, "constant", None, 1.0, 30, 0, ()).settled == 30


def test_records_before_the_last_change_do_not_count_against_the_patience():
    """The held-out number falls from the first record on: the fit stops 3 records after the weight has settled, at step 50."""
    watch = BestSoFar(Settings(100, 8, "constant", None, 1.0, 0, 0, (), "heldout", patience=3, cycles=1))
    step = 0
    while not watch.stopped:
        step += 10
        watch.see({"step": step, "heldout_elbo": -float(step)}, torch.nn.Linear(1, 1), None)
    assert (watch.best.step, step) == (10, 80)


def test_cycles_end_no_fit_before_the_last_cycle():
    """Losses that are flat from the start: the fit stops at once, or with cycles as soon in the last half of the last one."""
    stops = []
    for cycles in (None, 2):
        settings = Settings(8000, 8, "constant", None, 1.0, 0, 0, (), "converged", cycles=cycles)
        watch, now = Watch(budget=8000), Position()
        while now.step < 8000 and not watch.stopped:
            now.add([0.01 * (step % 2) for step in range(80)], 0.0)
            watch.see(now, settings, 1.0)
            now.losses.clear()
        stops.append(now.step)
    assert stops == [560, 6560]


@pytest.mark.slow
def test_a_comparison_takes_cycles():
    result = compare(
        LINEAR, DIAGONAL, load(columns(50)), steps=4, cycles=1, audit_draws=0, particles=10, progress=False
    )
    alone = fit(
        LINEAR, DIAGONAL, load(columns(50)), elbo="trace", steps=4, cycles=1, progress=False, snapshots=(0, 0.5, 1)
    )
    assert same_fit(result.results["trace"].run, alone)
