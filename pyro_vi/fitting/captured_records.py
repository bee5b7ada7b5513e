"""Numbers of fixed rows that a fit evaluates again and again, from a replayed graph.

* `Replayed` captures a function of a pair and of rows once, proves the graph against the programs, and then runs no Python
  programs. It draws what the programs draw, so that it gives their numbers.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyro_vi.compiling import Held
from pyro_vi.compiling.proof import copies, digits_of, near
from pyro_vi.compiling.replay import Replay
from pyro_vi.data import Batch
from pyro_vi.errors import NoGraph
from pyro_vi.programs import Pair, evaluating, isolated, swapped
from pyro_vi.support.torch_internals import times_changed
from pyro_vi.tracing import Recording, flat, same_twice, without_values

MOST = 5000
"""Most operations of a graph: to make a larger one ready takes longer than the records save."""
LARGE = 2**22
"""Most bytes of the rows. To make a graph ready keeps the values of all its operations, and on large rows saves little time."""

Numbers = Callable[[Batch, int | None], Mapping[str, Tensor]]


class Replayed:
    """A function of rows and of a seed, as a replayed graph.

    Args:
        pair: the pair, in the state in which it is captured; its parameters may change afterwards.
        rows: the rows.
        numbers: gives tensors of shape () by name, from rows and the seed of the draws; without a seed, the generators go on.

    Raises:
        NoGraph: there is no graph, or it gives other numbers than the programs.
    """

    def __init__(self, pair: Pair, rows: Batch, numbers: Numbers) -> None:
        if not all(isinstance(value, Tensor) for value in rows):
            raise NoGraph("the rows are not tensors alone")
        if sum(value.nbytes for value in rows) > LARGE:
            raise NoGraph("the rows are so large that to keep the values of all operations takes much memory")
        self.pair, self.rows, self.held = pair, rows, Held(pair, list(pair.parameters()))
        self.names: list[str] = []
        with torch.no_grad(), isolated(0, validation=False), evaluating(pair):
            graph = same_twice(lambda: self._captured(numbers), pair)
            if len(graph.graph.nodes) > MOST:
                raise NoGraph("the graph is so large that to make it ready takes longer than records without it")
            self.replay = Replay(graph, self._kept(), self._many(), ())
        self._places = [value.data_ptr() for value in self._kept()]
        for seed in (1, 2):
            expected, found = numbers(rows, seed), self(seed)
            if found is None or set(found) != set(expected):
                raise NoGraph("the graph gives other numbers than the programs")
            for name, value in expected.items():
                if not near(found[name].to(value.dtype), value, digits_of(value)):
                    raise NoGraph(f"the graph gives another '{name}' than the programs")

    def __call__(self, seed: int) -> dict[str, Tensor] | None:
        """Return the numbers under a seed; None if parameters or buffers lie elsewhere than at the capture."""
        self.held.adopt()
        kept = self._kept()
        if self._places != [value.data_ptr() for value in kept]:
            return None
        with torch.no_grad(), isolated(seed, validation=False):
            return {name: value.clone() for name, value in zip(self.names, self.replay(()), strict=True)}

    def _captured(self, numbers: Numbers) -> Recording:
        found = flat(self._function(numbers), *copies(self._kept()), state=self._many())
        without_values(found.graph)
        return found

    def _kept(self) -> list[Tensor]:
        return [*self.held.tensors, *self.rows]

    def _many(self) -> int:
        return len(self._kept())

    def _function(self, numbers: Numbers) -> Callable[..., list[Tensor]]:
        tensors = self.held.tensors

        def function(*inputs: Tensor) -> list[Tensor]:
            own, rows = inputs[: len(tensors)], inputs[len(tensors) :]
            before = [times_changed(value) for value in own]
            with swapped(self.pair, {id(t): value for t, value in zip(tensors, own, strict=True)}) as now:
                found = numbers(tuple(rows), None)
                moved = any(now(id(t)) is not value for t, value in zip(tensors, own, strict=True))
            if moved or before != [times_changed(value) for value in own]:
                raise NoGraph("the programs change parameters or buffers as they are evaluated")
            self.names = list(found)
            return list(found.values())

        return function


def replayed(pair: Pair, rows: Batch, numbers: Numbers) -> Replayed | None:
    """Return a function of rows as a replayed graph, or None if there is none."""
    try:
        return Replayed(pair, rows, numbers)
    except Exception:  # no graph, or an error of the programs: the record runs them, and tells it
        return None
