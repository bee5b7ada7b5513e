"""Compiled steps are the eager ones: parameters and records to rounding, bits over an interruption, failures word for word."""

import json
import os
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from catalogue import CATALOGUE, columns, number, scalars
from estimator_catalogue import SERVES, SMALL, functions, make, modules
from torch import Tensor, nn

from pyro_vi import FitError, Run, fit
from pyro_vi.compiling import steps
from pyro_vi.compiling.cost import SECONDS, Estimate
from pyro_vi.data.loading import load
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators.table import TABLE
from pyro_vi.fitting.loop import Loop
from pyro_vi.programs.build import build_pair
from pyro_vi.programs.lookup import available
from pyro_vi.tracing.graph import stand_ins

ROWS, SIZE = 20, 8  # an epoch is 8 + 8 + 4
KEYS = ("step", "epoch", "loss", "elbo", "reconstruction", "kl", "grad_norm", "lr", "beta")


def data(rows: int = ROWS) -> Any:
    return load(scalars(rows), heldout=0.0)


def small(name: str = "continuous", size: int | None = None) -> tuple[nn.Module, nn.Module]:
    return modules(SMALL[name], size=size)


def taken(model: Any, guide: Any, compile: Any, values: Any = None, **options: Any) -> Run:
    plain = {"elbo": "trace", "epochs": 4, "batch_size": SIZE, "lr": 0.05, "progress": False, "check": False, "seed": 3}
    options = {**plain, **options}
    if "steps" in options:
        del options["epochs"]
    return fit(model, guide, data() if values is None else values, compile=compile, **options)


def assert_same(one: Run, two: Run, digits: float = 1e-9) -> None:
    """Parameters, buffers and records agree to rounding."""
    first, second = one.pair.state_dict(), two.pair.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(
            second[name], value, rtol=digits, atol=digits / 1e3, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert len(one.history) == len(two.history)
    for a, b in zip(one.history, two.history, strict=True):
        for key in KEYS:
            assert b[key] == pytest.approx(a[key], rel=digits, abs=digits / 1e2, nan_ok=True), (key, a["step"])


def same_bits(one: Run, two: Run) -> bool:
    first, second = one.pair.state_dict(), two.pair.state_dict()
    records = [[{k: v for k, v in r.items() if k != "seconds"} for r in run.history] for run in (one, two)]
    return all(torch.equal(first[name], second[name]) for name in first) and records[0] == records[1]


def assert_compiled_is_eager(
    model: Any, guide: Any, lengths: set[int] | None = None, digits: float = 1e-9, **options: Any
) -> None:
    """Both kinds of graphs take the eager steps: compiled to rounding, captured to the last digits."""
    eager, compiled, captured = (taken(model, guide, compile, **options) for compile in (False, True, "captured"))
    assert compiled.choice is not None and set(compiled.choice.lengths) == ({8, 4} if lengths is None else lengths)
    assert_same(eager, compiled, digits)
    assert captured.choice is not None and {*captured.choice.captured} >= {*compiled.choice.lengths}
    assert_same(eager, captured, 1e-12)


def assert_captured_is_eager(
    model: Any, guide: Any, lengths: set[int] | None = None, *, bits: bool = True, **options: Any
) -> None:
    """Captured steps run the kernels of eager ones: all bits are equal, or all but the last."""
    eager, captured = (taken(model, guide, compile, **options) for compile in (False, "captured"))
    assert captured.choice is not None and not captured.choice.lengths
    assert set(captured.choice.captured) == ({8, 4} if lengths is None else lengths)
    assert_same(eager, captured, 1e-12)
    if bits:
        first, second = eager.pair.state_dict(), captured.pair.state_dict()
        assert all(torch.equal(second[name], value) for name, value in first.items())


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole-step graph is run as it is: everything but Inductor, which takes seconds for each graph."""

    def graph_itself(graph: Any, inputs: Any) -> Callable[[list[Tensor]], Any]:
        return lambda arguments: graph(*arguments)

    monkeypatch.setattr("pyro_vi.compiling.steps.compile_graph", graph_itself)


@pytest.fixture(autouse=True)
def every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """With True, every length is compiled, as in long fits; a length of few steps would be captured."""
    monkeypatch.setattr("pyro_vi.compiling.choice.FEW", 0)


@pytest.fixture
def one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the longer batches are compiled, so that compiled and eager steps take turns, and there is one graph a fit."""
    monkeypatch.setattr("pyro_vi.compiling.choice.LENGTHS", 1)


# ---- estimators


def test_each_estimator_says_what_it_serves():
    assert SERVES.keys() == TABLE.keys()


def most_are_slow(*quick: str) -> pytest.MarkDecorator:
    """For each estimator of the table; `make test` runs only these."""
    names = [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in TABLE]
    return pytest.mark.parametrize("name", names)


@pytest.mark.slow
@most_are_slow("trace")
def test_estimators_as_machine_code_and_in_eager_steps_by_turns(name, one_length):
    kind = SERVES[name].pairs[-1]
    pair = modules(SMALL[kind], infer=SERVES[name].infer.get(kind))
    assert_compiled_is_eager(*pair, {8}, elbo=make(name))


@pytest.mark.slow
@most_are_slow("trace", "enum", "iwae")
def test_each_estimator_on_functions_shorter_batches_and_a_weight_that_is_given_at_each_step(name, interpreted):
    """From 0, through fractions, to 1, where eager steps leave it out."""
    for kind in SERVES[name].pairs:
        pair = functions(SMALL[kind], infer=SERVES[name].infer.get(kind))
        assert_compiled_is_eager(*pair, elbo=make(name), clip_norm=0.4, warmup=5)


# ---- programs


BITS = (columns(ROWS) > 0).double()
MODELS, GUIDES = ["vae", "linear_gaussian"], list(available("guide"))  # `guides/test_contract.py` traces all models
TOGETHER = [(model, guide) for model in MODELS for guide in GUIDES]
AS_CODE = {(MODELS[i % len(MODELS)], GUIDES[i % len(GUIDES)]) for i in range(max(len(MODELS), len(GUIDES)))}
"""Each model and each guide as machine code at least once; all others by their graph."""
EAGER = {
    "laplace": "the step cannot be compiled: .* value out of a tracing tensor"
}  # it climbs until it stands on the mode
"""Guides that have no graph, with what is said."""
APART = {("vae", "exact"): "only a linear-Gaussian model has an exact guide"}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "guide"), TOGETHER, ids=str)
def test_each_model_with_each_guide(model, guide, one_length, request):
    if (model, guide) not in AS_CODE:
        request.getfixturevalue("interpreted")
    if (model, guide) in APART:
        with pytest.raises(InputError):
            build_pair(model, guide, load(BITS, heldout=0.0))
        return
    try:
        build_pair(model, guide, values := load(BITS, heldout=0.0))
    except InputError:
        values = load(columns(ROWS), heldout=0.0)
    if guide in EAGER:
        with pytest.raises(InputError, match=EAGER[guide]):
            taken(model, guide, True, values=values)
        return
    assert_compiled_is_eager(model, guide, {8}, values=values, lr=1e-3)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("global", "closure", "sequential"))) for n in CATALOGUE],
)
def test_each_pair_of_the_catalogue(name, interpreted):
    entry = CATALOGUE[name]
    model, guide = entry.build()
    options = {"values": load(entry.batch, heldout=0.0), "batch_size": len(entry.batch[0]), "steps": 4}
    assert_compiled_is_eager(model, guide, {len(entry.batch[0])}, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested_outside", "pyro_module"])
def test_pairs_of_other_structure_as_machine_code(name):
    entry = CATALOGUE[name]
    options = {"values": load(entry.batch, heldout=0.0), "batch_size": len(entry.batch[0]), "steps": 5}
    assert_compiled_is_eager(*entry.build(), {len(entry.batch[0])}, **options)


@pytest.mark.slow
def test_data_whose_rows_stay_in_a_file(interpreted, tmp_path):
    np.save(tmp_path / "rows.npy", scalars(ROWS).numpy())
    values = load(np.load(tmp_path / "rows.npy", mmap_mode="r"), heldout=0.0, dtype=torch.float64)
    assert values.mapped
    assert_compiled_is_eager(*small(), values=values)


@pytest.mark.slow
def test_data_that_are_drawn_anew_in_each_epoch(interpreted):
    values = load("digits", dtype=torch.float64)
    options = {"values": values, "batch_size": 700, "steps": 5, "lr": 1e-3}
    assert_compiled_is_eager("vae(latent_dim=2, hidden=(4,))", "diag_normal(hidden=(4,))", {700, 98}, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_single_precision_agrees_to_its_rounding(kind):
    pair, values = modules(SMALL[kind], torch.float32), load(scalars(ROWS).float(), heldout=0.0)
    eager, compiled = (taken(*pair, c, values, elbo="graph", batch_size=10, steps=8) for c in (False, True))
    for name, value in eager.pair.state_dict().items():
        torch.testing.assert_close(compiled.pair.state_dict()[name], value, rtol=1e-3, atol=1e-5)


# ---- optimizers, schedule, limit, weight

ADAM = torch.optim.Adam
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": partial(ADAM, lr=0.03),
    "Adam, fused": partial(ADAM, lr=0.03, fused=True),
    "Adam, foreach": partial(ADAM, lr=0.03, foreach=True),
    "Adam, amsgrad": partial(ADAM, lr=0.03, amsgrad=True),
    "AdamW": partial(torch.optim.AdamW, lr=0.03, weight_decay=0.2),
    "SGD": partial(torch.optim.SGD, lr=0.03),
    "SGD, Nesterov": partial(torch.optim.SGD, lr=0.03, momentum=0.8, nesterov=True),
    "SGD, dampened": partial(torch.optim.SGD, lr=0.03, momentum=0.8, dampening=0.3, weight_decay=0.1, maximize=True),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.03, momentum=0.5, centered=True),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.03, lr_decay=0.1),
    "NAdam": partial(torch.optim.NAdam, lr=0.03),
    "RAdam": partial(torch.optim.RAdam, lr=0.03),
    "Adamax": partial(torch.optim.Adamax, lr=0.03),
    "Adadelta": partial(torch.optim.Adadelta, lr=0.3),
    "Rprop": partial(torch.optim.Rprop, lr=0.03),
    "ASGD": partial(torch.optim.ASGD, lr=0.03, t0=3.0),
}
VARYING = {"schedule": "cosine", "warmup": 4, "beta": 0.7, "clip_norm": 0.5}
COARSE = {"NAdam": 1e-6}  # eager steps multiply a factor up in single precision


COMMON = ("Adam, fused", "SGD, Nesterov")


@pytest.mark.parametrize("settings", [VARYING, pytest.param({}, marks=pytest.mark.slow)], ids=["varying", "constant"])
@pytest.mark.parametrize(
    "name", [name if name in COMMON else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS]
)
def test_each_optimizer(name, settings, interpreted, one_length):
    assert_compiled_is_eager(*small(), {8}, digits=COARSE.get(name, 1e-9), optimizer=OPTIMIZERS[name], **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Adam, fused", "RMSprop"])
def test_optimizers_as_machine_code(name, one_length):
    assert_compiled_is_eager(*small(), {8}, optimizer=OPTIMIZERS[name], **VARYING)


def grouped(parameters: Any) -> torch.optim.Optimizer:
    first, *others = parameters
    return ADAM([{"params": others, "lr": 0.002}, {"params": [first], "betas": (0.5, 0.9)}], lr=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_groups_of_parameters_keep_their_own_rates(schedule, interpreted, one_length):
    assert_compiled_is_eager(*small(), {8}, optimizer=grouped, schedule=schedule)


SCHEDULED = {
    "Pyro's, on the sum": lambda: {"optimizer": pyro.optim.SGD({"lr": 1e-3}), "clip_norm": 0.5, "schedule": "cosine"},
    "Pyro's scheduler": lambda: {"optimizer": pyro.optim.ExponentialLR({**SGDS, "gamma": 0.5})},
    "torch's scheduler": lambda: {"schedule": partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)},
}
SGDS = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-3}}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULED)
def test_pyros_optimizers_and_schedulers(name, interpreted, one_length):
    assert_compiled_is_eager(*small(), {8}, **SCHEDULED[name]())


def momentum(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=100)


@pytest.mark.slow
def test_a_scheduler_that_changes_more_than_the_rate_ends_compiled_steps(free, interpreted):
    options = {"optimizer": partial(torch.optim.SGD, momentum=0.9), "schedule": momentum}
    run, eager = (taken(*small(), compile, **options) for compile in ("auto", False))
    assert run.choice is not None and not run.choice.lengths
    assert "the scheduler changes 'momentum', which a graph would freeze" in run.choice.note
    assert_same(eager, run)


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "warmup"), [(0.0, 0), (0.3, 12)])
def test_the_weight_of_the_kl(beta, warmup, interpreted, one_length):
    assert_compiled_is_eager(*small(), {8}, beta=beta, warmup=warmup)


@pytest.mark.slow
def test_a_plate_with_a_size_of_its_own(interpreted):
    assert_compiled_is_eager(*small(size=ROWS))


def hooked(parameters: Any) -> torch.optim.Optimizer:
    optimizer = ADAM(parameters, 0.03)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


class Counting(torch.optim.SGD):
    """The rate falls with a number of Python's."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.03)
        self.calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        for group in self.param_groups:
            group["lr"] /= self.calls
        return super().step(closure)


class InState(torch.optim.SGD):
    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.03)

    def step(self, closure: Any = None) -> Any:
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p]["calls"] = self.state[p].get("calls", 0) + 1
        return super().step(closure)


class InGroup(Counting):
    """As in schedule-free optimizers."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
        return torch.optim.SGD.step(self, closure)


class Hidden(InGroup):
    """Counts where only its own code looks."""

    def step(self, closure: Any = None) -> Any:
        self._calls = getattr(self, "_calls", 0) + 1
        return torch.optim.SGD.step(self, closure)


class Halving(torch.optim.SGD):
    """Lowers its own rate."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        self.param_groups[0]["lr"] *= 0.5


def closing(parameters: Any) -> torch.optim.Optimizer:
    made = [0]

    class Closing(InGroup):
        def step(self, closure: Any = None) -> Any:
            made.append(1)
            return torch.optim.SGD.step(self, closure)

    return Closing(parameters)


UNTRACEABLE = {
    "changes its learning rate": Halving,
    "hooks": hooked,
    "changes attribute 'calls' of Counting": Counting,
    "changes attribute '_calls' of Hidden": Hidden,
    "changes variable 'made' of step": closing,
    "is no tensor": InState,
    "changes a number in its groups": InGroup,
}


@pytest.mark.slow
@pytest.mark.parametrize("reason", UNTRACEABLE)
def test_an_optimizer_that_a_graph_cannot_hold_is_refused(reason, free, interpreted):
    """And goes on, captured, with the same bits where that was not asked for."""
    make_optimizer = UNTRACEABLE[reason]
    with pytest.raises(InputError, match=f"the step cannot be compiled: .*{reason}.* or fit with compile='auto'"):
        taken(*small(), True, optimizer=make_optimizer)
    eager, auto = (taken(*small(), c, optimizer=make_optimizer) for c in (False, "auto"))
    assert auto.choice is not None and not auto.choice.lengths and reason in auto.choice.note
    assert set(auto.choice.captured) == {8, 4}
    assert_same(eager, auto, 1e-12)  # the norm of the record is summed in another order
    assert all(torch.equal(auto.pair.state_dict()[name], value) for name, value in eager.pair.state_dict().items())


def test_an_optimizer_that_wants_a_closure_says_so():
    for compile in (True, "auto", False):
        with pytest.raises(UsageError, match=r"^optimizer LBFGS evaluates the loss several times in a step"):
            taken(*small(), compile, optimizer=partial(torch.optim.LBFGS, lr=0.1))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """With "auto", compiling always pays; on one processor, where it is not done in the background."""
    monkeypatch.setattr("pyro_vi.compiling.choice.processors", lambda: 1)
    for name in SECONDS:
        monkeypatch.setitem(SECONDS, name, 0.0)
    monkeypatch.setattr("pyro_vi.fitting.steps.estimate_step", lambda *_: Estimate(1.0, 0.0, 0))


# ---- bits, seeds and interruptions


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Press Ctrl-C after a step (an optimizer's hook would not be compiled)."""
    keep, stop = Loop._keep, [-1]

    def pressing(self: Loop) -> None:
        keep(self)
        if self.position.step == stop[0]:
            stop[0] = -1
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Loop, "_keep", pressing)
    return lambda step: stop.__setitem__(0, step)


def interrupted(
    press: Callable[[int], None], out: Path, stops: tuple[int, ...], pair: Callable[[], Any] = small, **options: Any
) -> Run:
    for i, stop in enumerate(stops):
        press(stop)
        with pytest.raises(KeyboardInterrupt):
            taken(*pair(), out=out, resume=i > 0, **options)
    return taken(*pair(), out=out, resume=True, **options)


@pytest.mark.slow
def test_a_resumed_compiled_fit_has_the_bits_of_an_uninterrupted_one(interpreted, interrupt, tmp_path):
    """At the first step, before and after the shorter batch (every third), where only that is left, twice, and at the end."""
    options = {"compile": True, **VARYING}
    whole = taken(*small(), **options)
    for stops in ((1,), (3, 8), (11,), (12,)):
        resumed = interrupted(interrupt, tmp_path / str(stops), stops, **options)
        assert same_bits(resumed, whole) and resumed.steps == 12


@pytest.mark.slow
def test_machine_code_gives_the_same_bits_again_and_after_an_interruption(interrupt, one_length, tmp_path):
    options = {"compile": True, **VARYING}
    whole = taken(*small(), **options)
    assert not same_bits(whole, taken(*small(), **options, seed=4))
    assert same_bits(whole, interrupted(interrupt, tmp_path, (5,), **options))


@pytest.mark.slow
@pytest.mark.parametrize("pays", [True, False])
def test_what_was_chosen_stays_so_over_an_interruption(
    pays, monkeypatch, interpreted, one_length, free, interrupt, tmp_path
):
    """Also where the machine that goes on would choose otherwise."""
    monkeypatch.setattr("pyro_vi.fitting.steps.estimate_step", lambda *_: Estimate(float(pays), 0.0, 0))
    whole = taken(*small(), "auto")
    assert whole.choice is not None and bool(whole.choice.lengths) == pays
    interrupt(5)
    with pytest.raises(KeyboardInterrupt):
        taken(*small(), "auto", out=tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert sorted(state["compiled"]["lengths"]) == ([8] if pays else [])
    monkeypatch.setattr("pyro_vi.fitting.steps.estimate_step", lambda *_: Estimate(float(not pays), 0.0, 0))
    resumed = taken(*small(), "auto", out=tmp_path, resume=True)
    assert resumed.choice is not None and bool(resumed.choice.lengths) == pays
    assert same_bits(whole, resumed)
    assert json.loads((tmp_path / "config.json").read_text())["compile"] == "auto"


# ---- several steps in a call


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps in a call always pay, and there are few records to stop at."""
    monkeypatch.setitem(SECONDS, "several", 1e9)
    monkeypatch.setattr("pyro_vi.fitting.loop.LOGGED", 2)


@pytest.mark.slow
def test_several_steps_in_a_call(many, interpreted, one_length, interrupt, tmp_path):
    """Of 12 + 1 in an epoch, with the same bits over an interruption in the midst."""
    options = {"values": data(100), "steps": 60, **VARYING}
    eager, compiled = (taken(*small(), compile, **options) for compile in (False, True))
    assert compiled.choice is not None and 8 in compiled.choice.together
    assert_same(eager, compiled)
    assert same_bits(compiled, interrupted(interrupt, tmp_path, (26,), compile=True, **options))


# ---- failures


def marked(x: Tensor) -> None:
    """log p is NaN for data above 50."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
        pyro.sample("x", dist.Normal(torch.where(x > 50, torch.nan, z), 1.0), obs=x)


def slope(x: Tensor) -> None:
    a = pyro.param("a", number(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(a * x.clamp(max=50), 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("datum", [10, 197])
def test_a_loss_that_is_not_finite_is_told_as_by_eager_steps(
    datum, together, interpreted, one_length, request, monkeypatch, tmp_path
):
    """Also where the datum is in a batch that the compiled step is proved on."""
    if together:
        request.getfixturevalue("many")
    monkeypatch.setattr("pyro_vi.fitting.records.ROWS", 2)
    values = scalars(200)
    values[datum] = 99.0
    texts = []
    for compile in (False, True):
        with pytest.raises(FitError) as caught:
            out = tmp_path / str(compile)
            taken(marked, slope, compile, load(values, heldout=0.0), steps=25, seed=2, out=out)
        texts.append(str(caught.value).replace(str(out), "out"))
    assert texts[0] == texts[1]
    assert f"log p of site 'x' is not finite for data {datum};" in texts[0] and "at step 1 " not in texts[0]


def test_a_loss_that_overflows_is_told_as_by_eager_steps(interpreted):
    def overflowing(x: Tensor) -> None:
        a = pyro.param("a", number(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    texts = []
    for compile in (False, True):
        with pytest.raises(FitError) as caught:
            taken(overflowing, lambda x: None, compile, optimizer=partial(torch.optim.SGD, lr=1e40), steps=20)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert "at step" in texts[0] and "at step 1 " not in texts[0]


class Jittered(nn.Module):
    """x ~ N(w l z, 1), where l comes from a Cholesky factor that does not exist at one step, nor for data above 50.

    Args:
        catches: whether it then takes another, as with jitter.
    """

    def __init__(self, bad: int, catches: bool = True) -> None:
        super().__init__()
        self.bad, self.catches, self.w = bad, catches, nn.Parameter(number(0.5))
        self.register_buffer("count", number(0.0))

    def forward(self, x: Tensor) -> None:
        if self.training:
            self.count += 1
        matrix = torch.eye(2, dtype=x.dtype) * torch.where((self.count == self.bad) | (x > 50).any(), -1.0, 1.0)
        try:
            factor = torch.linalg.cholesky(matrix)
        except RuntimeError:
            if not self.catches:
                raise
            factor = torch.linalg.cholesky(matrix + 5 * torch.eye(2, dtype=x.dtype))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(self.w * factor[0, 0] * z, 1.0), obs=x)


RAISES = r"linalg.cholesky: .* not positive-definite\)"


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_where_a_compiled_step_raises_on_a_value_the_fit_goes_on_eagerly(
    together, free, interpreted, one_length, interrupt, request, tmp_path
):
    """To the same bits over an interruption before, and one after; the programs catch what is raised."""
    if together:
        request.getfixturevalue("many")

    def pair() -> Any:
        return Jittered(22), slope

    options = {"values": data(100), "steps": 60, **VARYING}
    eager, auto = (taken(*pair(), compile, **options) for compile in (False, "auto"))
    assert_same(eager, auto)
    assert auto.choice is not None and not auto.compiled
    step = 14 + 8 if not together else 22 - (22 - 14) % 8
    assert re.match(rf"eager steps from step {step} on: the compiled step raised \({RAISES}\)$", auto.choice.note)
    assert same_bits(auto, interrupted(interrupt, tmp_path, (10, 40), pair, compile="auto", **options))


@pytest.mark.slow
def test_where_machine_code_raises_on_a_value_the_fit_goes_on_eagerly(free, one_length):
    eager, auto = (taken(Jittered(7), slope, compile, steps=12) for compile in (False, "auto"))
    assert_same(eager, auto)
    assert auto.choice is not None and re.match(f"eager steps from step 7 on: .*{RAISES}", auto.choice.note)
    with pytest.raises(FitError, match=rf"^the compiled step raises at step 7 .*{RAISES}; fit with compile='auto'$"):
        taken(Jittered(7), slope, True, steps=12)


@pytest.mark.parametrize("datum", [3, 10])
def test_a_graph_that_raises_where_it_is_traced_or_proved_is_not_used(datum, free, interpreted):
    values = scalars(100)
    values[datum] = 99.0
    values = load(values, heldout=0.0)
    eager, auto = (taken(Jittered(-1), slope, compile, values, steps=8) for compile in (False, "auto"))
    assert auto.choice is not None and re.match(rf"eager steps: the graph raises.*{RAISES}", auto.choice.note)
    assert same_bits(eager, auto)


@pytest.mark.slow
def test_what_the_programs_raise_is_told_as_by_eager_steps(free, interpreted):
    texts = []
    for compile in (False, "auto", True):
        with pytest.raises(FitError, match=rf"^the pair fails at step 7 .*{RAISES}") as caught:
            taken(Jittered(7, catches=False), slope, compile, steps=12)
        texts.append(str(caught.value))
    assert texts[0] == texts[1] == texts[2]


# ---- what outlives a fit


def surroundings() -> list[Any]:
    """Everything global that compiling touches."""
    import torch._inductor.config as inductor

    pyro_s = [getattr(owner, name) for owner, name, _ in stand_ins()]
    threads, grad, dtype = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    generators = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    flag, settings = torch.compiler._is_compiling_flag, pyro.settings.get()
    store = sorted(pyro.get_param_store().keys())
    return [threads, grad, dtype, generators, flag, settings, store, pyro_s, inductor.save_config_portable()]


def taking(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("a", number(0.1)) * float(x.mean()), 1.0))


@pytest.mark.parametrize(
    "ending", ["refused", "not compiled", *(pytest.param(e, marks=pytest.mark.slow) for e in ("done", "not finite"))]
)
def test_nothing_global_outlives_a_compiled_fit(ending, monkeypatch, tmp_path):
    model, _ = functions(SMALL["continuous"])
    before = surroundings()
    if ending == "done":
        taken(*small(), True, batch_size=10)
    elif ending == "refused":
        with pytest.raises(InputError, match="the step cannot be compiled"):
            taken(model, taking, True)
    elif ending == "not compiled":
        monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", None)
        with pytest.raises(InputError, match="the step cannot be compiled: TypeError"):
            taken(*small(), True, batch_size=10)
    else:
        values = scalars(200)
        values[15] = 99.0  # in a batch that the compiled step is proved on
        with pytest.raises(FitError):
            taken(marked, slope, True, load(values, heldout=0.0), steps=25, seed=2, batch_size=10)
    assert surroundings() == before


@pytest.mark.slow
@pytest.mark.parametrize(("differ", "compiled"), [({1}, True), ({1, 2}, False), ({1, 3}, False)])
def test_a_step_that_differs_must_agree_twice_afterwards(monkeypatch, differ, compiled):
    """Rounding at a kink of the loss may change one step; the fit is that of eager steps all the same."""
    calls, check = [], steps.CompiledSteps._check_step

    def checked(self, length, source):
        calls.append(length)
        check(self, length, source)
        if len(calls) in differ:
            raise steps.Differs("the compiled step changes it")

    monkeypatch.setattr(steps.CompiledSteps, "_check_step", checked)
    model, guide = small()
    if not compiled:
        with pytest.raises(InputError, match="the compiled step changes it"):
            taken(model, guide, True, drop_last=True)
        return
    found = taken(model, guide, True, drop_last=True)
    assert found.compiled and len(calls) > 2
    assert_same(taken(model, guide, False, drop_last=True), found)
