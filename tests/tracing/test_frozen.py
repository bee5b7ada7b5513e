"""A program that keeps state in Python is refused by compiled fits, or does there what it does in eager ones.

Each program is a tiny one that some user could have written: `REFUSED` cannot be a graph and must say why; `HANDLED` must give
the numbers of the eager fit.
"""

import itertools
import random
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_padded_sequence

from pyro_vi import FitError, Run, fit
from pyro_vi.errors import InputError, NoGraph
from pyro_vi.tracing.frozen import put_back, same_twice, watched
from pyro_vi.tracing.reach import DEPTH, MOST, state_of

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


def program(factor: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """`Model` as a function, whose factor is in its closure."""

    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor(0.7, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(w * z * factor(z), 1.0), obs=x)

    return model


@pytest.fixture(autouse=True)
def few_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vi.fitting.loop.LOGGED", 2)


def quick(model: Any, guide: Any = None, **options: Any) -> Run:
    settings = {"steps": 6, "progress": False, "check": False, "elbo": "trace", "lr": 1e-2}
    return fit(model, Guide() if guide is None else guide, ROWS, **{**settings, **options})


def numbers(run: Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in run.history]


# ---- refused


def closed(calls: Any, count: Callable[[Any], float]) -> Any:
    """A function whose factor depends on something in its closure, at first only a little."""
    return program(lambda z: 2.0 if count(calls) > 12 else 1.0)


def step(owner: Any) -> int:
    owner.calls += 1
    return owner.calls


def add(calls: Any) -> int:
    calls["n"] = calls.get("n", 0) + 1
    return calls["n"]


def keep(self: Any, z: Tensor) -> Any:
    before, self.last = self.last, z.detach().mean()
    return 1 + 0.1 * before


def noisy(self: Any, z: Tensor) -> Any:
    return 1 + torch.rand(len(z), generator=self.calls)


def in_a_closure() -> Any:
    calls = 0

    def factor(z: Tensor) -> float:
        nonlocal calls
        calls += 1
        return 2.0 if calls > 12 else 1.0

    return program(factor)


CALLS = 0


def in_a_global() -> Any:
    global CALLS
    CALLS = 0

    def factor(z: Tensor) -> float:
        global CALLS
        CALLS += 1
        return 2.0 if CALLS > 12 else 1.0

    return program(factor)


def filled(_: Any, z: Tensor) -> Any:
    mask = torch.zeros(len(z), dtype=torch.bool)
    mask[1:] = z[1:] > 99
    return 1 + len(z[mask])


def packed(_: Any, z: Tensor) -> Any:
    lengths = 1 + (z > 99).long()
    rows = z.reshape(-1, 1, 1).expand(-1, 2, -1)
    return 1.0 * len(pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False).batch_sizes)


ATTRIBUTE, VARIABLE = "attribute 'calls' of Made", "variable 'calls' of <lambda>"
VALUE = "tracing tensor|data-dependent"
# Python's generator and the clock count too little to show in a sum: they are others in the second fit.
REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "branch": (lambda: made(lambda _, z: 2.0 if z.sum() > 0 else 1.0), VALUE, AUTO),
    "item": (lambda: made(lambda _, z: 1 + z.detach().abs().mean().item()), VALUE, AUTO),
    "annealing": (lambda: made(lambda self, z: min(1.0, step(self) / 10), calls=0), ATTRIBUTE, BUFFER),
    "threshold": (lambda: made(lambda self, z: 2.0 if step(self) > 100 else 1.0, calls=0), ATTRIBUTE, BUFFER),
    "closure": (in_a_closure, "variable 'calls' of factor", BUFFER),
    "global": (in_a_global, "variable 'CALLS' of factor", BUFFER),
    "list": (lambda: closed([], lambda v: v.append(1) or len(v)), VARIABLE, BUFFER),
    "dict": (lambda: closed({}, add), VARIABLE, BUFFER),
    "object": (lambda: closed(SimpleNamespace(calls=0), step), "attribute 'calls' of SimpleNamespace", BUFFER),
    "itertools": (lambda: closed(itertools.count(), next), VARIABLE, BUFFER),
    "numpy": (lambda: program(lambda z: 1 + np.random.rand()), "draw from NumPy's generator", TORCH),
    "default_rng": (lambda: closed(np.random.default_rng(1), lambda v: 12.5 * v.random()), VARIABLE, BUFFER),
    "random": (lambda: program(lambda z: 1 + 0 * z + 1e-300 * random.random()), "two captures differ", TORCH),
    "time": (lambda: program(lambda z: 1 + 0 * z + 1e-300 * time.time()), "two captures differ", BUFFER),
    "generator": (lambda: made(noisy, calls=torch.Generator()), ATTRIBUTE, BUFFER),
    "tensor": (lambda: made(lambda self, z: 1 + self.calls[0].add_(0.1), calls=(torch.zeros(1),)), ATTRIBUTE, BUFFER),
    "kept": (lambda: made(keep, last=0.0), "attribute 'last' of Made", BUFFER),
    # No batch that the step is proved on has what would be counted.
    "mask": (lambda: made(lambda _, z: 1 + len(z[z > 99])), r"shape that depends on values \(x\[mask\]\)", WHERE),
    "filled mask": (lambda: made(filled), r"shape that depends on values \(x\[mask\]\)", WHERE),
    "nonzero": (lambda: made(lambda _, z: 1 + (z > 99).nonzero().numel()), r"depends on values \(nonzero\)", WHERE),
    "unique": (lambda: made(lambda _, z: float((z > 99).unique().numel())), r"depends on values \(unique\)", WHERE),
    "sparse": (lambda: made(lambda _, z: 1 + (z > 99).to_sparse()._nnz()), r"on values \(to_sparse\)", WHERE),
    "packed": (lambda: made(packed), r"depends on values \(a packed sequence\)", WHERE),
    "list of values": (lambda: made(lambda _, z: 2.0 if 99 in z.round().tolist() else 1.0), "tolist", AUTO),
}


@pytest.fixture
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vi.compiling.steps.compile_graph", lambda *_: pytest.fail("a step was compiled"))


@pytest.fixture
def compiling_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACING", "COMPILING", "PER_NODE"):
        monkeypatch.setattr(f"pyro_vi.compiling.choice.{name}", 0.0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_cannot_hold_is_refused_with_cause_and_remedy(name, nothing_is_compiled):
    make, cause, remedy = REFUSED[name]
    with pytest.raises(InputError, match=rf"^the step cannot be compiled: .*({cause}).*{AUTO}$") as caught:
        quick(make(), compile=True)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_fitted_eagerly_to_the_same_bits(name, nothing_is_compiled, compiling_pays):
    make, cause, _ = REFUSED[name]
    eager, auto = (quick(make(), compile=mode) for mode in (False, "auto"))
    assert not auto.compiled
    assert auto.choice is not None
    assert re.match(f"eager steps: .*({cause})", auto.choice.note)
    state = eager.pair.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in auto.pair.state_dict().items())
    assert numbers(auto) == numbers(eager)


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


def normed(self: Any, z: Tensor) -> Any:
    return self.norm(z.reshape(-1, 1)).reshape(-1)


def subsampled(self: Any, x: Tensor) -> Any:
    return pyro.plate("data", len(x), subsample_size=min(7, len(x)) if self.training else None)


def more_draws(_: Any, z: Tensor) -> Any:
    return 1 + 0.1 * torch.randn_like(z) + 0.1 * torch.rand(len(z), dtype=z.dtype)


def masked_by_constants(_: Any, z: Tensor) -> Any:
    mask = torch.tensor([True, False, True])
    other = torch.ones(3, 3).tril().bool()
    return 1 + 0.1 * torch.arange(3.0)[mask].sum() + 0.1 * len(torch.ones(3, 3)[other])


def rejected(self: Any, x: Tensor) -> Any:
    return dist.Gamma((self.a * x + self.b).exp(), self.log_s.exp())


def switched(self: Any, x: Tensor) -> Any:
    return dist.Bernoulli(logits=self.a * x + self.b + self.log_s)


HANDLED: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any]]] = {
    "dropout": (lambda: made(lambda self, z: self.drop(1 + 0.1 * z), drop=nn.Dropout(0.3)), Guide, {}),
    "batch_norm": (lambda: made(normed, norm=nn.BatchNorm1d(1, dtype=torch.float64)), Guide, {}),
    "count": (lambda: counting(assign=False), Guide, {}),
    "reassigned": (lambda: counting(assign=True), Guide, {}),
    "constant mask": (lambda: made(masked_by_constants), Guide, {}),
    "mask of values": (lambda: made(lambda _, z: torch.ones_like(z).masked_fill(z > 0.5, 0.7)), Guide, {}),
    "subsample": (lambda: other(Model, plate=subsampled), lambda: other(Guide, plate=subsampled), {}),
    "rejection": (
        lambda: other(Model, prior=lambda _, x: dist.Gamma(torch.full_like(x, 2.0), 1.0)),
        lambda: other(Guide, prior=rejected),
        {},
    ),
    "discrete": (
        lambda: other(Model, prior=lambda _, x: dist.Bernoulli(torch.full_like(x, 0.4))),
        lambda: other(Guide, prior=switched),
        {"elbo": "score(num_particles=2)"},
    ),
    "more_draws_and_a_shorter_batch": (lambda: made(more_draws), Guide, {"batch_size": 12}),
}


@pytest.mark.parametrize("name", HANDLED)
def test_what_a_graph_can_hold_is_fitted_as_it_is_eagerly(name):
    model, guide, options = HANDLED[name]
    compiled, eager = (quick(model(), guide(), compile=mode, **options) for mode in (True, False))
    assert compiled.compiled and not eager.compiled
    state = eager.pair.state_dict()
    for key, value in compiled.pair.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-9, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")
    for one, two in zip(numbers(compiled), numbers(eager), strict=True):
        assert one == pytest.approx(two, rel=1e-9, abs=1e-12)


# ---- a parameter that comes late


def late(x: Tensor) -> None:
    """Has a parameter more for the shorter batch that ends an epoch."""
    w = pyro.param("w", torch.tensor(0.7, dtype=torch.float64))
    if len(x) == 6:
        w = w + pyro.param("late", torch.tensor(0.1, dtype=torch.float64))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(w * z, 1.0), obs=x)


def test_a_parameter_that_is_created_late_is_refused_as_in_an_eager_fit(monkeypatch, compiling_pays):
    # The longer batch, which is all right, is compiled first; here the graph itself will do.
    monkeypatch.setattr("pyro_vi.compiling.steps.compile_graph", lambda graph, _: lambda inputs: graph(*inputs))
    says = "parameter 'late' is created only after the first call; create every parameter on every path"
    with pytest.raises(InputError, match=says):
        quick(late, compile=True, batch_size=12)
    messages = []
    for mode in ("auto", False):
        with pytest.raises(FitError, match=says) as caught:
            quick(late, compile=mode, batch_size=12)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


# ---- what is seen, and put back


def untold(module: nn.Module) -> dict[str, Any]:
    """`state_of`, without the versions of tensors, which never go back."""
    return {k: v[2] if isinstance(v, tuple) and len(v) == 3 else v for k, v in state_of(module).items()}


def states() -> list[Any]:
    return [torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()]


def test_a_program_that_changes_nothing_passes():
    """Parameters and buffers are no state of Python."""
    module = made(number=1, text="a", nan=float("nan"), items=[1, {2}], array=np.ones(3), z=torch.ones(2))
    counted = nn.Sequential(counting(assign=False), nn.BatchNorm1d(2))
    with watched(module, counted):
        module(ROWS)
        counted[0](ROWS)
        counted[1](torch.randn(4, 2))
        counted[0].w.data += 1
    assert state_of(module) == state_of(module)
    assert state_of(made(number=1)) != state_of(made(number=2))


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "list": (lambda: [1], lambda v: v.append(2)),
    "element": (lambda: [1], lambda v: v.__setitem__(0, 2)),
    "dict": (dict, lambda v: v.update(a=1)),
    "Counter": (Counter, lambda v: v.update("a")),
    "set": (lambda: {1}, lambda v: v.add(2)),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda v: v.append(3)),
    "array": (lambda: np.zeros(3), lambda v: v.__setitem__(1, 1.0)),
    "tensor": (lambda: torch.zeros(3), lambda v: v.add_(1)),
    "data of a tensor": (lambda: torch.zeros(3), lambda v: v.data.add_(1)),
    "torch.Generator": (torch.Generator, lambda v: torch.rand(1, generator=v)),
    "default_rng": (lambda: np.random.default_rng(0), lambda v: v.random()),
    "RandomState": (lambda: np.random.RandomState(0), lambda v: v.rand()),
    "random.Random": (lambda: random.Random(0), lambda v: v.random()),
    "object": (lambda: SimpleNamespace(n=0), lambda v: setattr(v, "n", 1)),
    "object in containers": (lambda: [({"a": SimpleNamespace(n=0)},)], lambda v: setattr(v[0][0]["a"], "n", 1)),
    "new attribute": (SimpleNamespace, lambda v: setattr(v, "n", 1)),
    "slots": (type("Slots", (), {"__slots__": ("n",)}), lambda v: setattr(v, "n", 1)),
    "class attribute": (lambda: type("Counting", (), {"calls": 0}), lambda v: setattr(v, "calls", 1)),
    "attribute of a function": (lambda: wraps(len)(lambda v: v), lambda v: setattr(v, "calls", 1)),
    "partial": (lambda: partial(max, [1]), lambda v: v.args[0].append(2)),
    "module in a list": (lambda: [made(calls=0)], lambda v: step(v[0])),
    "bound method": (lambda: made(calls=0).factor, lambda v: step(v.__self__)),
    "count": (itertools.count, next),
    "cycle": (lambda: itertools.cycle([1, 2, 3]), next),
    "generator": (lambda: (i for i in range(3)), next),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_kind_of_change_is_seen_and_put_back(name):
    make, change = CHANGES[name]
    module = made(value=make())
    with pytest.raises(NoGraph, match=r"the programs change .* hold it in a buffer"), watched(module):
        change(module.value)

    module = made(value=make())
    before = untold(module)
    with put_back(module):
        change(module.value)
        assert untold(module) != before
    if name != "generator":  # which no one can set back
        assert untold(module) == before


def test_changes_are_put_back_also_on_error():
    module = made(calls=0, items=[])

    def fails() -> torch.fx.GraphModule:
        module.calls += 1
        module.items.append(1)
        module.more = 1
        torch.rand(1), np.random.rand(), random.random()
        raise ValueError("no")

    before, drawn = state_of(module), states()
    with pytest.raises(ValueError, match="no"):
        same_twice(fails, module)
    assert state_of(module) == before
    assert not hasattr(module, "more")
    assert states() == drawn


def test_generators_are_put_back_and_graphs_compared():
    drawn = states()
    assert "rand" in same_twice(lambda: make_fx(lambda x: x + torch.rand(20))(ROWS), Model()).code
    for constants in ([1.0, 2.0], [torch.zeros(20), torch.ones(20)]):
        coming = iter(constants)
        with pytest.raises(NoGraph, match="two captures differ"):
            same_twice(lambda coming=coming: make_fx(partial(torch.add, other=next(coming)))(ROWS), Model())
    assert states() == drawn


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_global_generators_are_watched(monkeypatch, draw):
    monkeypatch.delitem(sys.modules, "beartype", raising=False)  # whose own draws are ignored
    with (
        pytest.raises(NoGraph, match=r"the programs draw from .*'s generator.*; draw with torch or pyro"),
        watched(Model()),
    ):
        draw()


def test_cycles_and_shared_objects_end():
    loop: list[Any] = [1]
    loop.append(loop)
    one, two = SimpleNamespace(n=0), SimpleNamespace(n=0)
    one.other, two.other = two, one
    module = made(loop=loop, one=one, again=one)
    module.own = (module,)
    with pytest.raises(NoGraph, match="attribute 'n' of SimpleNamespace"), watched(module):
        two.n = 1


def test_depth_ends():
    nested: list[list[Any]] = [[0]]
    for _ in range(DEPTH + 60):
        nested.append([nested[-1]])
    assert len(state_of(made(value=nested[-1]))) == len(state_of(made(value=nested[DEPTH + 10])))


def test_large_containers_end_soon():
    module = made(tensor=torch.zeros(2 * MOST), array=np.zeros(2 * MOST), objects=[[i] for i in range(2 * MOST)])
    start = time.perf_counter()
    with pytest.raises(NoGraph, match="the programs change the length of attribute 'objects'"), watched(module):
        module.objects.append([0])
    assert time.perf_counter() - start < 10
    with pytest.raises(NoGraph, match="attribute 'tensor' of Made"), watched(made(tensor=module.tensor)):
        module.tensor.add_(1)
