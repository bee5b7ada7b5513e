"""Whether the steps of a fit are compiled.

* `choose` compiles what it is told to, or what pays: with ``"auto"``, each length of batch of which the steps to come save more
  time than compiling it takes (`pyro_vi.cost`). What it chose, and why, is one line.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_vi.compiling.cost import SECONDS, Estimate, eager_because, shown, to_compile
from pyro_vi.compiling.inductor import why_not
from pyro_vi.compiling.step import MANY
from pyro_vi.compiling.steps import CompiledSteps
from pyro_vi.errors import InputError, NoGraph, UsageError

Compile = bool | Literal["auto"]
LENGTHS = 4
"""Lengths of batches that are compiled at most: each takes a graph of its own."""


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
    estimate: Callable[[int], Estimate],
    before: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Choice, CompiledSteps | None]:
    """Compile the steps of a fit, or not.

    Args:
        mode: True: all lengths, or an error; ``"auto"``: where it pays, else eager steps.
        steps: makes what the compiled steps are put into.
        coming: how many steps of each length of batch are to come.
        sources: two sources of a length, each of as many batches as asked for, to prove compiled steps on.
        estimate: measures a step on a batch of some length.
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
    saved, refused, compiled = 0.0, "", None
    try:
        compiled = steps()
        for length, count in wanted.items():
            saves = 0.0
            if ask:
                found = estimate(length)
                saves, cost = count * found.saving, to_compile(found.operations, len(compiled.whole.tensors))
                if saves < cost:
                    if compiled.steps:
                        continue
                    return chosen(eager_because("steps", saves, cost)), None
            graph = compiled.trace(sources(length, 1))
            compiled.add(length, graph, sources(length, 1))
            saved += saves
            several = SECONDS["node"] * len(graph.graph.nodes) * MANY
            pays = compiled.short(length) and count * SECONDS["several"] > several
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
    note = f"compiled steps: ready in {shown(took)}"
    if ask:
        note += f", to save about {shown(saved)}"
    return Choice(single, note + refused, took, together), compiled
