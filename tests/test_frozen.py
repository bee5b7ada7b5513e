"""What a graph would freeze is handled right or refused: a program's own state in Python, its generators, its buffers."""

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, number, scalars
from frozen_catalogue import COUNTERS, Guide, annealed, guided, late, model, reset
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_vi import Run, fit
from pyro_vi.data import load
from pyro_vi.errors import InputError
from pyro_vi.frozen import Frozen, put_back, watched
from pyro_vi.reach import DEPTH, MOST, state_of


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling always pays, and the graph is run as it is: what is frozen in it is frozen before Inductor sees it."""
    for name in ("TRACING", "COMPILING", "PER_NODE", "PER_CALL"):
        monkeypatch.setattr(f"pyro_vi.choice.{name}", 0.0)
    monkeypatch.setattr("pyro_vi.compiled.compile_graph", lambda graph, inputs: lambda arguments: graph(*arguments))
    monkeypatch.setattr("pyro_vi.loop.LOGGED", 4)
    monkeypatch.setattr("pyro_vi.choice.LENGTHS", 1)


def taken(guide: Any, compile: Any, **options: Any) -> Run:
    """A fit on fresh global state."""
    reset()
    random.seed(0)
    options = {"elbo": "trace", "epochs": 4, "batch_size": 8, "lr": 0.05, "seed": 3, **options}
    program = options.pop("model", model)
    return fit(program, guide, load(scalars(20), heldout=0.0), compile=compile, progress=False, check=False, **options)


def same_bits(one: Run, two: Run) -> bool:
    first, second = one.pair.state_dict(), two.pair.state_dict()
    records = [[{k: v for k, v in r.items() if k != "seconds"} for r in run.history] for run in (one, two)]
    return all(torch.equal(first[name], second[name]) for name in first) and records[0] == records[1]


def assert_handled(make: Callable[[], Any], **options: Any) -> Run:
    """Compiled and eager steps agree to rounding, in parameters, buffers and records."""
    eager, compiled = taken(make(), False, **options), taken(make(), True, **options)
    assert compiled.choice is not None and compiled.choice.lengths
    for name, value in eager.pair.state_dict().items():
        torch.testing.assert_close(compiled.pair.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    for a, b in zip(eager.history, compiled.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-9) and b["elbo"] == pytest.approx(a["elbo"], rel=1e-9)
    return compiled


def assert_refused(make: Callable[[], Any], cause: str, repeatable: bool = True) -> None:
    """An error that names the cause where compiling was asked for, else eager steps: to the same bits, with a note."""
    with pytest.raises(InputError, match=f"^the step cannot be compiled: .*{cause}.*; or fit with compile='auto'$"):
        taken(make(), True)
    auto = taken(make(), "auto")
    assert auto.choice is not None and auto.choice.lengths == ()
    assert auto.choice.note.startswith("eager steps: ") and "\n" not in auto.choice.note
    if repeatable:
        assert same_bits(auto, taken(make(), False))


# ---- numbers that a program counts up


@pytest.mark.parametrize("where", COUNTERS)
def test_a_number_counted_in_python_is_refused(where):
    """Also one that is looked at only later; and the fit goes on as if nobody had tried."""
    assert_refused(COUNTERS[where](late), "the programs change .* as they run")


@pytest.mark.parametrize("where", ["attribute", "closure", "global", "object with slots"])
def test_a_number_that_anneals_is_refused(where):
    assert_refused(COUNTERS[where](annealed), "the programs change .* as they run")


def test_annealing_in_a_buffer_is_handled():
    """In place and assigned anew, and as far as by eager steps."""

    def in_place(self: Any, x: Tensor) -> Tensor:
        self.count += 1
        return (self.count / 10).clamp(max=1.0)

    def anew(self: Any, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return (self.count / 10).clamp(max=1.0)

    runs = []
    for factor in (in_place, anew):
        make = guided(factor, lambda self: self.register_buffer("count", number(0.0)))
        runs.append(assert_handled(make))
        assert_handled(make, batch_size=20)
    assert float(runs[0].guide.count) > 12 and same_bits(*runs)


def test_a_buffer_that_grows_is_refused():
    def factor(self: Any, x: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen, self.seen[:1]])
        return self.seen.mean()

    make = guided(factor, lambda self: self.register_buffer("seen", torch.ones(1, dtype=torch.float64)))
    with pytest.raises(InputError, match="a buffer has another shape after each step"):
        taken(make(), True)


def test_a_parameter_that_is_not_fitted_moves_in_place_as_in_eager_steps():
    """As the codebook of a vector-quantised network."""

    def factor(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.book.add_(0.1 * x.mean())
        return 1 + self.book

    assert_handled(guided(factor, lambda self: setattr(self, "book", nn.Parameter(number(0.0), requires_grad=False))))


def test_a_parameter_that_the_program_clamps_is_handled():
    def factor(self: Any, x: Tensor) -> float:
        with torch.no_grad():
            self.m.clamp_(0.35, 0.45)
        return 1.0

    assert_handled(guided(factor))


# ---- generators


class Holding(Guide):
    """A guide that draws its factor from a generator of its own, of a kind that is said by a subclass."""

    fresh: Callable[[], Any]
    draw: Callable[[Any], Any]

    def __deepcopy__(self, memo: Any) -> "Holding":
        return type(self)()

    def setup(self) -> None:
        self.own = type(self).fresh()

    def factor(self, x: Tensor) -> Any:
        return type(self).draw(self.own)


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "numpy": (lambda: np.random.default_rng(1), lambda own: float(own.random())),
    "numpy, legacy": (lambda: np.random.RandomState(1), lambda own: float(own.rand())),
    "python": (lambda: random.Random(1), lambda own: own.random()),
    "torch": (
        lambda: torch.Generator().manual_seed(1),
        lambda own: torch.rand((), generator=own, dtype=torch.float64),
    ),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_of_its_own_is_refused(kind):
    fresh, draw = GENERATORS[kind]
    make = type("Drawing", (Holding,), {"fresh": staticmethod(fresh), "draw": staticmethod(draw)})
    assert_refused(make, "the programs change attribute 'own' of Drawing as they run")


def test_numpys_generator_is_refused():
    assert_refused(guided(lambda self, x: float(np.random.rand())), "the programs draw from NumPy's generator")


def test_pythons_generator_is_refused():
    """beartype draws from it too, so that here the two captures show it."""
    assert_refused(guided(lambda self, x: random.random()), "captures differ", repeatable=False)


def test_time_is_refused():
    assert_refused(guided(lambda self, x: 1 + time.time() % 1), "captures differ", repeatable=False)


def test_a_program_that_seeds_torch_itself_is_refused():
    def factor(self: Any, x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return torch.rand((), dtype=x.dtype)

    with pytest.raises(InputError, match="the step cannot be compiled"):
        taken(guided(factor)(), True)


DRAWS: dict[str, Callable[[Any, Tensor], Any]] = {
    "twice": lambda self, x: torch.rand((), dtype=x.dtype) + 2 * torch.rand((), dtype=x.dtype),
    "gamma": lambda self, x: dist.Gamma(self.l.exp(), 1.0).rsample(),
    "exponentials": lambda self, x: dist.Exponential(x.new_ones(2)).rsample()[0] - dist.Exponential(1.0).rsample(),
    "bernoulli": lambda self, x: 1 + dist.Bernoulli(logits=self.m.detach()).sample(),
    "categorical": lambda self, x: 1 + dist.Categorical(logits=x[:4]).sample(),
    "poisson": lambda self, x: 1 + torch.poisson(self.l.exp()).detach(),
    "permutation": lambda self, x: x[torch.randperm(len(x))[0]],
    "dropout": lambda self, x: nn.functional.dropout(x.new_ones(8), 0.5).sum(),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_draws_of_torch_are_made_afresh_and_are_those_of_eager_steps(kind):
    assert_handled(guided(DRAWS[kind]))


# ---- values of tensors


def as_branch(self: Any, x: Tensor) -> float:
    return 2.0 if x.mean() > 5 else 1.0


LOOKS: dict[str, Callable[[Any, Tensor], Any]] = {
    "branch": as_branch,
    "item": lambda self, x: x.mean().item(),
    "item in a branch": lambda self, x: 2.0 if x.max().item() > 9 else 1.0,
    "list in a branch": lambda self, x: 2.0 if max(x.tolist()) > 9 else 1.0,
    "numpy in a branch": lambda self, x: 2.0 if x.numpy().max() > 9 else 1.0,
    "array in a branch": lambda self, x: 2.0 if np.asarray(x).max() > 9 else 1.0,
    "parameter": lambda self, x: 2.0 if float(self.m.detach()) > 9 else 1.0,
}


@pytest.mark.parametrize("kind", LOOKS)
def test_a_value_of_a_tensor_that_python_looks_at_is_refused(kind):
    assert_refused(guided(LOOKS[kind]), "value")


def test_a_value_of_a_constant_may_be_looked_at():
    make = guided(lambda self, x: sum(self.sizes.tolist()), lambda self: setattr(self, "sizes", torch.tensor([1, 2])))
    assert_handled(make)


# ---- tensors that a program keeps


def kept(self: Any, x: Tensor) -> Tensor:
    self.last = 0.5 * self.last + x.mean().detach()
    return 1 + self.last


def in_place(self: Any, x: Tensor) -> Tensor:
    self.own[0] += 0.1
    return 1 + self.own[0]


def behind_autograd(self: Any, x: Tensor) -> Tensor:
    self.own[0].data += 0.1
    return 1 + self.own[0]


def in_numpys_view(self: Any, x: Tensor) -> Tensor:
    self.own[0].numpy()[()] += 0.1
    return 1 + self.own[0]


@pytest.mark.parametrize("change", [kept, in_place, behind_autograd, in_numpys_view], ids=lambda f: f.__name__)
def test_a_tensor_that_is_no_buffer_is_refused(change):
    def setup(self: Any) -> None:
        self.last, self.own = number(0.0), [number(0.0)]

    assert_refused(guided(change, setup), "the programs change attribute .* as they run")


def test_a_parameter_made_at_the_first_call_is_handled():
    """It is there before a fit starts."""

    def guide(x: Tensor) -> None:
        m = pyro.param("m", lambda: x.mean().detach())
        s = pyro.param("s", number(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(m * x, s))

    assert_handled(lambda: guide)


# ---- networks and programs of other kinds


def test_dropout_draws_fresh_masks_in_training_and_none_in_records():
    def setup(self: Any) -> None:
        self.drop = nn.Dropout(0.5)

    run = assert_handled(guided(lambda self, x: self.drop(torch.ones_like(x)), setup))
    assert len({record["loss"] for record in run.history}) == len(run.history)


@pytest.mark.parametrize("size", [8, 20])
def test_batch_norm_moves_its_statistics_as_in_eager_steps(size):
    def setup(self: Any) -> None:
        self.norm = nn.BatchNorm1d(1).double()

    run = assert_handled(guided(lambda self, x: self.norm(x.unsqueeze(-1)).squeeze(-1), setup), batch_size=size)
    assert int(run.guide.norm.num_batches_tracked) == run.steps and float(run.guide.norm.running_mean) != 0


def test_a_recurrent_network_is_handled():
    """Its parameters also stand in a list, where they cannot be swapped."""

    def setup(self: Any) -> None:
        self.net = nn.GRU(1, 1).double()

    def factor(self: Any, x: Tensor) -> Tensor:
        return self.net(x[:2].unsqueeze(-1))[0].mean()

    assert_handled(guided(factor, setup), epochs=3)


def test_a_program_that_asks_whether_it_is_trained():
    run = assert_handled(guided(lambda self, x: 2.0 if self.training else 1.0))
    assert run.guide.training


def test_a_program_that_asks_for_the_length_of_its_batch(monkeypatch):
    """The parameter of the last batch has no state in the optimizer at the first step."""
    monkeypatch.setattr("pyro_vi.choice.LENGTHS", 4)

    def setup(self: Any) -> None:
        self.e = nn.Parameter(number(0.3))

    make = guided(lambda self, x: 1 + self.e if len(x) == 4 else 1.0, setup)
    with pytest.raises(InputError, match="no state yet of a parameter"):
        taken(make(), True)
    auto, eager = taken(make(), "auto"), taken(make(), False)
    assert auto.choice is not None and auto.choice.lengths == (8,)
    assert "; batches of 4 stay eager: the optimizer has no state yet" in auto.choice.note
    for name, value in eager.pair.state_dict().items():
        torch.testing.assert_close(auto.pair.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    assert_handled(guided(lambda self, x: 2.0 if len(x) == 4 else 1.0))


def test_pyros_own_guides_are_handled():
    def regression(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    assert_handled(lambda: AutoNormal(regression), model=regression)


# ---- pictures of state


def test_a_picture_has_cycles_once_and_ends_in_the_depth():
    guide = guided(lambda self, x: 1.0)()
    chain: Any = {"value": 0}
    for _ in range(3 * DEPTH):
        chain = {"inner": chain}
    guide.loop, guide.chain = [1], chain
    guide.loop.append(guide.loop)
    guide.again = guide
    found = state_of(guide)
    assert found == state_of(guide)
    assert found["attribute 'loop' of Own[0]"] == 1
    assert not any("value" in place for place in found)


def test_a_picture_of_much_is_taken_fast():
    guide = guided(lambda self, x: 1.0)()
    guide.many = [[i] for i in range(20 * MOST)]
    guide.large, guide.array = torch.zeros(10**6), np.zeros(10**6)
    start = time.perf_counter()
    state_of(guide)
    assert time.perf_counter() - start < 5.0


def test_parameters_and_buffers_are_no_part_of_a_picture():
    guide = guided(lambda self, x: 1.0, lambda self: self.register_buffer("count", number(0.0)))()
    with watched(guide), torch.no_grad():
        guide.count += 1
        guide.m += 1


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.items.append(3),
        lambda held: held.items.__setitem__(0, 2),
        lambda held: held.table.update(b=1),
        lambda held: held.table.update(a=float("nan")),
        lambda held: held.array.__setitem__(0, 5.0),
        lambda held: held.tensor.add_(1),
        lambda held: setattr(held, "tensor", torch.zeros(2)),
        lambda held: setattr(held, "new", 1),
        lambda held: held.group.add(9),
        lambda held: setattr(held, "nothing", "some"),
        lambda held: next(held.iterator),
    ],
)
def test_each_change_is_seen_and_put_back(change):
    guide = guided(lambda self, x: 1.0)()
    guide.items, guide.table, guide.group, guide.nothing = [1, 2], {"a": 1.0}, {1, 2}, None
    guide.array, guide.tensor, guide.iterator = np.zeros(3), torch.zeros(2), iter([1, 2, 3])
    before = state_of(guide)
    with pytest.raises(Frozen, match=r"the programs change .* as they run"), put_back(guide), watched(guide):
        change(guide)
    after = state_of(guide)
    assert before.keys() == after.keys() and repr(guide.items) == "[1, 2]" and not hasattr(guide, "new")
    assert guide.array.tolist() == [0, 0, 0] and guide.tensor.tolist() == [0, 0] and next(guide.iterator) == 1


def test_nothing_is_seen_where_nothing_changes():
    guide = guided(lambda self, x: 1.0)()
    guide.number, guide.picture = float("nan"), columns()
    with watched(guide):
        guide(scalars())
