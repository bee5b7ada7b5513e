"""Which steps of a fit are compiled, and what is said of it: with steps that only note what is done to them."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vi.compiling import choice, cost
from pyro_vi.compiling.choice import LENGTHS, SEVERAL, Choice, check_mode, choose, lengths_to_come
from pyro_vi.compiling.cost import PER_TENSOR, SECONDS, Estimate
from pyro_vi.compiling.step import MANY
from pyro_vi.compiling.steps import CompiledSteps
from pyro_vi.errors import InputError, NoGraph, UsageError

NODES, CHANGED = 50, 3
AGAIN = SECONDS["graph"] + SECONDS["node"] * (NODES + PER_TENSOR * CHANGED)
FIRST = SECONDS["first"] + AGAIN
"""Seconds to compile a first length of batch, and another."""
NO_COMPILER = "there is no C++ compiler 'g++'; install g++ (or set CXX to a C++ compiler)"


class Clock:
    """Seconds that pass only where somebody lets them, and whether the compiler has been loaded."""

    def __init__(self) -> None:
        self.now, self.loaded = 0.0, False

    def perf_counter(self) -> float:
        return self.now


class Steps(CompiledSteps):
    """Compiled steps that compile nothing.

    Args:
        nodes: size of the graph.
        refused: what is refused of which length, in `trace`, `add` or `add_several`.
        seconds: that pass as a length is compiled.
    """

    def __init__(
        self,
        clock: Clock,
        nodes: int = NODES,
        refused: Mapping[tuple[str, int], str] | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.clock, self.nodes, self.refused, self.seconds = clock, nodes, refused or {}, seconds
        self.steps = {}
        self.whole: Any = SimpleNamespace(tensors=[torch.zeros(())] * CHANGED)
        self.done: list[tuple[str, int, int]] = []

    def short(self, length: int) -> bool:
        return length < 1000

    def trace(self, sources: Sequence[Sequence[Tensor]]) -> Any:
        length = self._note("trace", sources)
        assert len(sources) == 2
        return SimpleNamespace(graph=SimpleNamespace(nodes=[length] * self.nodes))

    def add(self, length: int, graph: Any, sources: Sequence[Sequence[Tensor]]) -> None:
        assert self._note("add", sources) == length == graph.graph.nodes[0]
        self.clock.now += self.seconds
        self.clock.loaded = True
        self.steps[length, 1] = lambda inputs: inputs

    def add_several(self, length: int, source: Sequence[Tensor]) -> None:
        assert self._note("add_several", [source]) == length * MANY
        self.steps[length, MANY] = lambda inputs: inputs

    def _note(self, what: str, sources: Sequence[Sequence[Tensor]]) -> int:
        rows = len(sources[0][0])
        many = MANY if what == "add_several" else 1
        self.done.append((what, rows // many, many))
        if (what, rows // many) in self.refused:
            raise NoGraph(self.refused[what, rows // many])
        return rows


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(choice, "time", made)
    monkeypatch.setattr(cost, "loaded", lambda: made.loaded)
    return made


def sources(length: int, many: int) -> list[list[Tensor]]:
    return [[torch.full((length * many,), i)] for i in (0, 1)]


def unasked(*_: Any) -> Any:
    raise AssertionError("this must not be asked for")


def saving(each: float | Mapping[int, float], nodes: int = NODES) -> Any:
    """Measurements of steps that take 7 s compiled, and so much more eager, by length."""
    return lambda n: Estimate(7.0 + (each if isinstance(each, float) else each[n]), 7.0, nodes)


def asked(steps: Steps, mode: Any, coming: dict[int, int], each: Any, before: Any = None) -> Any:
    """The choice if compiling saves ``each`` seconds per step; with None a measurement fails the test."""
    estimate = unasked if each is None else saving(each, steps.nodes)
    found, compiled = choose(mode, lambda: steps, coming, sources, estimate, before)
    assert compiled is (steps if found.lengths else None)
    assert set(found.together) <= set(found.lengths)
    return found


def test_true_compiles_whatever_it_saves(clock):
    found = asked(Steps(clock, seconds=1.25), True, {8: 1}, each=None)
    assert found == Choice((8,), "compiled steps: ready in 1.2 s", 1.25)


def test_auto_compiles_what_pays(clock):
    steps = Steps(clock, seconds=2.5)
    found = asked(steps, "auto", {8: 3000, 4: 2000}, each=0.004)
    assert found == Choice((8, 4), "compiled steps: ready in 5.0 s, to save about 20 s", 5.0, (8, 4))
    calls = (("trace", 1), ("add", 1), ("add_several", MANY))
    assert steps.done == [(what, length, many) for length in (8, 4) for what, many in calls]


@pytest.mark.parametrize(("count", "says"), [(300, "0.3 s"), (3000, "3.0 s")])
def test_auto_is_eager_where_little_is_left_to_save(clock, count, says):
    """A tiny fit: nothing is traced."""
    steps = Steps(clock)
    found = asked(steps, "auto", {8: count, 4: 10}, each=0.001)
    assert found == Choice((), f"eager steps: compiling would save about {says} and take about {FIRST:.1f} s", 0.0)
    assert steps.done == []


def test_the_sentence():
    assert cost.eager_because("steps", 3.14, 9.06) == (
        "eager steps: compiling would save about 3.1 s and take about 9.1 s"
    )
    assert cost.eager_because("draws", 9.96, 1234.5) == (
        "eager draws: compiling would save about 10 s and take about 1234 s"
    )


def test_auto_at_mnist(clock):
    """Ten epochs of static MNIST, as measured; the short batch of each epoch, 10 of 3910, stays eager."""
    coming = lengths_to_come(num_data=50_000, batch_size=128, done=1, left=3909)
    assert coming == {128: 3899, 80: 10}
    steps = Steps(clock, nodes=400, seconds=9.0)
    steps.whole.tensors *= 9  # eight parameters, Adam's state of each, and what counts the steps
    found, compiled = choose("auto", lambda: steps, coming, sources, lambda n: Estimate(0.0053, 0.0026, 157))
    assert found == Choice((128,), "compiled steps: ready in 9.0 s, to save about 11 s", 9.0, (128,))
    assert compiled is steps
    assert [length for _, length, _ in steps.done] == [128, 128, 128]


def test_auto_compiles_a_short_batch_that_pays(clock):
    """Each length by its own measurement, and without loading the compiler again."""
    counts = {8: 100_000, 4: 2000}
    enough = AGAIN / 2000
    for each, lengths in ((1.01 * enough, (8, 4)), (0.99 * enough, (8,))):
        clock.loaded = False
        steps = Steps(clock)
        assert asked(steps, "auto", counts, each={8: 1.0, 4: each}).lengths == lengths
        assert ("trace", 4, 1) in steps.done or len(lengths) == 1


def test_auto_compiles_from_where_it_saves_what_it_takes(clock):
    enough = FIRST / 1024
    assert asked(Steps(clock), "auto", {8: 1024}, each=1.01 * enough).lengths == (8,)
    clock.loaded = False
    assert asked(Steps(clock), "auto", {8: 1024}, each=0.99 * enough).lengths == ()


def test_auto_never_compiles_what_would_be_slower(clock):
    assert asked(Steps(clock), "auto", {8: 10**9}, each=-0.001).lengths == ()


def test_auto_counts_the_operations(clock):
    """A large graph takes longer to compile than it saves."""
    nodes = round(20 / SECONDS["node"])
    steps = Steps(clock, nodes=nodes)
    found = asked(steps, "auto", {8: 10_000}, each=0.001)
    takes = FIRST + SECONDS["node"] * (nodes - NODES)
    assert found == Choice((), f"eager steps: compiling would save about 10 s and take about {takes:.0f} s", 0.0)
    assert steps.done == []
    assert asked(Steps(clock, nodes=nodes), "auto", {8: 30_000}, each=0.001).lengths == (8,)
    assert asked(Steps(clock, nodes=nodes), True, {8: 1}, each=None).lengths == (8,)


def test_without_a_compiler_auto_says_so(clock):
    refused = {("trace", 8): NO_COMPILER}
    assert asked(Steps(clock, refused=refused), "auto", {8: 10**6}, each=1.0) == Choice(
        (), f"eager steps: {NO_COMPILER}", 0.0
    )


def test_without_a_compiler_true_is_an_error_with_the_remedy(clock):
    with pytest.raises(InputError) as caught:
        asked(Steps(clock, refused={("trace", 8): NO_COMPILER}), True, {8: 1}, each=None)
    assert str(caught.value) == f"the step cannot be compiled: {NO_COMPILER}; or fit with compile='auto'"
    assert not isinstance(caught.value, UsageError)


def test_refused_as_the_steps_are_made(clock):
    """Such as by an optimizer with hooks."""

    def steps() -> Any:
        raise NoGraph("no")

    found, compiled = choose("auto", steps, {8: 10**6}, sources, saving(1.0))
    assert (found.note, found.lengths, compiled) == ("eager steps: no", (), None)


@pytest.mark.parametrize("what", ["trace", "add"])
def test_a_second_length_that_is_refused(clock, what):
    """The first stays, and the note says why the second does not."""
    refused = {(what, 4): "the graph's loss is 1 where the programs give 2"}
    found = asked(Steps(clock, refused=refused), "auto", {8: 3000, 4: 3000}, each=1.0)
    assert found.lengths == (8,)
    assert found.note.endswith(f", to save about 3000 s; batches of 4 stay eager: {refused[what, 4]}")
    with pytest.raises(InputError, match=f"^the step cannot be compiled: {refused[what, 4]}; or fit with"):
        asked(Steps(clock, refused=refused), True, {8: 3, 4: 1}, each=None)


def test_resumed_with_a_record_does_again_what_was_done(clock):
    """Whatever it would save: nobody measures."""
    before = {"lengths": [8], "together": []}
    found = asked(Steps(clock, seconds=0.5), "auto", {8: 2, 4: 10**9}, each=None, before=before)
    assert found == Choice((8,), "compiled steps: ready in 0.5 s", 0.5)
    assert found.record() == before


def test_resumed_with_a_record_of_eager_steps(clock):
    before = {"lengths": [], "together": []}
    found, compiled = choose("auto", unasked, {8: 10**9}, unasked, unasked, before)
    assert (found, compiled) == (Choice((), "eager steps, as before the interruption", 0.0), None)


def test_resumed_without_a_record_chooses_anew(clock):
    assert asked(Steps(clock), "auto", {8: 10}, each=0.001, before=None).lengths == ()
    assert asked(Steps(clock), "auto", {8: 10**5}, each=0.001, before=None).lengths == (8,)


def test_resumed_where_it_can_no_longer_be_compiled(clock):
    before = {"lengths": [8], "together": []}
    steps = Steps(clock, refused={("trace", 8): NO_COMPILER})
    assert asked(steps, "auto", {8: 5}, each=None, before=before).note == f"eager steps: {NO_COMPILER}"
    with pytest.raises(InputError, match="the step cannot be compiled"):
        asked(steps, True, {8: 5}, each=None, before=before)


def test_the_most_frequent_lengths_are_compiled(clock):
    coming = {length: 10**5 + length for length in range(1, LENGTHS + 4)}
    most = tuple(sorted(coming, reverse=True)[:LENGTHS])
    steps = Steps(clock)
    assert asked(steps, "auto", coming, each=0.001).lengths == most
    assert {length for _, length, _ in steps.done} == set(most)
    assert asked(Steps(clock), True, coming, each=None).lengths == most


@pytest.mark.parametrize("mode", [True, "auto"])
@pytest.mark.parametrize("coming", [{}, {8: 0}, {8: 0, 4: 0}])
def test_nothing_is_left(clock, mode, coming):
    found, compiled = choose(mode, unasked, coming, unasked, unasked)
    assert (found, compiled) == (Choice((), "eager steps: none is left to compile", 0.0), None)


@pytest.mark.parametrize("mode", [True, "auto"])
def test_nothing_is_left_of_what_was_compiled(clock, mode):
    before = {"lengths": [8], "together": []}
    found, compiled = choose(mode, unasked, {8: 0}, unasked, unasked, before)
    assert (found.note, compiled) == ("eager steps: none is left to compile", None)


PAYS = round(SEVERAL / SECONDS["several"])
"""Steps of which several in a call save what their proof takes."""


@pytest.mark.parametrize("mode", [True, "auto"])
def test_several_steps_together_where_there_are_very_many(clock, mode):
    steps = Steps(clock, seconds=1.0)
    found = asked(steps, mode, {8: 2 * PAYS, 4: PAYS // 2}, each=None if mode is True else 0.1)
    assert (found.lengths, found.together) == ((8, 4), (8,))
    assert found.record() == {"lengths": [8, 4], "together": [8]}
    assert ("add_several", 8, MANY) in steps.done
    assert ("add_several", 4, MANY) not in steps.done


def test_several_steps_that_are_refused_are_taken_one_by_one(clock):
    steps = Steps(clock, refused={("add_several", 8): "other parameters"})
    found = asked(steps, True, {8: 2 * PAYS, 4: 2 * PAYS}, each=None)
    assert (found.lengths, found.together) == ((8, 4), (4,))
    assert found.note == "compiled steps: ready in 0.0 s"


@pytest.mark.parametrize("together", [[8], []])
def test_resumed_with_several_steps_together_or_not(clock, together):
    before = {"lengths": [8], "together": together}
    found = asked(Steps(clock), True, {8: 10 if together else 2 * PAYS}, each=None, before=before)
    assert found.record() == before


def test_a_record_holds_plain_lists():
    assert Choice((8, 3), "", 0.0, (8,)).record() == {"lengths": [8, 3], "together": [8]}
    assert Choice((), "", 0.0).record() == {"lengths": [], "together": []}


@pytest.mark.parametrize("mode", [True, False, "auto"])
def test_modes(mode):
    check_mode(mode)


@pytest.mark.parametrize("mode", ["yes", "", None, 1, 0, 2.0, [True]])
def test_unknown_modes(mode):
    with pytest.raises(UsageError) as caught:
        check_mode(mode)
    assert str(caught.value) == f"compile must be True, False or 'auto', not {mode!r}"


def test_an_unknown_mode_of_a_fit(tmp_path):
    """In a process of its own, without the type checks of these tests; and no folder is left."""
    code = "import pyro_vi; pyro_vi.fit('vae', 'diag_normal', 'digits', steps=1, out='run', compile='yes')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode
    assert done.stderr.splitlines()[-1] == (
        "pyro_vi.errors.UsageError: compile must be True, False or 'auto', not 'yes'"
    )
    assert not (tmp_path / "run").exists()
