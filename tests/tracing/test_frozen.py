"""A program that keeps state in Python is refused by compiled fits, or does there what it does in eager ones.

`REFUSED` cannot be a graph and must say why; `HANDLED` must give the numbers of the eager fit; each of `CHANGES` is a kind of
state that is seen and put back.
"""

import functools
import itertools
import random
import sys
import time
import types
from array import array
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from decimal import Decimal
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_vi import FitError, Run, fit
from pyro_vi.compiling.cost import SECONDS
from pyro_vi.data.loading import load
from pyro_vi.errors import InputError, NoGraph
from pyro_vi.tracing.frozen import put_back, same_twice, watched
from pyro_vi.tracing.reach import MOST, Walk
from pyro_vi.tracing.recording import record

ROWS = torch.randn(20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
"""Two are held out: one batch of 18."""
BUFFER, TORCH, WHERE = "hold it in a buffer", "draw with torch or pyro", "use torch.where, or multiply by the mask"
AUTO = "or fit with compile='auto'"


class Model(nn.Module):
    """z ~ N(0, 1) and x | z ~ N(w z f, 1) for each datum, where f is what a subclass makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def factor(self, z: Tensor) -> Any:
        return 1.0

    def prior(self, x: Tensor) -> Any:
        return dist.Normal(torch.zeros_like(x), 1.0)

    def plate(self, x: Tensor) -> Any:
        return pyro.plate("data", len(x))

    def forward(self, x: Tensor) -> None:
        with self.plate(x) as rows:
            z = pyro.sample("z", self.prior(x[rows]))
            pyro.sample("x", dist.Normal(self.w * z * self.factor(z), 1.0), obs=x[rows])


class Guide(Model):
    """q(z | x) = N(a x + b, s²)."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.a, self.b, self.log_s = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.3, 0.1, -0.5))

    def prior(self, x: Tensor) -> Any:
        return dist.Normal(self.a * x + self.b, self.log_s.exp())

    def forward(self, x: Tensor) -> None:
        with self.plate(x) as rows:
            pyro.sample("z", self.prior(x[rows]))


def made(factor: Callable[[Any, Tensor], Any] = Model.factor, **held: Any) -> Any:
    """A `Model` that holds some things, with this method."""
    module = other(Model, factor=factor)
    for name, value in held.items():
        setattr(module, name, value)
    return module


def other(base: type[Model], **methods: Any) -> Any:
    return type("Made", (base,), methods)()


@pytest.fixture(autouse=True)
def few_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vi.fitting.loop.LOGGED", 2)


def quick(model: Any, guide: Any = None, **options: Any) -> Run:
    settings = {"steps": 6, "progress": False, "check": False, "elbo": "trace", "lr": 1e-2}
    return fit(model, Guide() if guide is None else guide, ROWS, **{**settings, **options})


def numbers(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds" and v is not None} for record in run.history]


# ---- refused


def step(owner: Any) -> int:
    owner.calls += 1
    return owner.calls


def rarely(_: Any, z: Tensor) -> float:
    """Draws from Python's generator, so rarely another number that two captures are the same."""
    return 2.0 if random.random() < 1e-12 else 1.0


# The clock counts too little to show in a sum: it is another in the second fit.
REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "branch": (lambda: made(lambda _, z: 2.0 if z.sum() > 0 else 1.0), "a value out of a tracing tensor", WHERE[:15]),
    "list of values": (lambda: made(lambda _, z: 2.0 if 99 in z.round().tolist() else 1.0), "(tolist)", AUTO),
    # No batch that the step is proved on has what would be counted.
    "mask": (lambda: made(lambda _, z: 1 + len(z[z > 99])), "shape that depends on values (x[mask])", WHERE),
    "threshold": (
        lambda: made(lambda self, z: 2.0 if step(self) > 100 else 1.0, calls=0),
        "attribute 'calls' of Made",
        BUFFER,
    ),
    "Python's generator": (lambda: made(rarely), "draw from Python's generator", TORCH),
    "NumPy's generator": (lambda: made(lambda _, z: 1 + np.random.rand()), "draw from NumPy's generator", TORCH),
    "time": (lambda: made(lambda _, z: 1 + 0 * z + 1e-300 * time.time()), "two captures differ", BUFFER),
    "iterator": (
        lambda: made(lambda self, z: 1.0 + next(self.calls), calls=itertools.count()),
        "attribute 'calls' of Made is an iterator",
        BUFFER[:4],
    ),
    "own generator": (
        lambda: made(lambda self, z: 1.0 + self.calls.random(), calls=np.random.default_rng(1)),
        "attribute 'calls' of Made is a generator of random numbers",
        TORCH,
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (number >= 6)) for number, n in enumerate(REFUSED)]
)
def test_what_a_graph_cannot_hold_is_refused_and_fitted_eagerly_to_the_same_bits(name, monkeypatch):
    monkeypatch.setattr("pyro_vi.compiling.steps.compile_graph", lambda *_: pytest.fail("a step was compiled"))
    for constant in ("first", "graph", "node", "capture", "captured"):
        monkeypatch.setitem(SECONDS, constant, 0.0)
    make, cause, remedy = REFUSED[name]
    with pytest.raises(InputError, match=r"^the step cannot be compiled: ") as caught:
        quick(make(), compile=True)
    said = str(caught.value)
    assert cause in said and remedy in said and said.endswith(AUTO) and "\n" not in said
    eager, auto = (quick(make(), compile=mode) for mode in (False, "auto"))
    assert auto.choice is not None and not auto.compiled
    assert auto.choice.note.startswith("eager steps: ") and cause in auto.choice.note
    state = eager.pair.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in auto.pair.state_dict().items())
    assert numbers(auto) == numbers(eager)


def test_the_checks_of_these_tests_do_not_draw_from_pythons_generator():
    """Of beartype, which looks at an item of a list by chance: so a draw is one of the programs."""
    assert "beartype" in sys.modules
    before = random.getstate()
    fit(Model(), Guide(), ROWS, steps=1, progress=False, snapshots=[0.0, 0.5, 1.0])
    assert random.getstate() == before


# ---- handled


def counting(assign: bool) -> Any:
    """Anneals by a count of its calls in training, in a buffer."""

    def factor(self: Any, z: Tensor) -> Any:
        if self.training and assign:
            self.count = self.count + 1
        elif self.training:
            self.count += 1
        return (self.count / 10).clamp(max=1.0)

    module = made(factor)
    module.register_buffer("count", torch.tensor(0))
    return module


def everything(self: Any, z: Tensor) -> Any:
    """Dropout, running statistics, a buffer that counts, more draws, a mask of values."""
    if self.training:
        self.count += 1
    moving = self.drop(1 + 0.1 * self.norm(z.reshape(-1, 1)).reshape(-1)).masked_fill(z > 0.5, 0.7)
    return (
        moving * (self.count / 10).clamp(max=1.0) + 0.1 * torch.randn_like(z) + 0.1 * torch.rand(len(z), dtype=z.dtype)
    )


def all_at_once() -> Any:
    module = other(Model, factor=everything, prior=lambda _, x: dist.Gamma(torch.full_like(x, 2.0), 1.0))
    module.drop, module.norm = nn.Dropout(0.3), nn.BatchNorm1d(1, dtype=torch.float64)
    module.register_buffer("count", torch.tensor(0))
    return module


def subsampled(self: Any, x: Tensor) -> Any:
    return pyro.plate("data", len(x), subsample_size=min(7, len(x)) if self.training else None)


def rejected(self: Any, x: Tensor) -> Any:
    return dist.Gamma((self.a * x + self.b).exp(), self.log_s.exp())


HANDLED: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any]]] = {
    "all at once, as machine code": (all_at_once, lambda: other(Guide, prior=rejected), {"batch_size": 12}),
    "reassigned": (lambda: counting(assign=True), Guide, {}),
    "subsample": (lambda: other(Model, plate=subsampled), lambda: other(Guide, plate=subsampled), {}),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * ("machine" in n)) for n in HANDLED])
def test_what_a_graph_can_hold_is_fitted_as_it_is_eagerly(name, monkeypatch):
    if "machine code" not in name:
        monkeypatch.setattr("pyro_vi.compiling.steps.compile_graph", lambda graph, _: lambda inputs: graph(*inputs))
    model, guide, options = HANDLED[name]
    compiled, eager = (quick(model(), guide(), compile=mode, **options) for mode in (True, False))
    assert compiled.compiled and not eager.compiled
    state = eager.pair.state_dict()
    for key, value in compiled.pair.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-9, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")
    for one, two in zip(numbers(compiled), numbers(eager), strict=True):
        assert one == pytest.approx(two, rel=1e-9, abs=1e-12)


def late(x: Tensor) -> None:
    """Has a parameter more for the shorter batch that ends an epoch."""
    w = pyro.param("w", torch.tensor(0.7, dtype=torch.float64))
    if len(x) == 6:
        w = w + pyro.param("late", torch.tensor(0.1, dtype=torch.float64))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(w * z, 1.0), obs=x)


LATE = "parameter 'late' is created only after the first call; create every parameter on every path"


@pytest.mark.parametrize("mode", [True, "auto", False])
def test_a_parameter_that_the_shorter_batch_creates_is_refused_before_the_first_step(mode):
    with pytest.raises(InputError, match=LATE):
        quick(late, compile=mode, batch_size=12)


def test_a_parameter_that_a_row_creates_is_refused_at_its_step():
    last = load(ROWS).train()[0][-1]

    def rare(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor(0.7, dtype=torch.float64))
        if bool((x == last).any()):
            w = w + pyro.param("late", torch.tensor(0.1, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(w * z, 1.0), obs=x)

    messages = []
    for mode in ("auto", False):
        with pytest.raises(FitError, match=LATE) as caught:
            quick(rare, compile=mode, batch_size=12)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


# ---- what is seen, and put back

CALLS = 0
SETTING: ContextVar[int] = ContextVar("setting", default=0)


def in_a_global() -> None:
    global CALLS
    CALLS += 1


def in_a_closure() -> Callable[[], None]:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    return count


def in_another_module() -> None:
    counts.inner.calls += 1


def imported() -> None:
    import counts_of_a_test

    counts_of_a_test.calls += 1


counts = types.ModuleType("counts")
counts.inner = types.ModuleType("counts.inner")
counts.inner.calls = 0


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "list": (lambda: [1], lambda v: v.append(2)),
    "dict": (dict, lambda v: v.update(a=1)),
    "set": (lambda: {1}, lambda v: v.add(2)),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda v: v.append(3)),
    "array of numbers": (lambda: array("l", [0]), lambda v: v.__setitem__(0, 1)),
    "NumPy array": (lambda: np.zeros(3), lambda v: v.__setitem__(1, 1.0)),
    "tensor": (lambda: torch.zeros(3), lambda v: v.add_(1)),
    "data of a tensor": (lambda: torch.zeros(3), lambda v: v.data.add_(1)),
    "object in containers": (lambda: [({"a": SimpleNamespace(calls=0)},)], lambda v: step(v[0][0]["a"])),
    "Decimal": (lambda: SimpleNamespace(calls=Decimal(0)), step),
    "new attribute": (SimpleNamespace, lambda v: setattr(v, "n", 1)),
    "slots": (lambda: type("Slots", (), {"__slots__": ("n",)})(), lambda v: setattr(v, "n", 1)),
    "class of an object": (type("Counting", (), {"calls": 0}), lambda v: step(type(v))),
    "function": (lambda: functools.wraps(len)(lambda v: v), lambda v: setattr(v, "calls", 1)),
    "partial": (lambda: partial(max, [1]), lambda v: v.args[0].append(2)),
    "cached function": (lambda: functools.cache(in_a_closure()), lambda v: v()),
    "module in a list": (lambda: [made(calls=0)], lambda v: step(v[0])),
    "bound method": (lambda: made(calls=0).factor, lambda v: step(v.__self__)),
    "default": (lambda: lambda seen=[]: seen.append(1), lambda v: v()),
    "closure": (in_a_closure, lambda v: v()),
    "global": (lambda: in_a_global, lambda v: v()),
    "other module": (lambda: in_another_module, lambda v: v()),
    "imported": (lambda: imported, lambda v: v()),
    "context": (lambda: SETTING, lambda v: v.set(v.get() + 1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_kind_of_change_is_seen_and_put_back(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "counts_of_a_test", module := types.ModuleType("counts_of_a_test"))
    module.calls = 0
    make, change = CHANGES[name]
    module = made(value=make())
    with pytest.raises(NoGraph, match=r"the programs change .* hold it in a buffer"), watched(module):
        change(module.value)

    module = made(value=make())
    before = Walk(module)
    with put_back(module):
        change(module.value)
        assert before.changed()
    assert not before.changed()


GENERATORS = (torch.Generator, np.random.default_rng, np.random.RandomState, np.random.PCG64, random.Random)


@pytest.mark.parametrize("make", [*GENERATORS, itertools.count, lambda: (i for i in range(3))])
def test_what_cannot_be_put_back_is_refused_before_the_programs_run(make):
    with pytest.raises(NoGraph, match="attribute 'value' of Made is "), put_back(made(value=make())):
        pytest.fail("the programs run")


def test_a_program_that_changes_nothing_passes():
    """Parameters and buffers are no state of Python; equal things may be assigned anew, as autoguides do."""
    module = made(items=[1, {2}], array=np.ones(3), z=torch.ones(2), nan=float("nan"), shared=random.getstate.__self__)
    counted, auto = nn.Sequential(counting(assign=False), nn.BatchNorm1d(2)), AutoNormal(Model())
    with pyro.get_param_store().scope(), watched(module, counted):
        auto(ROWS)
        before = Walk(auto)
        module(ROWS)
        module.items, module.nan = [1, {2}], float("nan")
        counted[0](ROWS)
        counted[1](torch.randn(4, 2))
        counted[0].w.data += 1
        auto(ROWS)
        assert not before.changed()


def test_cycles_end():
    loop: list[Any] = [1]
    loop.append(loop)
    one, two = SimpleNamespace(n=0), SimpleNamespace(n=0)
    one.other, two.other = two, one
    module = made(loop=loop, one=one)
    module.own = (module,)
    with pytest.raises(NoGraph, match="attribute 'n' of SimpleNamespace"), watched(module):
        two.n = 1


@pytest.mark.slow
def test_large_things_end_soon():
    large = made(tensor=torch.zeros(2 * MOST), array=np.zeros(2 * MOST), numbers=list(range(2 * MOST)))
    for change in (lambda: large.tensor.add_(1), lambda: large.numbers.append(0)):
        with pytest.raises(NoGraph, match="the programs change attribute"), watched(large):
            change()
    with (
        pytest.raises(NoGraph, match=f"more than {MOST} objects"),
        watched(made(objects=[[i] for i in range(2 * MOST)])),
    ):
        pytest.fail("the programs run")


def states() -> list[Any]:
    return [torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()]


def test_changes_are_put_back_also_on_error():
    module = made(calls=0, items=[])

    def fails() -> torch.fx.GraphModule:
        module.calls += 1
        module.items.append(1)
        module.more = 1
        torch.rand(1), np.random.rand(), random.random()
        raise ValueError("no")

    drawn = states()
    with pytest.raises(ValueError, match="no"):
        same_twice(fails, module)
    assert (module.calls, module.items, hasattr(module, "more")) == (0, [], False)
    assert states() == drawn


def test_generators_are_put_back_and_graphs_compared():
    drawn = states()
    assert "rand" in str(same_twice(lambda: record(lambda x: x + torch.rand(20), ROWS), Model()).graph)
    for constants in ([1.0, 2.0], [torch.zeros(20), torch.ones(20)]):
        coming = iter(constants)
        with pytest.raises(NoGraph, match="two captures differ"):
            same_twice(lambda coming=coming: record(partial(torch.add, other=next(coming)), ROWS), Model())
    assert states() == drawn
