"""What a graph would freeze: state of Python that a program reads or changes while it runs.

A graph holds tensor operations. A number that a program counts up itself, a draw from NumPy's generator, a tensor that it
keeps from one call to the next would stay as they were at the capture. `watched` sees whether a run of the programs changes
any of these, and says what.

* `same_twice` also captures twice, and compares the graphs.
* `state_of` is a flat picture of the Python state that programs can reach; `watched` compares two of them.
"""

import inspect
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pyro_vi.runs import generators, set_generators

DEPTH, MOST = 6, 20_000
"""How far objects are followed, and how many things are looked at."""
_PLAIN = (int, float, complex, str, bytes, bool, type(None), np.number, np.bool_)
_LIBRARIES = ("torch", "pyro", "numpy", "pyro_vi", "zuko", "scipy", "builtins", "collections", "functools", "typing")


class Frozen(RuntimeError):
    """A program changes Python state; one line that says which, and what to do."""


@contextmanager
def watched(*programs: nn.Module) -> Iterator[None]:
    """Within the block programs are run; it must leave what they can reach in Python as it was.

    Raises:
        Frozen: it did not: an attribute or variable has another value, or a generator of Python or NumPy was drawn from.
    """
    before, drawn = state_of(*programs), (random.getstate(), _numpy_state())
    yield
    # beartype's checks of types draw from it too, and say nothing about the programs.
    if random.getstate() != drawn[0] and "beartype" not in sys.modules:
        raise Frozen(
            "the programs draw from Python's generator, once for all steps in a graph; draw with torch or pyro"
        )
    if _numpy_state() != drawn[1]:
        raise Frozen("the programs draw from NumPy's generator, once for all steps in a graph; draw with torch or pyro")
    after = state_of(*programs)
    for place in sorted({*before, *after}):
        if before.get(place) != after.get(place):
            raise Frozen(
                f"the programs change {place} as they run, which would stay as it is in a graph; "
                "hold it in a buffer (a tensor) that is changed in place"
            )


def same_twice(trace: Callable[[], fx.GraphModule], *programs: nn.Module) -> fx.GraphModule:
    """A capture that does not depend on Python state which changes: two of them are the same, and leave that state as it is.

    Generators are put back.

    Raises:
        Frozen: it does depend on such.
    """
    start = generators()
    try:
        random.seed(1)
        with watched(*programs):
            first = trace()
        random.seed(2)
        second = trace()
    finally:
        set_generators(start)
    if not _same(first, second):
        raise Frozen(
            "two captures differ: the programs depend on what changes in Python from call to call, such as a number that they "
            "count up or a draw from Python's generator; hold it in a buffer, or draw with torch or pyro"
        )
    return first


def _same(one: fx.GraphModule, two: fx.GraphModule) -> bool:
    return one.code == two.code and all(
        a is b or (isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b))
        for a, b in zip(_constants(one), _constants(two), strict=True)
    )


def _constants(graph: fx.GraphModule) -> list[Any]:
    return [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]


def state_of(*programs: nn.Module) -> dict[str, Any]:
    """Numbers, strings, tensors and generators that programs hold or refer to, by where they stand.

    Tensors that belong to a module (parameters, buffers) are not among them: a graph takes these as inputs.

    Example:
        >>> class Counting(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.calls = 0
        >>> {place: value for place, value in state_of(Counting()).items() if "calls" in place}
        {"attribute 'calls' of Counting": 0}
    """
    walk = _Walk()
    for program in programs:
        walk.look(program, type(program).__name__, 0)
    return walk.found


class _Walk:
    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.seen: set[int] = set()

    def look(self, value: Any, place: str, depth: int) -> None:
        if isinstance(value, _PLAIN):
            self.note(place, value if value == value else "nan")
            return
        if id(value) in self.seen or depth > DEPTH or len(self.seen) > MOST:
            return
        self.seen.add(id(value))
        if isinstance(value, torch.Tensor):
            self.note(place, (id(value), value._version))
        elif isinstance(value, np.ndarray):
            self.note(place, (id(value), hash(value.tobytes()) if value.size < MOST else value.shape))
        elif isinstance(value, torch.Generator):
            self.note(place, value.get_state().numpy().tobytes())
        elif isinstance(value, (np.random.Generator, np.random.RandomState)):
            self.note(place, repr(_state_of_generator(value)))
        elif isinstance(value, random.Random):
            self.note(place, hash(value.getstate()))
        elif isinstance(value, Mapping):
            self.note(f"the length of {place}", len(value))
            for key, item in list(value.items()):
                self.look(item, f"{place}[{key!r}]" if isinstance(key, _PLAIN) else place, depth + 1)
        elif isinstance(value, (list, tuple, set, frozenset)):
            self.note(f"the length of {place}", len(value))
            for number, item in enumerate(value):
                self.look(item, f"{place}[{number}]", depth + 1)
        elif isinstance(value, (FunctionType, MethodType)):
            self.function(value, depth)
        elif isinstance(value, nn.Module):
            self.module(value, depth)
        elif hasattr(value, "__next__"):
            self.note(place, repr(value))  # such as itertools.count(3)
        elif not inspect.ismodule(value) and not inspect.isclass(value) and not _library(type(value)):
            self.attributes(vars(value) if hasattr(value, "__dict__") else {}, type(value).__name__, depth)

    def note(self, place: str, value: Any) -> None:
        while place in self.found:
            place += "'"
        self.found[place] = value

    def attributes(self, values: Mapping[str, Any], owner: str, depth: int) -> None:
        for name, item in list(values.items()):
            self.look(item, f"attribute '{name}' of {owner}", depth + 1)

    def module(self, module: nn.Module, depth: int) -> None:
        owner = type(module).__name__
        own = {k: v for k, v in vars(module).items() if not k.startswith("_") or k == "_hidden"}
        if not _library(type(module)):
            hidden = {k: v for k, v in vars(module).items() if k.startswith("_") and not k.startswith("__")}
            standard = set(vars(nn.Module())) | {"_pyro_name", "_pyro_context", "_pyro_params", "_pyro_samples"}
            own |= {k: v for k, v in hidden.items() if k not in standard}
        self.attributes(own, owner, depth)
        for child in module._modules.values():
            if child is not None:
                self.look(child, owner, depth)

    def function(self, function: Any, depth: int) -> None:
        if isinstance(function, MethodType):
            self.look(function.__self__, type(function.__self__).__name__, depth + 1)
            function = function.__func__
        if not isinstance(function, FunctionType) or _library(function):
            return
        for name, item in [*_closure(function), *_globals(function)]:
            self.look(item, f"variable '{name}' of {function.__name__}", depth + 1)
        for name, item in vars(function).items():
            self.look(item, f"attribute '{name}' of {function.__name__}", depth + 1)


def _closure(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not set yet
            continue


def _globals(function: FunctionType) -> Iterator[tuple[str, Any]]:
    names = function.__code__.co_names
    yield from ((name, function.__globals__[name]) for name in names if name in function.__globals__)


def _library(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").split(".")[0] in _LIBRARIES


def _numpy_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return (kind, np.asarray(keys).tobytes(), *rest)


def _state_of_generator(generator: Any) -> Any:
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()
