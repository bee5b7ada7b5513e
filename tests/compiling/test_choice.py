"""Which steps of a fit are captured or compiled, and what is said of it: with steps that only note what is done to them."""

import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from pyro_vi.compiling import choice, cost
from pyro_vi.compiling.background import Pending
from pyro_vi.compiling.captured import CapturedSteps
from pyro_vi.compiling.choice import FEW, LENGTHS, SEVERAL, Choice, Chosen, Ways, check_mode, choose, lengths_to_come
from pyro_vi.compiling.cost import PER_TENSOR, SAVED, SECONDS, Estimate, to_capture
from pyro_vi.compiling.replay import Replay
from pyro_vi.compiling.step import MANY
from pyro_vi.compiling.steps import CompiledSteps
from pyro_vi.errors import InputError, NoGraph, UsageError

NODES, CHANGED = 50, 3
AGAIN = SECONDS["graph"] + SECONDS["node"] * (NODES + PER_TENSOR * 4 * CHANGED)
FIRST = SECONDS["first"] + AGAIN
"""Seconds to compile a first length of batch, and another."""
CAPTURE = SECONDS["capture"] + SECONDS["captured"] * NODES
"""Seconds to capture a length of batch."""
UPDATE = 0.5
"""Seconds of the optimizer's part of a step."""
PAYS = math.floor(SEVERAL / SECONDS["several"]) + 1
"""The fewest steps of which several in a call save more than their proof takes."""
NO_COMPILER = "there is no C++ compiler 'g++'; install g++ (or set CXX to a C++ compiler)"


def chosen(*arguments: Any) -> tuple[Choice, CapturedSteps | None, CompiledSteps | None]:
    found = choose(*arguments)
    assert found.pending is None and not found.choice.coming
    return found.choice, found.captured, found.compiled


class Clock:
    """Seconds that pass only where somebody lets them, and whether the compiler has been loaded."""

    def __init__(self) -> None:
        self.now, self.loaded = 0.0, False

    def perf_counter(self) -> float:
        return self.now


class Made:
    """Captured and compiled steps that do nothing, and how they are made.

    Args:
        nodes: size of the graph.
        refused: what is refused of which length, in `capture`, `trace`, `add` or `add_several`.
        seconds: that pass as a length is compiled.
        captured: seconds of a captured step, by length.
        capturing: seconds that pass as a length is captured.

    Attributes:
        done: what was done, with the length and the number of steps per call.
        held: the holders that were made.
    """

    def __init__(
        self,
        clock: Clock,
        nodes: int = NODES,
        refused: Mapping[tuple[str, int], str] | None = None,
        seconds: float = 0.0,
        captured: Mapping[int, float] | None = None,
        capturing: float = 0.0,
    ) -> None:
        self.clock, self.nodes, self.refused, self.seconds = clock, nodes, refused or {}, seconds
        self.of_captured, self.capturing = captured or {}, capturing
        self.done: list[tuple[str, int, int]] = []
        self.held: list[Any] = []
        self.losses: Any = object()

    def capture(self) -> CapturedSteps:
        self.held.append(Captured(self))
        return self.held[-1]  # type: ignore[no-any-return]

    def compile(self, losses: Any) -> CompiledSteps:
        assert losses is self.losses
        self.held.append(Compiled(self))
        return self.held[-1]  # type: ignore[no-any-return]

    def note(self, what: str, length: int, sources: Sequence[Sequence[Tensor]]) -> None:
        many = MANY if what == "add_several" else 1
        assert all(len(source[0]) == length * many for source in sources)
        self.done.append((what, length, many))
        if (what, length) in self.refused:
            raise NoGraph(self.refused[what, length])


class Played(Replay):
    """A captured step that returns its seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, source: Sequence[Tensor]) -> Any:
        return self.seconds


class Captured(CapturedSteps):
    def __init__(self, made: Made) -> None:
        self.made, self.losses, self.steps = made, made.losses, {}

    def add(self, length: int, sources: Sequence[Sequence[Tensor]]) -> Any:
        self.made.note("capture", length, sources)
        self.made.clock.now += self.made.capturing
        assert len(sources) == 2
        found: Any = Played(self.made.of_captured.get(length, 0.0))
        self.steps[length] = found, found
        return found


class Compiled(CompiledSteps):
    def __init__(self, made: Made) -> None:
        self.made, self.steps = made, {}

    def short(self, length: int) -> bool:
        return length < 1000

    def trace(self, length: int, sources: Sequence[Sequence[Tensor]]) -> Any:
        self.made.note("trace", length, sources)
        assert len(sources) == 2
        found = fx.GraphModule(torch.nn.Module(), fx.Graph())
        found.length = length
        return found

    def add(self, length: int, graph: Any, sources: Sequence[Sequence[Tensor]]) -> None:
        self.made.note("add", length, sources)
        assert length == graph.length
        self.made.clock.now += self.made.seconds
        self.made.clock.loaded = True
        self.steps[length, 1] = lambda inputs: inputs

    def add_several(self, length: int, source: Sequence[Tensor]) -> None:
        self.made.note("add_several", length, [source])
        self.steps[length, MANY] = lambda inputs: inputs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(choice, "time", made)
    monkeypatch.setattr(choice, "processors", lambda: 1)  # with more, the compiler works in the background
    monkeypatch.setattr(Pending, "is_kept", lambda self: False)
    monkeypatch.setattr(choice, "timed", lambda run: run())  # of a step that returns its seconds
    monkeypatch.setattr(cost, "loaded", lambda: made.loaded)
    return made


def sources(length: int, many: int) -> list[list[Tensor]]:
    return [[torch.full((length * many,), i)] for i in (0, 1)]


def unasked(*_: Any) -> Any:
    raise AssertionError("this must not be asked for")


UNASKED = Ways(unasked, unasked, unasked, unasked)


def asked(
    made: Made,
    mode: Any,
    coming: dict[int, int],
    each: float | Mapping[int, float] | None,
    before: Any = None,
    eager: float = 20.0,
) -> Choice:
    """The choice if compiling saves ``each`` seconds of a captured step, and that is far below the ``eager`` ones.

    A compiled step takes 7 s. With None a measurement fails the test.
    """
    saves = each if isinstance(each, Mapping) else dict.fromkeys(coming, each)
    if each is not None:
        made.of_captured = {n: 7.0 + some - UPDATE for n, some in saves.items() if some is not None}
    estimate: Callable[[int], Estimate] = (
        unasked if each is None else lambda n: Estimate(eager, 7.0, made.nodes, UPDATE, CHANGED)
    )
    found, captured, compiled = chosen(mode, Ways(made.capture, made.compile, sources, estimate), coming, before)
    assert (compiled is not None) == bool(found.lengths)
    assert (captured is not None) == bool(found.captured)
    assert all(one in made.held for one in (captured, compiled) if one is not None)
    assert len(made.held) <= 2
    assert set(found.together) <= set(found.lengths)
    assert not set(found.captured) & set(found.lengths)
    return found


def recorded(**lists: list[int]) -> dict[str, list[int]]:
    """A record with these lists; the others are empty."""
    return {"lengths": [], "together": [], "captured": [], "coming": [], **lists}


def compiled_alone(*lengths: int) -> list[tuple[str, int, int]]:
    return [(what, length, 1) for length in lengths for what in ("trace", "add")]


# ---- what is asked for


def test_true_compiles_whatever_it_saves(clock):
    made = Made(clock, seconds=1.25)
    found = asked(made, True, {8: 1}, each=None)
    assert found == Choice((8,), "compiled steps: ready in 1.2 s", 1.25)
    assert made.done == compiled_alone(8)


@pytest.mark.parametrize(("count", "compiled"), [(FEW, True), (FEW - 1, False)])
def test_true_captures_a_short_batch_that_comes_a_few_times(clock, count, compiled):
    """As the batch that ends an epoch does."""
    made = Made(clock, seconds=1.0, capturing=0.25)
    found = asked(made, True, {8: 10 * FEW, 4: count}, each=None)
    if compiled:
        assert found == Choice((8, 4), "compiled steps: ready in 2.0 s", 2.0, (8, 4))
    else:
        note = "compiled steps: ready in 1.2 s; batches of 4 are captured"
        assert found == Choice((8,), note, 1.25, (8,), captured=(4,))
        assert made.done == [*compiled_alone(8), ("add_several", 8, MANY), ("capture", 4, 1)]


def test_true_compiles_the_most_frequent_length_however_few_there_are(clock):
    assert asked(Made(clock), True, {4: 2, 8: 3}, each=None).record() == recorded(lengths=[8], captured=[4])


def test_captured_captures_every_length_and_measures_nothing(clock):
    made = Made(clock, capturing=0.5)
    found = asked(made, "captured", {8: 2, 4: 1}, each=None)
    assert found == Choice((), "captured steps: ready in 1.0 s", 1.0, captured=(8, 4))
    assert made.done == [("capture", 8, 1), ("capture", 4, 1)]


@pytest.mark.parametrize("length", [8, 4])
def test_captured_is_an_error_where_a_length_cannot_be(clock, length):
    made = Made(clock, refused={("capture", length): "the graph's loss is 1 where the programs give 2"})
    with pytest.raises(InputError) as caught:
        asked(made, "captured", {8: 2, 4: 1}, each=None)
    assert str(caught.value) == (
        "the step cannot be captured: the graph's loss is 1 where the programs give 2; or fit with compile='auto'"
    )
    assert not isinstance(caught.value, UsageError)


def test_without_a_compiler_captured_goes_on(clock):
    made = Made(clock, refused={("trace", 8): NO_COMPILER})
    assert asked(made, "captured", {8: 10**9}, each=None).captured == (8,)


# ---- what pays


def test_auto_compiles_what_pays(clock):
    made = Made(clock, seconds=2.0, capturing=0.5)
    found = asked(made, "auto", {8: 3000, 4: 2000}, each=0.005, eager=7.01)
    assert found == Choice((8, 4), "compiled steps: ready in 5.0 s, to save about 50 s", 5.0, (8, 4))
    ways = [("capture", 1), ("trace", 1), ("add", 1), ("add_several", MANY)]
    assert made.done == [(what, length, many) for length in (8, 4) for what, many in ways]


@pytest.mark.parametrize(("count", "says"), [(5, "0.0 s"), (10, "0.1 s")])
def test_auto_is_eager_where_little_is_left_to_save(clock, count, says):
    """A tiny fit: nothing is traced. Capturing would save at most seven tenths of an eager step of 0.01 s."""
    made = Made(clock)
    found = asked(made, "auto", {8: count, 4: 3}, each=-6.9, eager=0.01)
    assert found == Choice((), f"eager steps: capturing would save about {says} and take about {CAPTURE:.1f} s", 0.0)
    assert made.done == []


def test_auto_measures_nothing_where_all_steps_take_less_time_than_capturing_one(clock):
    """By the time of the eager step that was taken."""
    many, saves = 100, 0.99 * to_capture(0)
    rough = saves / many / SAVED
    ways = Ways(unasked, unasked, unasked, unasked, rough)
    note = f"eager steps: {choice.because('capturing', saves, to_capture(0))}"
    assert chosen("auto", ways, {8: many}) == (Choice((), note, 0.0), None, None)
    with pytest.raises(AssertionError, match="must not be asked for"):
        chosen("auto", Ways(unasked, unasked, unasked, unasked, 1.02 * rough), {8: many})


def test_the_sentences():
    assert cost.eager_because("draws", 9.96, 1234.5) == (
        "eager draws: compiling would save about 10 s and take about 1234 s"
    )
    assert choice.because("capturing", 3.14, 9.06) == "capturing would save about 3.1 s and take about 9.1 s"


def test_auto_captures_where_compiling_does_not_pay(clock):
    enough = FIRST / 1024
    made = Made(clock, capturing=0.25)
    found = asked(made, "auto", {8: 1024}, each=0.99 * enough, eager=7.5)
    saved = 1024 * (0.5 - 0.99 * enough)
    assert found == Choice((), f"captured steps: ready in 0.2 s, to save about {saved:.0f} s", 0.25, captured=(8,))
    assert made.done == [("capture", 8, 1), ("trace", 8, 1)]  # whose code is not on disk
    assert asked(Made(clock), "auto", {8: 1024}, each=1.01 * enough, eager=7.5).lengths == (8,)


def test_auto_captures_from_where_it_saves_what_it_takes(clock):
    """At most `SAVED` of the time of eager steps, as nothing is known of captured ones before they are made."""
    enough = CAPTURE / 1024 / SAVED
    assert to_capture(NODES) == pytest.approx(CAPTURE, rel=1e-12)
    for eager, captures in ((1.01 * enough, True), (0.99 * enough, False)):
        made = Made(clock)
        asked(made, "auto", {8: 1024}, each=-7.0, eager=eager)
        assert (made.done == [("capture", 8, 1)]) == captures


def test_auto_leaves_steps_eager_that_are_slower_captured(clock):
    """Captured, they are measured; the optimizer's part, 0.5 s, counts."""
    for each, captured in ((0.99, (8,)), (1.01, ())):
        made = Made(clock)
        found = asked(made, "auto", {8: 1000}, each=each, eager=8.0)
        assert (found.captured or found.lengths) == captured
    assert (found.note, found.record()) == (
        "eager steps: captured ones would not be faster",
        recorded(),
    )


def test_auto_at_mnist(clock):
    """Ten epochs of static MNIST, as measured: 3909 steps of which each epoch ends with a short one."""
    coming = lengths_to_come(num_data=50_000, batch_size=128, done=1, left=3909)
    assert coming == {128: 3899, 80: 10}
    made = Made(clock, nodes=157, captured={128: 0.0030, 80: 0.0020})
    ways = Ways(made.capture, made.compile, sources, lambda n: Estimate(0.0053, 0.0026, 157, 0.0004, 8))
    found, captured, compiled = chosen("auto", ways, coming)
    assert found == Choice((), "captured steps: ready in 0.0 s, to save about 7.4 s", 0.0, captured=(128,))
    assert captured is made.held[0]
    assert compiled is None


def test_auto_compiles_a_short_batch_that_pays(clock):
    """Each length by its own measurement, and without loading the compiler again; the other one is captured."""
    enough = AGAIN / 2000
    for each, lengths in ((1.01 * enough, (8, 4)), (0.99 * enough, (8,))):
        clock.loaded = False
        made = Made(clock)
        found = asked(made, "auto", {8: 100_000, 4: 2000}, each={8: 1.0, 4: each})
        assert found.lengths == lengths
        assert found.captured == (() if 4 in lengths else (4,))
        assert found.note.endswith("; batches of 4 are captured") == (4 not in lengths)


def test_auto_never_compiles_what_would_be_slower(clock):
    """Than the captured steps."""
    found = asked(Made(clock), "auto", {8: 10**9}, each=-0.001)
    assert (found.lengths, found.captured) == ((), (8,))


def test_auto_counts_the_operations(clock):
    """A large graph takes longer to compile, and to capture, than it saves."""
    nodes = round(20 / SECONDS["node"])
    takes = SECONDS["capture"] + SECONDS["captured"] * nodes
    found = asked(Made(clock, nodes=nodes), "auto", {8: 500}, each=-6.999, eager=0.002)
    assert found == Choice((), f"eager steps: capturing would save about 0.7 s and take about {cost.shown(takes)}", 0.0)
    assert asked(Made(clock, nodes=nodes), "auto", {8: 10_000}, each=0.001).captured == (8,)
    assert asked(Made(clock, nodes=nodes), "auto", {8: 30_000}, each=0.001).lengths == (8,)
    assert asked(Made(clock, nodes=nodes), True, {8: 1}, each=None).lengths == (8,)


# ---- what is refused


def test_without_a_compiler_auto_captures_and_says_so(clock):
    made = Made(clock, refused={("trace", 8): NO_COMPILER})
    found = asked(made, "auto", {8: 10**6}, each=1.0)
    assert (found.lengths, found.captured) == ((), (8,))
    assert found.note.startswith("captured steps: ready in 0.0 s")
    assert found.note.endswith(f"; not compiled: {NO_COMPILER}")


@pytest.mark.parametrize("what", ["trace", "add"])
def test_what_cannot_be_compiled_stays_captured(clock, what):
    made = Made(clock, refused={(what, 8): "the compiled step changes it"})
    found = asked(made, "auto", {8: 10**6, 4: 10**6}, each=1.0)
    assert (found.lengths, found.captured) == ((4,), (8,))
    assert found.note.endswith("; batches of 8 are captured; not compiled: the compiled step changes it")


def test_without_a_compiler_true_is_an_error_with_the_remedy(clock):
    with pytest.raises(InputError) as caught:
        asked(Made(clock, refused={("trace", 8): NO_COMPILER}), True, {8: 1}, each=None)
    assert str(caught.value) == f"the step cannot be compiled: {NO_COMPILER}; or fit with compile='auto'"
    assert not isinstance(caught.value, UsageError)


def no(*_: Any) -> Any:
    raise NoGraph("no")


def test_refused_as_the_captured_steps_are_made(clock):
    """Such as by a hook on a gradient."""
    ways = Ways(no, unasked, sources, lambda n: Estimate(8.0, 7.0, NODES))
    found, captured, compiled = chosen("auto", ways, {8: 10**6})
    assert (found.note, found.record(), captured, compiled) == (
        "eager steps: no",
        Choice((), "", 0.0).record(),
        None,
        None,
    )
    for mode, kind in ((True, "compiled"), ("captured", "captured")):
        with pytest.raises(InputError, match=f"^the step cannot be {kind}: no; or fit with compile='auto'$"):
            chosen(mode, ways, {8: 10**6})


def test_refused_as_the_compiled_steps_are_made(clock):
    """Such as by an optimizer that counts in its state."""
    made = Made(clock, captured={8: 7.5})
    ways = Ways(made.capture, no, sources, lambda n: Estimate(8.0, 7.0, NODES))
    found, captured, compiled = chosen("auto", ways, {8: 10**6})
    assert (found.captured, found.lengths, captured, compiled) == ((8,), (), made.held[0], None)
    assert found.note.endswith("; not compiled: no")
    with pytest.raises(InputError, match=r"^the step cannot be compiled: no; or fit with"):
        chosen(True, ways, {8: 10**6})
    assert chosen("captured", ways, {8: 10**6})[0].captured == (8,)


def test_refused_as_a_step_is_measured(clock):
    made = Made(clock)
    assert chosen("auto", Ways(made.capture, made.compile, sources, no), {8: 10**6})[0].note == "eager steps: no"
    assert made.held == []


def test_captured_steps_that_are_refused_stay_eager(clock):
    made = Made(clock, refused={("capture", 8): "the replayed graph gives other numbers than the graph"})
    found = asked(made, "auto", {8: 10**6}, each=1.0)
    assert found == Choice((), "eager steps: the replayed graph gives other numbers than the graph", 0.0)


@pytest.mark.parametrize("what", ["trace", "add"])
def test_a_second_length_that_is_refused(clock, what):
    """The first stays, and the note says why the second does not; True raises an error."""
    refused = {(what, 4): "the graph's loss is 1 where the programs give 2"}
    found = asked(Made(clock, refused=refused), "auto", {8: 3000, 4: 3000}, each=1.0, eager=8.0)
    assert (found.lengths, found.captured) == ((8,), (4,))
    assert f"; batches of 4 are captured; not compiled: {refused[what, 4]}" in found.note
    with pytest.raises(InputError, match=f"^the step cannot be compiled: {refused[what, 4]}; or fit with"):
        asked(Made(clock, refused=refused), True, {8: 3 * FEW, 4: FEW}, each=None)


@pytest.mark.parametrize("mode", [True, "auto"])
def test_a_second_length_that_is_not_even_captured(clock, mode):
    refused = {("capture", 4): "the graph's loss is 1 where the programs give 2"}
    found = asked(Made(clock, refused=refused), mode, {8: 3000, 4: 300}, each=1.0, eager=8.0)
    assert found.record() == recorded(lengths=[8], together=[8])
    assert found.note.endswith(f"; batches of 4 stay eager: {refused['capture', 4]}")


# ---- a resumed fit


def test_resumed_with_a_record_does_again_what_was_done(clock):
    """Whatever it would save: nobody measures."""
    before = recorded(lengths=[8], captured=[4])
    made = Made(clock, seconds=0.5)
    found = asked(made, "auto", {8: 2, 4: 10**9, 2: 10**9}, each=None, before=before)
    assert found == Choice((8,), "compiled steps: ready in 0.5 s; batches of 4 are captured", 0.5, captured=(4,))
    assert found.record() == before


@pytest.mark.parametrize("mode", ["auto", "captured"])
def test_resumed_with_a_record_of_captured_steps(clock, mode):
    before = {"lengths": [], "together": [], "captured": [8, 4]}
    made = Made(clock, capturing=0.25)
    found = asked(made, mode, {8: 10**9, 4: 0}, each=None, before=before)
    assert found == Choice((), "captured steps: ready in 0.5 s", 0.5, captured=(8, 4))


def test_resumed_with_a_record_of_a_version_without_captured_steps(clock):
    """Its other lengths were eager."""
    found = asked(Made(clock), True, {8: 2 * FEW, 4: FEW}, each=None, before={"lengths": [8], "together": []})
    assert found.record() == recorded(lengths=[8])


@pytest.mark.parametrize("before", [{"lengths": [], "together": []}, {"lengths": [], "together": [], "captured": []}])
def test_resumed_with_a_record_of_eager_steps(clock, before):
    found = chosen("auto", UNASKED, {8: 10**9}, before)
    assert found == (Choice((), "eager steps, as before the interruption", 0.0), None, None)


def test_resumed_without_a_record_chooses_anew(clock):
    assert asked(Made(clock), "auto", {8: 10}, each=-6.9, eager=0.001).record() == Choice((), "", 0.0).record()
    assert asked(Made(clock), "auto", {8: 10**5}, each=0.001).lengths == (8,)


def test_resumed_where_it_can_no_longer_be_compiled(clock):
    before = {"lengths": [8], "together": [], "captured": []}
    made = Made(clock, refused={("trace", 8): NO_COMPILER})
    assert asked(made, "auto", {8: 5}, each=None, before=before).note == f"eager steps: {NO_COMPILER}"
    with pytest.raises(InputError, match="the step cannot be compiled"):
        asked(made, True, {8: 5}, each=None, before=before)


@pytest.mark.parametrize("together", [[8], []])
def test_resumed_with_several_steps_together_or_not(clock, together):
    before = recorded(lengths=[8], together=together)
    found = asked(Made(clock), True, {8: 10 if together else 2 * PAYS}, each=None, before=before)
    assert found.record() == before


# ---- how many lengths, and how many steps


@pytest.mark.parametrize("mode", [True, "auto", "captured"])
def test_the_most_frequent_lengths_are_taken(clock, mode):
    coming = {length: 10**5 + length for length in range(1, LENGTHS + 4)}
    most = tuple(sorted(coming, reverse=True)[:LENGTHS])
    made = Made(clock)
    found = asked(made, mode, coming, each=0.001 if mode == "auto" else None)
    assert (found.captured if mode == "captured" else found.lengths) == most
    assert {length for _, length, _ in made.done} == set(most)


@pytest.mark.parametrize("mode", [True, "auto", "captured"])
@pytest.mark.parametrize("coming", [{}, {8: 0}, {8: 0, 4: 0}])
def test_nothing_is_left(clock, mode, coming):
    assert chosen(mode, UNASKED, coming) == (Choice((), "eager steps: none is left to compile", 0.0), None, None)


@pytest.mark.parametrize("mode", [True, "auto", "captured"])
@pytest.mark.parametrize("kind", ["lengths", "captured"])
def test_nothing_is_left_of_what_was_compiled(clock, mode, kind):
    before = {"lengths": [], "together": [], "captured": [], kind: [8]}
    found, captured, compiled = chosen(mode, UNASKED, {8: 0}, before)
    assert (found.note, captured, compiled) == ("eager steps: none is left to compile", None, None)


@pytest.mark.parametrize("mode", [True, "auto"])
@pytest.mark.parametrize(("count", "together"), [(PAYS, True), (PAYS - 1, False)])
def test_several_steps_together_where_there_are_very_many(clock, mode, count, together):
    """And where they are short."""
    long, short = 1000, 8
    made = Made(clock, seconds=1.0)
    found = asked(made, mode, {short: count}, each=None if mode is True else 1.0)
    assert (found.lengths, found.together) == ((short,), (short,) if together else ())
    assert (("add_several", short, MANY) in made.done) == together
    assert asked(Made(clock), mode, {long: count}, each=None if mode is True else 1.0).together == ()


def test_several_steps_together_for_one_length_of_two(clock):
    made = Made(clock, seconds=1.0)
    found = asked(made, "auto", {8: PAYS, 4: PAYS - 1}, each=1.0)
    assert found.record() == recorded(lengths=[8, 4], together=[8])
    assert ("add_several", 4, MANY) not in made.done


def test_captured_steps_are_single_calls(clock):
    made = Made(clock)
    assert asked(made, "captured", {8: 2 * PAYS}, each=None).together == ()
    assert made.done == [("capture", 8, 1)]


def test_several_steps_that_are_refused_are_taken_one_by_one(clock):
    made = Made(clock, refused={("add_several", 8): "other parameters"})
    found = asked(made, True, {8: 2 * FEW, 4: 2 * FEW}, each=None)
    assert (found.lengths, found.together) == ((8, 4), (4,))
    assert found.note == "compiled steps: ready in 0.0 s"


# ---- in the background


class Worked:
    """A stand-in for a step that is compiled in the background, with all that were made.

    Attributes:
        kept: the lengths whose code is on disk.
        refused: why there is no code, by length.
        none: why no process can be started, if none can be.
    """

    def __init__(self, kept: Sequence[int] = (), refused: Mapping[int, str] | None = None, none: str = "") -> None:
        self.kept, self.refused, self.none, self.made = kept, refused or {}, none, list[Any]()
        outer = self

        class Stub(Pending):
            def __init__(self, compiled: Any, graph: Any, length: int, sources: Any) -> None:
                assert graph.length == length
                assert [len(source[0]) for source in sources(MANY)] == [length * MANY] * 2
                self.compiled, self.length, self.graph, self.sources = compiled, length, graph, sources
                self.done: list[str] = []
                outer.made.append(self)

            def is_kept(self) -> bool:
                return self.length in outer.kept

            def start(self) -> None:
                if outer.none:
                    raise NoGraph(outer.none)
                self.done.append("start")

            def finish(self) -> None:
                self.done.append("finish")
                if self.length in outer.refused:
                    raise NoGraph(outer.refused[self.length])
                self.compiled.add(self.length, self.graph, self.sources(1))
                if self.compiled.short(self.length):
                    self.compiled.add_several(self.length, self.sources(MANY)[0])

            def seconds(self) -> float:
                return 12.25

        self.stub = Stub

    @property
    def done(self) -> list[tuple[int, str]]:
        return [(one.length, what) for one in self.made for what in one.done]


@pytest.fixture
def several(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Worked]:
    """Let this process have four processors, of which the fit uses one, and a compiler in the background."""

    def make(processors: int = 4, threads: int = 1, **options: Any) -> Worked:
        worked = Worked(**options)
        monkeypatch.setattr(choice, "Pending", worked.stub)
        monkeypatch.setattr(choice, "processors", lambda: processors)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        return worked

    return make


def begun(
    made: Made, coming: dict[int, int], each: float = 1.0, mode: Any = "auto", before: Any = None, eager: float = 20.0
) -> Chosen:
    """Return the choice if compiling saves ``each`` seconds of a captured step; see `asked`."""
    made.of_captured = dict.fromkeys(coming, 7.0 + each - UPDATE)
    estimate = unasked if before else lambda n: Estimate(eager, 7.0, made.nodes, UPDATE, CHANGED)
    return choose(mode, Ways(made.capture, made.compile, sources, estimate), coming, before)


def test_auto_begins_in_the_background_and_says_so(clock, several):
    worked, made = several(), Made(clock, capturing=0.5)
    found = begun(made, {8: 1000})
    note = "captured steps: ready in 0.5 s, to save about 12000 s; the compiler works in the background"
    assert found.choice == Choice((), note, 0.5, captured=(8,), coming=(8,))
    assert found.choice.record() == recorded(captured=[8], coming=[8])
    assert found.captured is made.held[0]
    assert found.compiled is None
    assert found.pending is worked.made[0]
    assert worked.done == [(8, "start")]
    assert made.done == [("capture", 8, 1), ("trace", 8, 1)]


@pytest.mark.parametrize("length", [8, 2000])
def test_a_switch_takes_compiled_steps(clock, several, length):
    """Several in a call where they are short; the captured ones are let go."""
    worked, made = several(), Made(clock)
    found = begun(made, {length: 1000})
    line = found.switch(99)
    assert line == "compiled steps from step 100 on; compiled in the background in 12 s"
    together = (length,) if length == 8 else ()
    assert found.choice == Choice((length,), line, 0.0, together)
    assert (found.captured, found.compiled, found.pending) == (None, made.held[1], None)
    assert worked.done == [(length, "start"), (length, "finish")]
    assert set(made.held[1].steps) == {(length, 1), *((n, MANY) for n in together)}


def test_a_switch_leaves_other_lengths_captured(clock, several):
    several()
    made = Made(clock)
    found = begun(made, {8: 1000, 4: 2})
    assert found.choice.record() == recorded(captured=[8, 4], coming=[8])
    found.switch(99)
    assert found.choice.record() == recorded(lengths=[8], together=[8], captured=[4])
    assert found.captured is made.held[0]
    assert set(made.held[0].steps) == {4}


def test_a_switch_keeps_what_was_compiled_before(clock, several):
    worked = several(kept=[8])
    found = begun(Made(clock), {8: 1000, 4: 999})
    assert found.choice.record() == recorded(lengths=[8], together=[8], captured=[4], coming=[4])
    assert found.choice.note.endswith("; batches of 4 are captured; the compiler works in the background")
    found.switch(99)
    assert found.choice.record() == recorded(lengths=[8, 4], together=[8, 4])
    assert worked.done == [(8, "finish"), (4, "start"), (4, "finish")]


def test_a_switch_that_is_refused_leaves_captured_steps(clock, several):
    several(refused={8: "the compiled loss is 1 where the programs give 2"})
    made = Made(clock)
    found = begun(made, {8: 1000})
    before = found.choice
    assert found.switch(99) == "captured steps go on: the compiled loss is 1 where the programs give 2"
    note = f"{before.note}; not compiled: the compiled loss is 1 where the programs give 2"
    assert found.choice == Choice((), note, 0.0, captured=(8,))
    assert (found.captured, found.compiled, found.pending) == (made.held[0], None, None)
    assert set(made.held[0].steps) == {8}


def test_code_that_is_on_disk_is_taken_at_once(clock, several):
    worked, made = several(kept=[8]), Made(clock, seconds=0.5)
    found = begun(made, {8: 1000})
    assert found.choice == Choice((8,), "compiled steps: ready in 0.5 s, to save about 13000 s", 0.5, (8,))
    assert (found.captured, found.compiled, found.pending) == (None, made.held[1], None)
    assert worked.done == [(8, "finish")]


def test_code_on_disk_that_differs_is_not_taken(clock, several):
    several(kept=[8], refused={8: "the compiled step changes it"})
    found = begun(Made(clock), {8: 1000})
    assert (found.choice.record(), found.pending, found.compiled) == (recorded(captured=[8]), None, None)
    assert found.choice.note.endswith("; not compiled: the compiled step changes it")


def test_where_no_process_can_be_started(clock, several):
    several(none="no process to compile in: no memory")
    found = begun(Made(clock), {8: 1000})
    assert (found.choice.record(), found.pending) == (recorded(captured=[8]), None)
    assert found.choice.note.endswith("; not compiled: no process to compile in: no memory")


def test_only_one_at_a_time(clock, several):
    """A second length stays captured, also where compiling it would pay."""
    worked = several()
    found = begun(Made(clock), {8: 100_000, 4: 100_000}, 1.0)
    assert worked.done == [(8, "start")]
    assert found.choice.coming == (8,)
    assert (found.choice.lengths, found.choice.captured) == ((), (8, 4))


@pytest.mark.parametrize(("mode", "captured"), [(True, False), ("captured", True)])
def test_nothing_is_begun_unless_auto_is_asked_for(clock, several, mode, captured):
    worked = several()
    made = Made(clock)
    found = choose(mode, Ways(made.capture, made.compile, sources, unasked), {8: 1000})
    assert (found.choice.captured == (8,)) == captured
    assert (found.pending, worked.made) == (None, [])


def test_nothing_is_begun_on_one_processor(clock, several):
    worked = several(processors=1)
    assert begun(Made(clock), {8: 1000}).choice.lengths == (8,)
    assert worked.done == []


@pytest.mark.parametrize("processors", [2, 4])
def test_what_must_be_saved_in_the_background(clock, several, processors):
    """The steps that are left once the code is there must save what tracing and proving take."""
    count, switch = 1000, SECONDS["switch"]
    for factor, pays in ((1.01, True), (0.99, False)):
        each = factor * switch / (count - FIRST / 7.0)  # at 7 s a captured step, to a thousandth
        worked = several(processors, processors - 1)
        found = begun(Made(clock), {8: count}, each)
        assert worked.done == ([(8, "start")] if pays else [])
        assert found.choice.coming == ((8,) if pays else ())
        assert found.choice.captured == (8,)


def test_a_fit_that_uses_all_processors_waits_for_the_compiler(clock, several):
    """Beside the compiler's process, each of its operations would wait for a processor."""
    for each, pays in ((1.01 * FIRST / 1000, True), (0.99 * FIRST / 1000, False)):
        clock.loaded, worked = False, several(2, 2)
        found = begun(Made(clock), {8: 1000}, each)
        assert worked.done == []
        assert (found.choice.lengths, found.choice.captured) == (((8,), ()) if pays else ((), (8,)))


def test_nothing_is_begun_that_ends_after_the_fit(clock, several):
    """As many captured steps as the compiler takes are left out of account."""
    worked, made = several(), Made(clock, captured={8: 0.01})
    ways = Ways(made.capture, made.compile, sources, lambda n: Estimate(0.1, 0.0, NODES, 0.0, CHANGED))
    many = FIRST / 0.01 + SECONDS["switch"] / 0.01
    assert choose("auto", ways, {8: math.floor(0.99 * many)}).choice.coming == ()
    assert choose("auto", ways, {8: math.ceil(1.01 * many)}).choice.coming == (8,)
    assert worked.done == [(8, "start")]


def test_resumed_with_coming_begins_again(clock, several):
    before = recorded(captured=[8, 4], coming=[8])
    worked, made = several(), Made(clock, capturing=0.25)
    found = begun(made, {8: 2, 4: 1}, before=before)
    note = "captured steps: ready in 0.5 s; the compiler works in the background"
    assert found.choice == Choice((), note, 0.5, captured=(8, 4), coming=(8,))
    assert found.choice.record() == before
    assert worked.done == [(8, "start")]


def test_resumed_with_coming_whose_code_is_there_by_now(clock, several):
    worked = several(kept=[8])
    found = begun(Made(clock), {8: 2, 4: 1}, before=recorded(captured=[8, 4], coming=[8]))
    assert found.choice.record() == recorded(lengths=[8], together=[8], captured=[4])
    assert (found.pending, worked.done) == (None, [(8, "finish")])


@pytest.mark.parametrize("options", [{"none": "no memory"}, {"kept": [8], "refused": {8: "no memory"}}])
def test_resumed_with_coming_that_cannot_be_compiled(clock, several, options):
    """Captured steps go on, and the note says so."""
    several(**options)
    found = begun(Made(clock), {8: 2}, before=recorded(captured=[8], coming=[8]))
    assert (found.choice.record(), found.pending) == (recorded(captured=[8]), None)
    assert found.choice.note == "captured steps: ready in 0.0 s; not compiled: no memory"


def test_resumed_after_a_switch_is_compiled_at_once(clock, several):
    """Without a look at what is on disk: `Pending` is not asked."""
    worked = several()
    found = begun(Made(clock), {8: 2}, before=recorded(lengths=[8], together=[8]))
    assert found.choice.record() == recorded(lengths=[8], together=[8])
    assert worked.made == []


# ---- records and modes


def test_a_record_holds_plain_lists():
    assert Choice((8, 3), "", 0.0, (8,), (2, 1), (1,)).record() == {
        "lengths": [8, 3],
        "together": [8],
        "captured": [2, 1],
        "coming": [1],
    }
    assert Choice((), "", 0.0).record() == recorded()


@pytest.mark.parametrize("mode", [True, False, "auto", "captured"])
def test_modes(mode):
    check_mode(mode)


@pytest.mark.parametrize("mode", ["yes", "", None, 1, 0, 2.0, [True]])
def test_unknown_modes(mode):
    with pytest.raises(UsageError) as caught:
        check_mode(mode)
    assert str(caught.value) == f"compile must be True, False, 'auto' or 'captured', not {mode!r}"


@pytest.mark.slow
def test_an_unknown_mode_of_a_fit(tmp_path):
    """In a process of its own, without the type checks of these tests; and no folder is left."""
    code = "import pyro_vi; pyro_vi.fit('vae', 'diag_normal', 'digits', steps=1, out='run', compile='yes')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode
    assert done.stderr.splitlines()[-1] == (
        "pyro_vi.errors.UsageError: compile must be True, False, 'auto' or 'captured', not 'yes'"
    )
    assert not (tmp_path / "run").exists()
