"""Whether the steps of a fit are compiled.

* `choose` compiles what it is told to, or what pays: with ``"auto"``, where the time that the remaining steps save exceeds the
  time that compiling takes. What it chose, and why, is one line.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_vi.compiling.inductor import why_not
from pyro_vi.compiling.step import MANY
from pyro_vi.compiling.steps import CompiledSteps
from pyro_vi.errors import InputError, NoGraph, UsageError

Compile = bool | Literal["auto"]
LENGTHS = 4
"""Lengths of batches that are compiled at most: each takes a graph of its own."""
TRACING, COMPILING, PER_NODE = 2.0, 2.0, 0.01
"""Seconds to trace a step and to prove it right, to compile any, and for each operation of the graph: measured on two cores
of a server, without the compiler's cache on disk. With it, compiling takes a tenth of that."""
PER_CALL = 1.2e-5
"""Seconds in each call that are not the compiled code's: several steps in a call pay after a million of them or more."""


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        lengths: lengths of batches whose steps are compiled.
        together: those of them of which several steps in one call are compiled too.
        note: what was chosen and why, in one line.
        seconds: what finding out, tracing and compiling took.
    """

    lengths: tuple[int, ...]
    note: str
    seconds: float
    together: tuple[int, ...] = ()

    def record(self) -> dict[str, list[int]]:
        """What a fit that goes on after an interruption must do again to come to the same bits."""
        return {"lengths": list(self.lengths), "together": list(self.together)}


def check_mode(mode: object) -> None:
    """Raise UsageError unless it is a mode of compiling."""
    if not (isinstance(mode, bool) or mode == "auto"):
        raise UsageError(f"compile must be True, False or 'auto', not {mode!r}")


def refuse_without_compiler(device: torch.device) -> None:
    """Raise InputError where nothing can be compiled, before a fit that is to be compiled leaves anything behind."""
    missing = why_not(device)
    if missing:
        raise InputError(f"the step cannot be compiled: {missing}; or fit with compile='auto'")


def lengths_to_come(num_data: int, batch_size: int, done: int, left: int) -> dict[int, int]:
    """How many batches of each length are among the next ones, the shorter one that ends an epoch apart.

    Args:
        done: batches of this epoch that are done.
        left: batches to come.

    Example:
        >>> lengths_to_come(num_data=20, batch_size=8, done=2, left=4)
        {8: 2, 4: 2}
    """
    size = min(batch_size, num_data)
    per_epoch, short = -(-num_data // size), num_data % size
    ends = (done % per_epoch + left) // per_epoch
    return {size: left - ends, short: ends} if short else {size: left}


def choose(
    mode: Compile,
    steps: Callable[[], CompiledSteps],
    coming: Mapping[int, int],
    sources: Callable[[int, int], Sequence[Sequence[Tensor]]],
    overhead: Callable[[], float],
    before: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Choice, CompiledSteps | None]:
    """Compile the steps of a fit, or not.

    Args:
        mode: True: all lengths, or an error; ``"auto"``: where it pays, else eager steps.
        steps: makes what the compiled steps are put into.
        coming: how many steps of each length of batch are to come.
        sources: two sources of a length, each of as many batches as asked for, to prove compiled steps on.
        overhead: measures the seconds of a step that compiling saves.
        before: the record of what was chosen before the fit was interrupted.

    Raises:
        InputError: with ``True``, the step cannot be compiled; the message says why and what to do.
    """
    start = time.perf_counter()

    def chosen(what: str, lengths: Sequence[int] = ()) -> Choice:
        return Choice(tuple(lengths), what, time.perf_counter() - start)

    # After an interruption also those that are not to come by the count, as an epoch may have been cut in two.
    wanted = {n: count for n, count in coming.items() if (count if before is None else n in before["lengths"])}
    wanted = dict(sorted(wanted.items(), key=lambda item: -item[1])[:LENGTHS])
    if not wanted or not any(coming.values()):
        as_before = before is not None and not before["lengths"]
        return chosen(
            "eager steps, as before the interruption" if as_before else "eager steps: none is left to compile"
        ), None
    ask = mode == "auto" and before is None
    each, most, refused, compiled = 0.0, max(wanted.values()), "", None
    try:
        if ask:
            each = overhead()
        if ask and most * each < TRACING + COMPILING:
            return chosen(
                f"eager steps: compiling would save about {_seconds(most * each)} and take {TRACING + COMPILING:.0f} s or more"
            ), None
        compiled = steps()
        for length, count in wanted.items():
            graph = compiled.trace(sources(length, 1))
            cost = COMPILING + PER_NODE * len(graph.graph.nodes)
            if ask and count * each < cost:
                if compiled.steps:
                    continue
                return chosen(
                    f"eager steps: compiling would save about {_seconds(count * each)} and take about {_seconds(cost)}"
                ), None
            compiled.add(length, graph, sources(length, 1))
            pays = compiled.short(length) and count * PER_CALL > PER_NODE * len(graph.graph.nodes) * MANY
            if pays if before is None else length in before["together"]:
                with suppress(NoGraph):  # then one by one
                    compiled.add_several(length, graph, sources(length, MANY)[0])
    except NoGraph as error:
        if mode is True:
            raise InputError(f"the step cannot be compiled: {error}; or fit with compile='auto'") from error
        if compiled is None or not compiled.steps:
            return chosen(f"eager steps: {error}"), None
        refused = f"; batches of {length} stay eager: {error}"
    single = tuple(length for length, many in compiled.steps if many == 1)
    together = tuple(length for length, many in compiled.steps if many > 1)
    took = time.perf_counter() - start
    note = f"compiled steps: ready in {_seconds(took)}"
    if ask:
        note += f", to save about {_seconds(sum(wanted[n] for n in single) * each)}"
    return Choice(single, note + refused, took, together), compiled


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
