"""What a graph would freeze: state of Python that a program reads or changes while it runs.

A graph holds tensor operations. A number that a program counts up itself, a draw from NumPy's generator, a tensor that it
keeps from one call to the next would stay as they were at the capture.

* `watched` raises where a run of the programs changes such state; `put_back` undoes what runs of the programs change of it.
* `same_twice` also captures twice, under different states of Python's generator, and compares the graphs.
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
    """Within the block programs are run; it must leave what they can reach in Python as it was.

    Raises:
        NoGraph: an attribute or variable has another value, a generator of Python or NumPy was drawn from, or the programs
            reach what cannot be watched.
    """
    before, drawn = Walk(*programs), _drawn()
    yield
    for owner, state in _drawn().items():
        if state != drawn[owner]:
            raise NoGraph(
                f"the programs draw from {owner}'s generator, once for all steps in a graph; draw with torch or pyro"
            )
    place = before.changed()
    if place:
        raise NoGraph(
            f"the programs change {place} as they run, which would stay as it is in a graph; "
            "hold it in a buffer (a tensor) that is changed in place"
        )


@contextmanager
def put_back(*programs: nn.Module) -> Iterator[None]:
    """Whatever the programs change within the block in the state that they hold in Python, is as it was afterwards.

    Raises:
        NoGraph: they hold what cannot be put back; the block is not entered.
    """
    before = Walk(*programs)
    try:
        yield
    finally:
        before.put_back()


def same_twice(trace: Callable[[], fx.GraphModule], *programs: nn.Module) -> fx.GraphModule:
    """A capture that does not depend on Python state which changes: two of them are the same, and leave that state as it is.

    Generators are put back.

    Raises:
        NoGraph: it does depend on such.
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
            "two captures differ: the programs depend on what changes in Python from call to call, such as the time; "
            "hold it in a buffer"
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
