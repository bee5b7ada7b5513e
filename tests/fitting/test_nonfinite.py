"""A fit meets a loss or a gradient that is not finite: what is left out, what is put back, what is said and kept."""

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
from catalogue import marked, number, slope
from small_fits import in_main_thread, interrupting, nothing, same, untimed
from torch import Tensor, nn

from pyro_vi import Run, UsageError, fit
from pyro_vi.compiling.cost import SECONDS
from pyro_vi.data.loading import load
from pyro_vi.errors import FitError, InputError
from pyro_vi.fitting.identity import differences
from pyro_vi.fitting.nonfinite import Guard
from pyro_vi.programs import Pair

pytestmark = pytest.mark.usefixtures("few_records")


def mean(x: Tensor) -> None:
    """The gradient of the loss per datum in m is m minus the mean of the batch; the loss is NaN for data above 50."""
    m = pyro.param("m", number(0.0))
    with pyro.plate("data", 12, subsample=x):
        pyro.sample("x", dist.Normal(torch.where(x > 50, torch.nan, m), 1.0), obs=x)


def rooted(x: Tensor) -> None:
    """The gradient in a is NaN for a datum of 99, where the square root is 0; the loss is finite."""
    a, b = pyro.param("a", number(0.5)), pyro.param("b", number(0.0))
    with pyro.plate("data", 12, subsample=x):
        pyro.sample("x", dist.Normal(b + torch.sqrt(a * (99 - x)) / 100, 1.0), obs=x.clamp(max=3))


ROWS = number([float(i) for i in range(12)])


def rows(*bad: int) -> Any:
    """The numbers 0 to 11, but 99 in some places."""
    values = ROWS.clone()
    values[list(bad)] = 99.0
    return load(values, heldout=0.0)


def sgd(*stops: int) -> Callable[[Any], torch.optim.Optimizer]:
    """SGD with the rate 0.1 that presses Ctrl-C after some steps."""
    return interrupting(*stops, lr=0.1, kind=torch.optim.SGD)


def run(model: Any, data: Any, guide: Any = nothing, **options: Any) -> Run:
    plain = {"batch_size": 3, "steps": 8, "shuffle": False, "optimizer": sgd(), "compile": False, "elbo": "trace"}
    return fit(model, guide, data, **{**plain, "progress": False, "check": False, **options})


def at(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return state


def equal(one: Run, two: Run) -> bool:
    """Same parameters, buffers and records, NaN included."""
    return same(one.pair.state_dict(), two.pair.state_dict()) and repr(untimed(one.history)) == repr(
        untimed(two.history)
    )


@pytest.mark.parametrize("bad", [0, 7], ids=["at the first step", "later"])
def test_a_step_that_is_skipped_leaves_no_trace(bad):
    """Four batches an epoch, of which one is left out twice in two epochs."""
    m, left = 0.0, 0
    wanted = []
    for step in range(8):
        batch = ROWS[(step % 4) * 3 : (step % 4) * 3 + 3]
        skipped = bad // 3 == step % 4
        left += skipped
        wanted.append(left)
        m -= 0.0 if skipped else 0.1 * (m - float(batch.mean()))
    found = run(mean, rows(bad), nonfinite="skip")
    assert float(found.params["m"]) == pytest.approx(m, rel=1e-10)
    assert (found.steps, found.skipped, found.restored) == (8, 2, 0)
    assert [record["skipped"] for record in found.history] == [wanted[record["step"] - 1] for record in found.history]
    assert "left out   2 of 8 steps, whose loss or gradient was not finite" in repr(found)


def test_going_back_puts_the_last_record_back_and_halves_the_rate():
    """Records after steps 1, 2, 4, ...; step 4 is left out, so step 5 starts at the state after step 2 at half the rate."""
    m = 0.0
    for step, rate in ((0, 0.1), (1, 0.1), (0, 0.05), (1, 0.05)):  # steps 1, 2, 5 and 6
        m -= rate * (m - float(ROWS[step * 3 : step * 3 + 3].mean()))
    found = run(mean, rows(11), nonfinite="restore", steps=8, optimizer=sgd())
    assert found.restored == 2 and found.skipped == 2  # step 8 goes back to the state after step 6
    assert float(found.params["m"]) == pytest.approx(m, rel=1e-10)
    assert [record["lr"] for record in found.history] == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05])
    assert [record["restored"] for record in found.history] == [0, 0, 1, 1, 2]


def test_an_update_that_overflows_is_put_back():
    def cliff(x: Tensor) -> None:
        m = pyro.param("m", number(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(1e12 * m, 1.0), obs=x)

    def huge(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, 1e300)  # the gradient is 1e24

    with pytest.raises(FitError) as caught:
        run(cliff, rows(), optimizer=huge, batch_size=12)
    assert str(caught.value) == (
        "the fit ends after step 1: an update overflowed and made parameter 'm' not finite; lower lr, or set clip_norm"
    )
    with pytest.raises(FitError) as caught:
        run(cliff, rows(), optimizer=huge, batch_size=12, nonfinite="restore")
    assert str(caught.value) == (
        "the fit ends after step 6: an update overflowed and made parameter 'm' not finite; lower lr, or set clip_norm; "
        "nonfinite='restore' has gone back 5 times, the most that it may"
    )


def test_a_state_of_the_optimizer_that_overflows_is_found(tmp_path):
    """The square of a gradient of 1e30 is infinite in single precision: Adam would never move the parameter again."""

    def steep(x: Tensor) -> None:
        m = pyro.param("m", torch.tensor(0.0))
        pyro.factor("steep", 1e30 * 12 * m)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x.float())

    with pytest.raises(FitError) as caught:
        run(steep, rows(), optimizer="adam", lr=0.1, batch_size=12, out=tmp_path / "run")
    text = str(caught.value)
    assert "made 'exp_avg_sq' of parameter 'm' in the optimizer's state not finite; lower lr, or set clip_norm" in text
    assert "there is no checkpoint before it, go on with: pyro_vi.fit(..., out='" in text
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


GRADIENT = (
    "the gradient of parameter 'a', which is 0.5, is not finite at step 1 (epoch 0, batch 0), though the loss is "
    "{loss}: through log p of site 'x' for data 2; datum 2 is 99; there 'x' is 3 under Normal(loc 0, scale 1); a derivative "
    "is infinite there, as that of sqrt at 0: clamp its argument, also within torch.where, or lower lr"
)


def test_a_gradient_that_is_not_finite_is_told_before_the_optimizer_steps(tmp_path):
    def loss(data: list[float]) -> float:
        errors = [(min(x, 3.0) - math.sqrt(0.5 * (99 - x)) / 100) ** 2 for x in data]
        return sum(e / 2 + math.log(2 * math.pi) / 2 for e in errors) / len(data)

    with pytest.raises(FitError) as caught:
        run(rooted, rows(2), out=tmp_path / "run")
    told = GRADIENT.format(loss=f"{loss([0.0, 1.0, 99.0]):.4g}")
    kept = "the state before it is kept, go on with: pyro_vi.fit(...,"
    assert (
        str(caught.value)
        == f"{told}; {kept} out='{tmp_path / 'run'}', resume=True, nonfinite='skip', allow='nonfinite')"
    )
    state = at(tmp_path / "run")
    assert state["position"]["step"] == 0 and float(state["pair"]["model.a"]) == 0.5
    found = run(rooted, rows(2), nonfinite="skip")
    assert found.skipped == 2 and all(bool(value.isfinite().all()) for value in found.params.values())


def test_a_parameter_alone_may_be_the_cause():
    def at_zero(x: Tensor) -> None:
        a = pyro.param("a", number(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.sqrt(a), 1.0), obs=x)

    with pytest.raises(
        FitError, match=r"^the gradient of parameter 'a', which is 0, is not finite at step 1"
    ) as caught:
        run(at_zero, rows())
    assert ": through log p of site 'x'; 'x' is (0, 1, 2) under Normal(loc (0, 0, 0), scale (1, 1, 1))" in str(
        caught.value
    )


def test_values_that_led_to_a_loss():
    """A KL in closed form, whose guide's scale underflows; and one pixel of many, of probability 0."""

    def prior(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(number(0.0), 1.0), obs=x)

    def narrow(x: Tensor) -> None:
        a = pyro.param("a", number(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a * 0.5, torch.where(x > 50, 0.0, 1.0)))

    with pytest.raises(FitError) as caught:
        run(prior, rows(1), narrow, elbo="mean_field")
    assert str(caught.value) == (
        "the loss is nan at step 1 (epoch 0, batch 0): KL of site 'z' is not finite for data 1; there q is "
        "Normal(loc 0.5, scale 0) and p is Normal(loc 0, scale 1); check those values, or lower lr"
    )

    def counts(x: Tensor) -> None:
        rate = pyro.param("rate", number(0.5)) * torch.where(x > 50, 0.0, 1.0)
        with pyro.plate("data", len(x)):
            rates = rate.unsqueeze(-1) * number([1.0, 2.0, 4.0])
            pyro.sample("x", dist.Poisson(rates).to_event(1), obs=number([0.0, 1.0, 0.0]).expand(len(x), -1))

    with pytest.raises(FitError) as caught:
        run(counts, rows(1))
    assert str(caught.value) == (
        "the loss is nan at step 1 (epoch 0, batch 0): log p of site 'x' is not finite for data 1; there element 1 of 'x' is 1 "
        "under Poisson(rate 0); check those values, or lower lr"
    )


# ---- bounds


def test_ten_in_a_row_are_the_most(tmp_path):
    with pytest.raises(FitError) as caught:
        run(mean, rows(*range(12)), nonfinite="skip", steps=50, out=tmp_path / "run")
    text = str(caught.value)
    assert text.startswith(
        "the loss is nan at step 11 (epoch 2, batch 2): log p of site 'x' is not finite for data 6, 7, 8"
    )
    assert (
        "; nonfinite='skip' has left out the 10 steps before it, the most in a row; the state before it is kept" in text
    )
    assert at(tmp_path / "run")["nonfinite"]["skipped"] == at(tmp_path / "run")["position"]["step"] == 10


def test_twenty_steps_or_a_twentieth_are_the_most():
    with pytest.raises(
        FitError, match=r"at step 84 .*; nonfinite='skip' has left out 20 of 83 steps, the most that it may$"
    ):
        run(mean, rows(10), nonfinite="skip", steps=500)
    pair = Pair(nn.Linear(1, 1), nn.Linear(1, 1))
    guard = Guard("skip", pair, torch.optim.SGD(pair.parameters(), 0.1))
    guard.skipped = 49
    assert not guard.refuses(1000) and guard.refuses(979)


@pytest.mark.slow
def test_a_fit_that_goes_back_to_its_start_is_compiled_later():
    """The first update overflows, so the optimizer has no state when the second step is taken."""

    def pull(x: Tensor) -> None:
        m = pyro.param("m", number(0.0))
        with pyro.plate("data", 12, subsample=x):
            pyro.sample("x", dist.Normal(number(0.0), 1.0), obs=x.clamp(max=3))
            pyro.factor("pull", m * torch.where(x > 50, 1e150, x))

    options: dict[str, Any] = {
        "nonfinite": "restore",
        "batch_size": 1,
        "steps": 10,
        "schedule": "constant",
        "lr": 1e170,
    }
    eager, compiled = (run(pull, rows(0), compile=c, optimizer="sgd(momentum=0.5)", **options) for c in (False, True))
    assert compiled.compiled and (eager.restored, eager.skipped) == (1, 0) == (compiled.restored, compiled.skipped)
    m = velocity = 0.0
    for x in range(1, 10):
        velocity = 0.5 * velocity + x
        m += 0.5e170 * velocity
    assert [float(one.params["m"]) for one in (eager, compiled)] == pytest.approx([m, m], rel=1e-10)


# ---- on disk


LONG = [
    pytest.param(*one, marks=pytest.mark.slow) for one in (("skip", 1), ("restore", 1), ("skip", 5), ("restore", 2))
]


@in_main_thread
@pytest.mark.parametrize(("nonfinite", "stop"), [("skip", 2), ("restore", 5), *LONG])
def test_a_resumed_fit_has_the_same_bits(nonfinite, stop, tmp_path):
    """Interrupted before the first step that is left out, right after it, and later."""
    options = {"nonfinite": nonfinite, "steps": 12, "optimizer": sgd()}
    whole = run(marked, rows(7), slope, **options)
    assert whole.skipped == 3
    with pytest.raises(KeyboardInterrupt):
        run(marked, rows(7), slope, **{**options, "optimizer": sgd(stop)}, out=tmp_path / "run")
    again = run(marked, rows(7), slope, **options, out=tmp_path / "run", resume=True)
    assert equal(again, whole) and (again.skipped, again.restored) == (whole.skipped, whole.restored)


def test_a_fit_that_stopped_goes_on_as_if_it_had_skipped(tmp_path):
    options = {"optimizer": "sgd", "lr": 0.1, "schedule": "constant"}
    whole = run(marked, rows(7), slope, nonfinite="skip", **options)
    with pytest.raises(
        FitError,
        match=r"go on with: pyro_vi.fit\(..., out='.*', resume=True, lr=0.05, allow='lr'\), or nonfinite='skip'",
    ):
        run(marked, rows(7), slope, out=tmp_path / "run", **options)
    state = at(tmp_path / "run")
    assert state["position"]["step"] == state["position"]["batch"] == 2
    again = run(
        marked, rows(7), slope, nonfinite="skip", allow="nonfinite", out=tmp_path / "run", resume=True, **options
    )
    assert same(again.pair.state_dict(), whole.pair.state_dict()) and again.skipped == 2


def test_a_run_of_an_older_version_is_the_same_run():
    assert differences({}, {"nonfinite": "stop"}) == {}
    assert differences({}, {"nonfinite": "skip"}) == {"nonfinite": "nonfinite was 'stop', is 'skip'"}


def test_statistics_of_a_batch_norm_are_put_back():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.m = nn.BatchNorm1d(1, dtype=torch.float64), nn.Parameter(number(0.0))
            self.register_buffer("mask", number([-math.inf, 0.0]))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc = self.norm(torch.where(x > 50, torch.nan, x).unsqueeze(-1)).squeeze(-1)
                pyro.sample("x", dist.Normal(loc + self.m, 1.0), obs=x.clamp(max=3))

    expected = 0.0
    for batch in (0, 1, 3):
        expected = 0.9 * expected + 0.1 * float(ROWS[batch * 3 : batch * 3 + 3].mean())
    found = run(Normed(), rows(7), nonfinite="skip", steps=4)
    buffers = found.pair.state_dict()
    assert float(buffers["model.norm.running_mean"]) == pytest.approx(expected, rel=1e-6)
    assert int(buffers["model.norm.num_batches_tracked"]) == 3 and found.skipped == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"skipped": -1},
        {"rate": 2.0},
        {"since": ["a"]},
        {"more": 1},
        {"good": {"step": 0, "pair": {}, "optimizer": {}}},
        {"good": 3},
    ],
    ids=str,
)
def test_counts_that_cannot_be_are_refused(wrong):
    pair = Pair(nn.Linear(1, 1), nn.Linear(1, 1))
    guard = Guard("restore", pair, torch.optim.Adam(pair.parameters()))
    guard.mark(3)
    (state,) = guard.state(0.0).values()
    guard.restore(state)
    with pytest.raises(
        InputError, match="the checkpoint has no counts of the steps that were left out; start the run again"
    ):
        guard.restore({**state, **wrong})


def test_what_cannot_be_asked_for_is_refused():
    with pytest.raises(
        UsageError, match=r"^nonfinite must be one of stop, skip, restore, not 'skipp'; did you mean 'skip'\?$"
    ):
        run(mean, rows(), nonfinite="skipp")
    with pytest.raises(
        UsageError, match=r"^nonfinite='restore' lowers the learning rate, and DoG has none; use 'skip' or"
    ):
        run(mean, rows(), nonfinite="restore", optimizer="dog", lr=3e-3)


# ---- compiled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "nonfinite", "together"),
    [(mean, "skip", True), (rooted, "restore", True), (rooted, "skip", False), (mean, "restore", False)],
    ids=["loss, skip, several in a call", "gradient, restore, several in a call", "gradient, skip", "loss, restore"],
)
def test_compiled_steps_do_as_eager_ones(model, nonfinite, together, monkeypatch, tmp_path):
    if together:
        monkeypatch.setattr("pyro_vi.compiling.choice.SECONDS", {**SECONDS, "several": 1e9})
    options = {
        "nonfinite": nonfinite,
        "steps": 60,
        "optimizer": "adam",
        "lr": 0.01,
        "schedule": "constant",
        "batch_size": 1,
    }
    eager, compiled = (run(model, rows(7), compile=compile, **options) for compile in (False, True))
    assert compiled.compiled and bool(compiled.choice and compiled.choice.together) == together
    assert (compiled.skipped, compiled.restored) == (eager.skipped, eager.restored) and eager.skipped == 5
    for name, value in eager.params.items():
        torch.testing.assert_close(compiled.params[name], value, rtol=1e-9, atol=1e-12)
    for one, two in zip(eager.history, compiled.history, strict=True):
        for key in ("step", "loss", "lr", "skipped", "elbo"):
            assert two[key] == pytest.approx(one[key], rel=1e-9, nan_ok=True), key


@pytest.mark.slow
@pytest.mark.parametrize("model", [mean, rooted], ids=["loss", "gradient"])
def test_compiled_steps_say_and_keep_what_eager_ones_do(model, tmp_path):
    texts = []
    for compile in (False, True):
        with pytest.raises(FitError) as caught:
            run(model, rows(7), compile=compile, optimizer="adam", lr=0.01, batch_size=1, out=tmp_path / str(compile))
        texts.append(str(caught.value).replace(str(tmp_path / str(compile)), "OUT"))
    assert texts[0] == texts[1] and "for data 7; " in texts[0] and "at step 8 (epoch 0, batch 7)" in texts[0]
    eager, compiled = (at(tmp_path / str(compile)) for compile in (False, True))
    assert eager["position"]["step"] == compiled["position"]["step"] == 7
    assert torch.equal(eager["generators"]["torch"], compiled["generators"]["torch"])


@pytest.mark.slow
@in_main_thread
@pytest.mark.parametrize("nonfinite", ["skip", "restore"])
def test_compiled_steps_go_on_with_the_same_bits(nonfinite, tmp_path, monkeypatch):
    """Interrupted right after the first step that is left out, by a callback: compiled steps have no hooks."""
    monkeypatch.setattr("pyro_vi.compiling.choice.SECONDS", {**SECONDS, "several": 1e9})
    options: dict[str, Any] = {"nonfinite": nonfinite, "steps": 40, "batch_size": 1, "optimizer": "adam", "lr": 0.01}

    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 10:
            os.kill(os.getpid(), signal.SIGINT)

    whole = run(rooted, rows(9), compile=True, **options)
    with pytest.raises(KeyboardInterrupt):
        run(rooted, rows(9), compile=True, out=tmp_path / "run", callbacks=interrupt, **options)
    assert at(tmp_path / "run")["nonfinite"]["skipped"] == 1
    assert equal(run(rooted, rows(9), compile=True, out=tmp_path / "run", resume=True, **options), whole)
