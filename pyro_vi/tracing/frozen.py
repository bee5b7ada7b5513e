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


def same_twice(trace: Callable[[], fx.GraphModule], *programs: nn.Module) -> fx.GraphModule:
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


def _same(one: fx.GraphModule, two: fx.GraphModule) -> bool:
    return one.code == two.code and all(
        a is b or (isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b))
        for a, b in zip(_constants(one), _constants(two), strict=True)
    )


def _constants(graph: fx.GraphModule) -> list[Any]:
    return [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]


def _drawn() -> dict[str, Any]:
    return {"Python": random.getstate(), "NumPy": pickle.dumps(np.random.get_state())}
