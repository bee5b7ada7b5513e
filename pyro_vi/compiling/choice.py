"""The choice of how the steps of a fit are taken: eager, captured or compiled.

* `choose` makes it. With ``"auto"`` it captures a length of batch if the remaining steps of that length save more time than
  capturing takes, and compiles it if compiled steps then save more time than compiling takes (`pyro_vi.compiling.cost`). One
  line states the choice and its reason.
* `lengths_to_come` counts the remaining batches of each length.
* `check_mode` and `refuse_without_compiler` raise an error before a fit starts.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, fx

from pyro_vi.compiling.background import Pending
from pyro_vi.compiling.captured import CapturedSteps
from pyro_vi.compiling.cost import SAVED, SECONDS, Estimate, because, shown, timed, to_capture, to_compile
from pyro_vi.compiling.inductor import why_not
from pyro_vi.compiling.losses import Losses
from pyro_vi.compiling.replay import Replay
from pyro_vi.compiling.step import MANY
from pyro_vi.compiling.steps import CompiledSteps
from pyro_vi.errors import InputError, NoGraph, UsageError
from pyro_vi.support import kept_generators

Compile = bool | Literal["auto", "captured"]
LENGTHS = 4
"""Most lengths of batches that are captured or compiled; each needs its own graph."""
FEW = 1000
"""Steps of a length, such as that of the batch that ends an epoch, below which ``compile=True`` captures it."""
SEVERAL = 0.005
"""Seconds that the proof of several steps in a call takes."""


@dataclass(frozen=True)
class Choice:
    """A choice, and its reason.

    Attributes:
        lengths: lengths of the batches whose steps are compiled.
        note: the choice and its reason, in one line.
        seconds: time that measuring, tracing and compiling took.
        together: those of ``lengths`` for which several steps per call are compiled too.
        captured: lengths of the batches whose steps are captured.
        coming: those of ``captured`` whose steps are being compiled in the background.
    """

    lengths: tuple[int, ...]
    note: str
    seconds: float
    together: tuple[int, ...] = ()
    captured: tuple[int, ...] = ()
    coming: tuple[int, ...] = ()

    def record(self) -> dict[str, list[int]]:
        """Return what a resumed fit must capture and compile again to give the same bits."""
        return {name: list(getattr(self, name)) for name in ("lengths", "together", "captured", "coming")}


def check_mode(mode: object, *, captured: bool = True) -> None:
    """Raise UsageError unless ``mode`` is True, False, ``"auto"``, or, where steps are taken, ``"captured"``."""
    if not (isinstance(mode, bool) or mode == "auto" or (captured and mode == "captured")):
        known = "True, False, 'auto' or 'captured'" if captured else "True, False or 'auto'"
        raise UsageError(f"compile must be {known}, not {mode!r}")


def refuse_without_compiler(device: torch.device) -> None:
    """Raise InputError if nothing can be compiled for this device; called before the fit writes anything."""
    missing = why_not(device)
    if missing:
        raise InputError(f"the step cannot be compiled: {missing}; or fit with compile='auto'")


def lengths_to_come(num_data: int, batch_size: int, done: int, left: int) -> dict[int, int]:
    """Return the number of remaining batches by length; the last batch of an epoch may be shorter than the others.

    Args:
        done: finished batches of this epoch.
        left: remaining batches of the fit.

    Example:
        >>> lengths_to_come(num_data=20, batch_size=8, done=2, left=4)
        {8: 2, 4: 2}
    """
    size = min(batch_size, num_data)
    per_epoch, short = -(-num_data // size), num_data % size
    ends = (done % per_epoch + left) // per_epoch
    return {size: left - ends, short: ends} if short else {size: left}


@dataclass(frozen=True)
class Ways:
    """How the steps of one fit can be taken, and what it takes to choose.

    Attributes:
        captured: makes the holder of the captured steps.
        compiled: makes the holder of the compiled steps, from the graphs of loss and gradients.
        sources: called with a length and a number of batches, returns two sources of that many batches, for the proof.
        estimate: measures a step on a batch of the given length.
        rough: seconds of the eager step that was taken.
    """

    captured: Callable[[], CapturedSteps]
    compiled: Callable[[Losses], CompiledSteps]
    sources: Callable[[int, int], Sequence[Sequence[Tensor]]]
    estimate: Callable[[int], Estimate]
    rough: float = math.inf


@dataclass
class Chosen:
    """The choice of a fit, and what takes its steps.

    Attributes:
        choice: the choice.
        captured: the captured steps, if there are any.
        compiled: the compiled steps, if there are any.
        pending: the step that is being compiled in the background, if there is one.
    """

    choice: Choice
    captured: CapturedSteps | None = None
    compiled: CompiledSteps | None = None
    pending: Pending | None = None

    def switch(self, step: int) -> str:
        """Take the steps that were compiled in the background from now on, and return that in one line.

        Args:
            step: number of finished steps.
        """
        assert self.pending is not None and self.captured is not None
        pending, self.pending = self.pending, None
        length, old = pending.length, self.choice
        try:
            pending.finish()
        except NoGraph as error:
            self.choice = replace(old, coming=(), note=f"{old.note}; not compiled: {error}")
            return f"captured steps go on: {error}"
        self.compiled = pending.compiled
        del self.captured.steps[length]
        note = f"compiled steps from step {step + 1} on; compiled in the background in {shown(pending.seconds())}"
        captured = tuple(n for n in old.captured if n != length)
        self.captured = self.captured if captured else None
        together = tuple(n for n, many in self.compiled.steps if many > 1)
        self.choice = replace(
            old, lengths=(*old.lengths, length), together=together, captured=captured, coming=(), note=note
        )
        return note


def choose(
    mode: Compile, ways: Ways, coming: Mapping[int, int], before: Mapping[str, Sequence[int]] | None = None
) -> Chosen:
    """Capture or compile the steps of a fit, or leave them eager.

    Args:
        mode: True: compile the most frequent length of batch, and others of at least `FEW` steps; ``"captured"``: capture every
            length; either raises an error if it cannot. ``"auto"``: capture and compile where it pays, in the background if
            there is a second processor.
        ways: how the steps can be taken.
        coming: number of remaining steps, by length of batch.
        before: `Choice.record` of the interrupted fit, if this fit is resumed.

    Raises:
        InputError: the step has no graph or cannot be compiled, although ``mode`` asks for it; the message says why and what to
            do.
    """
    return _Chooser(mode, ways, before).choose(coming)


class _Chooser:
    def __init__(self, mode: Compile, ways: Ways, before: Mapping[str, Sequence[int]] | None) -> None:
        self.mode, self.ways, self.before = mode, ways, before
        self.start = time.perf_counter()
        self.captured: CapturedSteps | None = None
        self.compiled: CompiledSteps | None = None
        self.pending: Pending | None = None
        self.rough, self.operations = ways.rough, 0
        self.saved, self.eager, self.notes = 0.0, "", list[str]()

    def choose(self, coming: Mapping[int, int]) -> Chosen:
        before = self.before
        # A resumed fit takes every length as before, also one that the count does not expect: it may resume within an epoch.
        known = None if before is None else {*before["lengths"], *before.get("captured", ())}
        wanted = {n: count for n, count in coming.items() if (count if known is None else n in known)}
        wanted = dict(sorted(wanted.items(), key=lambda item: -item[1])[:LENGTHS])
        if not wanted or not any(coming.values()):
            as_before = known is not None and not known
            return self._found(
                "eager steps, as before the interruption" if as_before else "eager steps: none is left to compile"
            )
        for position, (length, count) in enumerate(wanted.items()):
            try:
                self._one(length, count, first=position == 0)
            except NoGraph as error:
                if self.mode == "captured" or (self.mode is True and (position == 0 or count >= FEW)):
                    kind = "compiled" if self.mode is True else "captured"
                    raise InputError(f"the step cannot be {kind}: {error}; or fit with compile='auto'") from error
                self.eager = self.eager or f"{error}"
                self.notes.append(f"batches of {length} stay eager: {error}")
        return self._found()

    def _one(self, length: int, count: int, *, first: bool) -> None:
        """Choose for batches of one length."""
        mode, before = self.mode, self.before
        if before is not None:
            if length in before["lengths"]:
                self._compile(length, self._traced(length)[1], several=length in before["together"])
            else:
                self._capture(length)
                if length in before.get("coming", ()):
                    try:
                        self._begin(self._pending(length))
                    except NoGraph as error:  # captured steps go on
                        self.notes.append(f"not compiled: {error}")
        elif mode is True and (first or count >= FEW):
            self._compile(length, self._traced(length)[1], count)
        elif mode is True or mode == "captured":
            self._capture(length)
        else:
            self._where_it_pays(length, count)

    def _where_it_pays(self, length: int, count: int) -> None:
        most, cost = count * self.rough * SAVED, to_capture(self.operations)
        if most >= cost:
            found = self.ways.estimate(length)
            self.rough, self.operations = min(self.rough, found.eager), found.operations
            most, cost = count * found.spared, to_capture(found.operations)
        if most < cost:
            self.eager = self.eager or because("capturing", most, cost)
            return
        replay = self._capture(length)
        source = self.ways.sources(length, 1)[0]
        with kept_generators():
            seconds = timed(lambda: replay(source)) + found.update
        if seconds > found.eager:
            assert self.captured is not None
            del self.captured.steps[length]
            self.eager = self.eager or "captured ones would not be faster"
            return
        each, cost = seconds - found.compiled, to_compile(found.operations, 4 * found.changed)
        self.saved += count * (found.eager - seconds)
        try:
            self._further(length, count, each, seconds, cost)
        except NoGraph as error:
            self.notes.append(f"not compiled: {error}")
            return
        if length not in self.captured_lengths():
            self.saved += count * each

    def _further(self, length: int, count: int, each: float, seconds: float, cost: float) -> None:
        """Compile a captured length if that saves time: at once if its code is on disk, else in the background, if it can.

        Args:
            length: length of the batches.
            count: number of steps to come.
            each: seconds that a compiled step saves.
            seconds: seconds of a captured step.
            cost: seconds that compiling takes.
        """
        if self.pending is not None or count * each < SECONDS["switch"]:
            return  # one at a time
        # Steps that use all processors would wait for the compiler's process in each of their operations.
        beside = torch.get_num_threads() < processors()
        pays = (count - cost / seconds) * each > SECONDS["switch"] if beside else count * each > cost
        pending = self._pending(length)
        if pays and not beside and not pending.is_kept():
            self._compile(length, pending.graph, count)
        else:
            self._begin(pending, pays)

    def captured_lengths(self) -> tuple[int, ...]:
        return tuple(self.captured.steps) if self.captured else ()

    def _capture(self, length: int) -> Replay:
        return self._holder().add(length, self.ways.sources(length, 1))

    def _holder(self) -> CapturedSteps:
        if self.captured is None:
            self.captured = self.ways.captured()
        return self.captured

    def _traced(self, length: int) -> tuple[CompiledSteps, fx.GraphModule]:
        if self.compiled is None:
            self.compiled = self.ways.compiled(self._holder().losses)
        return self.compiled, self.compiled.trace(length, self.ways.sources(length, 1))

    def _compile(self, length: int, graph: fx.GraphModule, count: int = 0, several: bool = False) -> None:
        assert self.compiled is not None
        self.compiled.add(length, graph, self.ways.sources(length, 1))
        self._holder().steps.pop(length, None)
        wanted = several or (self.before is None and count * SECONDS["several"] > SEVERAL)
        if wanted and self.compiled.short(length):
            with suppress(NoGraph):  # then each step is its own call
                self.compiled.add_several(length, self.ways.sources(length, MANY)[0])

    def _pending(self, length: int) -> Pending:
        return Pending(*self._traced(length), length, partial(self.ways.sources, length))

    def _begin(self, pending: Pending, pays: bool = True) -> None:
        """Compile a step in the background if that pays, or at once if its code is on disk."""
        if pending.is_kept():
            pending.finish()
            self._holder().steps.pop(pending.length, None)
        elif pays:
            pending.start()
            self.pending = pending

    def _found(self, note: str = "") -> Chosen:
        compiled = self.compiled if self.compiled is not None and self.compiled.steps else None
        captured = self.captured if self.captured is not None and self.captured.steps else None
        single = tuple(length for length, many in (compiled.steps if compiled else ()) if many == 1)
        together = tuple(length for length, many in (compiled.steps if compiled else ()) if many > 1)
        played = self.captured_lengths()
        took = time.perf_counter() - self.start
        if not note and not single and not played:
            note = f"eager steps: {self.eager}"
        elif not note:
            note = f"{'compiled' if single else 'captured'} steps: ready in {shown(took)}"
            if self.mode == "auto" and self.before is None:
                note += f", to save about {shown(self.saved)}"
            if single and played:
                note += f"; batches of {', '.join(map(str, played))} are captured"
            if self.pending:
                note += "; the compiler works in the background"
            note += "".join(f"; {line}" for line in self.notes)
        coming = (self.pending.length,) if self.pending else ()
        return Chosen(Choice(single, note, took, together, played, coming), captured, compiled, self.pending)


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
