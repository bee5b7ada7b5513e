"""Python state that a program reads or changes while it runs, and that a graph would freeze.

A graph holds tensor operations only. A number that a program counts up, a draw from NumPy's generator, or a tensor that it
keeps from one call to the next would stay as it was at the capture.

* `watched` raises `NoGraph` if a run of the programs changes such state. `put_back` restores the state after a block.
* `same_twice` captures twice, under different seeds of Python's generator, and compares the graphs.
"""

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pyro_vi.errors import NoGraph
from pyro_vi.support import generators, set_generators
from pyro_vi.tracing.reach import Walk
from pyro_vi.tracing.recording import Recording


@contextmanager
def watched(*programs: nn.Module) -> Iterator[None]:
    """Raise an error if the block, which runs the programs, changes Python state that they can reach.

    Raises:
        NoGraph: an attribute or a variable has changed, the block drew from Python's or NumPy's generator, or the programs
            reach state that cannot be watched.
    """
    before, drawn = Walk(*programs), _drawn()
    yield
    for owner, state in _drawn().items():
        if state != drawn[owner]:
            raise NoGraph(
                f"the programs draw from {owner}'s generator, and a graph would freeze the draw; draw with torch or pyro"
            )
    place = before.changed()
    if place:
        raise NoGraph(
            f"the programs change {place} as they run, which a graph would freeze; "
            "hold it in a buffer (a tensor) and change that in place"
        )


@contextmanager
def put_back(*programs: nn.Module) -> Iterator[None]:
    """Restore the Python state of the programs after the block.

    Raises:
        NoGraph: the programs hold state that cannot be restored; the block does not run.
    """
    before = Walk(*programs)
    try:
        yield
    finally:
        before.put_back()


def same_twice(trace: Callable[[], Recording], *programs: nn.Module) -> Recording:
    """Capture twice and return the first graph; the two must be equal, and the first capture must not change Python state.

    The random generators and the Python state of the programs are restored.

    Raises:
        NoGraph: the two graphs differ, or the capture changes Python state.
    """
    start = generators()
    try:
        with put_back(*programs):
            random.seed(1)
            with watched(*programs):
                first = trace()
            random.seed(2)
            second = trace()
    finally:
        set_generators(start)
    if not _same(first, second):
        raise NoGraph(
            "two captures differ: the programs depend on something in Python that changes from call to call, such as the "
            "time; hold it in a buffer"
        )
    return first


def _same(one: Recording, two: Recording) -> bool:
    """True if two graphs have the same operations on the same arguments, and equal constants."""
    if len(one.graph.nodes) != len(two.graph.nodes):
        return False
    numbers: dict[fx.Node, int] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return numbers[value]
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, slice):
            return [plain(part) for part in (value.start, value.stop, value.step)]
        return type(value), repr(value)  # NaN is not equal to itself

    for position, (a, b) in enumerate(zip(one.graph.nodes, two.graph.nodes, strict=True)):
        if a.op != b.op or (a.target != b.target and a.op == "call_function"):
            return False
        if a.op == "get_attr" and not _equal(one.constant(a), two.constant(b)):
            return False
        if plain((a.args, a.kwargs)) != plain((b.args, b.kwargs)):
            return False
        numbers[a] = numbers[b] = position
    return True


def _equal(one: Any, two: Any) -> bool:
    if one is two:
        return True
    return isinstance(one, Tensor) and isinstance(two, Tensor) and one.dtype == two.dtype and torch.equal(one, two)


def _drawn() -> dict[str, Any]:
    return {"Python": random.getstate(), "NumPy": pickle.dumps(np.random.get_state())}
