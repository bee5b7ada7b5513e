"""The choice of which steps of a fit are compiled.

* `choose` compiles the steps or leaves them eager. With ``"auto"`` it compiles a length of batch if the remaining steps of that
  length save more time than compiling takes (`pyro_vi.compiling.cost`). One line states the choice and its reason.
* `lengths_to_come` counts the remaining batches of each length.
* `check_mode` and `refuse_without_compiler` raise an error before a fit starts.
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
"""Most lengths of batches that are compiled; each needs its own graph."""


@dataclass(frozen=True)
class Choice:
    """A choice, and its reason.

    Attributes:
        lengths: lengths of the batches whose steps are compiled.
        note: the choice and its reason, in one line.
        seconds: time that measuring, tracing and compiling took.
        together: those of ``lengths`` for which several steps per call are compiled too.
    """

    lengths: tuple[int, ...]
    note: str
    seconds: float
    together: tuple[int, ...] = ()

    def record(self) -> dict[str, list[int]]:
        """Return what a resumed fit must compile again to give the same bits."""
        return {"lengths": list(self.lengths), "together": list(self.together)}


def check_mode(mode: object) -> None:
    """Raise UsageError unless ``mode`` is True, False or ``"auto"``."""
    if not (isinstance(mode, bool) or mode == "auto"):
        raise UsageError(f"compile must be True, False or 'auto', not {mode!r}")


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


def choose(
    mode: Compile,
    steps: Callable[[], CompiledSteps],
    coming: Mapping[int, int],
    sources: Callable[[int, int], Sequence[Sequence[Tensor]]],
    estimate: Callable[[int], Estimate],
    before: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Choice, CompiledSteps | None]:
    """Compile the steps of a fit, or leave them eager.

    Args:
        mode: True: compile every length, or raise an error; ``"auto"``: compile where it pays.
        steps: makes the holder of the compiled steps.
        coming: number of remaining steps, by length of batch.
        sources: called with a length and a number of batches, returns two sources of that many batches, for the proof.
        estimate: measures a step on a batch of the given length.
        before: `Choice.record` of the interrupted fit, if this fit is resumed.

    Returns:
        The choice, and the compiled steps, or None if all steps are eager.

    Raises:
        InputError: ``mode`` is True and the step cannot be compiled; the message says why and what to do.
    """
    start = time.perf_counter()

    def chosen(what: str, lengths: Sequence[int] = ()) -> Choice:
        return Choice(tuple(lengths), what, time.perf_counter() - start)

    # A resumed fit compiles every length that it compiled before, also one that the count does not expect: it may resume within
    # an epoch.
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
                with suppress(NoGraph):  # then each step is its own call
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
