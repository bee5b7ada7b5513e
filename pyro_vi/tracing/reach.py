"""Python state that programs can reach: objects that they hold, close over or refer to.

`Walk` records this state, finds what has changed, and restores it. It covers

* attributes of modules, of plain objects (also in slots), of functions and of classes, including new ones;
* variables of closures and globals, also those of other Python modules (``counts.calls``, ``package.counts.calls``, and of a
  module that a function imports); defaults of arguments, hooks, bound methods, `functools.partial`, cached functions;
* the content of lists, dicts, sets, deques and arrays of bytes or numbers, however nested;
* tensors and NumPy arrays that no module holds: the elements of small ones, the version of large tensors;
* context variables.

It rejects iterators, random generators that programs own, and more than `MOST` objects, before the programs run. It does not
see the state of libraries, objects more than `DEPTH` references away, elements of large arrays, and objects whose state is
not in attributes (the entries of a cache, the position in a file). Parameters and buffers are inputs of a graph, not Python
state.
"""

import random
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from io import IOBase
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vi.errors import NoGraph
from pyro_vi.support.torch_internals import hooks_of, times_changed

DEPTH, MOST = 6, 20_000
"""Most references that are followed, and most objects. A tensor or array with fewer elements than this is small."""
LIBRARIES = {"torch", "pyro", "numpy", "pyro_vi", "zuko", "scipy", "jaxtyping", "beartype", "builtins", "logging"}
HELD = {"state", "param_groups", "_pyro_name", "_pyro_context", "_pyro_params", "_pyro_samples"}.union(
    name for name in vars(nn.Module()) if name.startswith("_")
)
"""Attributes of modules and optimizers that are handled elsewhere or may change: parameters, buffers, hooks and others."""
_PLAIN = (int, float, complex, str, bytes, bool, type(None), np.number, np.bool_)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)
_COMMON: Any = (random.getstate.__self__, np.random.get_state.__self__)  # type: ignore[attr-defined]
"""The global generators of Python and NumPy; `pyro_vi.tracing.frozen` watches them."""

Named = dict[Any, Any]
Place = Callable[[Any], str]


@dataclass
class Held:
    """One object that holds state: functions that describe where a name is, read the state by name, and restore it."""

    place: Place
    read: Callable[[], Named]
    write: Callable[[Named], Any]

    def __post_init__(self) -> None:
        self.before = self.read()

    def changed(self) -> str:
        """Return where the first changed value is; empty if nothing has changed."""
        before, now = self.before, self.read()
        for name in {**before, **now}:
            if name not in before or name not in now or not _alike(before[name], now[name]):
                return self.place(name)
        return "" if list(before) == list(now) else self.place(next(iter(before)))

    def put_back(self) -> None:
        now = self.read()
        if list(now) != list(self.before) or any(not _same(now[name], item) for name, item in self.before.items()):
            self.write(self.before)


class Walk:
    """A record of the Python state that programs, or an optimizer, reach now.

    Raises:
        NoGraph: they reach state that cannot be restored.

    Example:
        >>> program = nn.Linear(1, 1)
        >>> program.calls = 0
        >>> before = Walk(program)
        >>> program.calls += 1
        >>> before.changed()
        "attribute 'calls' of Linear"
        >>> before.put_back()
        >>> program.calls
        0
    """

    def __init__(self, *programs: Any) -> None:
        self.held: list[Held] = []
        self.seen: dict[int, Any] = {}  # kept alive, so that no id is used twice
        for program in programs:
            self._look(program, type(program).__name__, 0)

    def changed(self) -> str:
        """Return where the first change since then is; empty if nothing has changed."""
        return next(filter(None, (held.changed() for held in self.held)), "")

    def put_back(self) -> None:
        """Restore everything that has changed since then."""
        for held in self.held:
            held.put_back()

    def _look(self, value: Any, place: str, depth: int) -> None:
        if isinstance(value, _PLAIN) or id(value) in self.seen or depth > DEPTH:
            return
        if len(self.seen) > MOST:
            raise NoGraph(f"the programs reach more than {MOST} objects in Python; hold their data in tensors")
        self.seen[id(value)] = value
        if isinstance(value, _GENERATORS) and value not in _COMMON:
            raise NoGraph(f"{place} is a generator of random numbers, which no graph can hold; draw with torch or pyro")
        if isinstance(value, (Tensor, np.ndarray)):
            kept = _copy(value)
            self._hold(lambda _: place, lambda: {"": _picture(value)}, lambda _: _overwrite(value, kept), depth)
        elif isinstance(value, ContextVar):
            self._hold(lambda _: place, lambda: {"": value.get(None)}, lambda before: value.set(before[""]), depth)
        elif isinstance(value, dict):
            at = lambda key: f"{place}[{key!r}]" if isinstance(key, _PLAIN) else place  # noqa: E731
            self._hold(at, lambda: dict(value), partial(_fill, value), depth)
        elif isinstance(value, set):
            self._hold(lambda _: place, lambda: {item: item for item in value}, partial(_fill, value), depth)
        elif isinstance(value, (list, deque, bytearray, array)):
            self._hold(lambda _: place, lambda: dict(enumerate(value)), partial(_fill, value), depth)
        elif isinstance(value, (tuple, frozenset)):
            self._each(value, place, depth)
        elif isinstance(value, partial):
            self._each((value.func, value.args, value.keywords), place, depth)
        elif isinstance(value, MethodType):
            self._each((value.__self__, value.__func__), place, depth)
        elif isinstance(value, Iterator) and not isinstance(value, IOBase):
            raise NoGraph(f"{place} is an iterator, which each call would advance; hold a number in a buffer")
        elif isinstance(value, FunctionType):
            self._function(value, depth)
        elif isinstance(value, CellType):
            self._names(
                lambda _: place, lambda: _content(value), partial(setattr, value), partial(delattr, value), depth
            )
        elif isinstance(value, type):
            self._class(value, depth)
        elif isinstance(value, (nn.Module, torch.optim.Optimizer)):
            self._module(value, depth)
        elif hasattr(value, "__wrapped__"):  # a cached function
            self._look(value.__wrapped__, place, depth)
        elif not isinstance(value, ModuleType) and not _library(type(value).__module__, standard=False):
            self._object(value, type(value).__name__, depth)

    def _each(self, items: Any, place: str, depth: int) -> None:
        for number, item in enumerate(items):
            self._look(item, f"{place}[{number}]", depth + 1)

    def _hold(self, place: Place, read: Callable[[], Named], write: Callable[[Named], Any], depth: int) -> None:
        self.held.append(Held(place, read, write))
        for name, item in self.held[-1].before.items():
            self._look(item, place(name), depth + 1)

    def _names(self, place: Place, read: Callable[[], Named], put: Any, drop: Any, depth: int) -> None:
        """Record names that can be set and deleted one by one."""

        def write(before: Named) -> None:
            for name in read().keys() - before.keys():
                drop(name)
            for name, item in before.items():
                put(name, item)

        self._hold(place, read, write, depth)

    def _object(self, value: Any, of: str, depth: int, keep: Callable[[str], bool] = bool) -> None:
        """Record the attributes of an object, in its dictionary and in slots, and its class."""
        place = lambda name: f"attribute '{name}' of {of}"  # noqa: E731
        own: Named = getattr(value, "__dict__", {})
        self._names(place, lambda: {k: own[k] for k in own if keep(k)}, own.__setitem__, own.__delitem__, depth)
        put, drop = partial(object.__setattr__, value), partial(object.__delattr__, value)  # also of frozen objects
        self._names(place, lambda: _slots(value), put, drop, depth)
        self._look(type(value), of, depth)

    def _module(self, module: Any, depth: int) -> None:
        hidden = "_" if _library(type(module).__module__) else "__"
        self._object(
            module,
            type(module).__name__,
            depth,
            lambda name: name == "_hidden" or not (name.startswith(hidden) or name in HELD),
        )
        if isinstance(module, nn.Module):
            self._each([hook for hooks in hooks_of(module) for hook in hooks.values()], "a hook", depth)
            for child in module.children():
                self._look(child, type(module).__name__, depth)

    def _class(self, cls: type, depth: int) -> None:
        """Record the methods and the attributes of a class."""
        for base in () if _library(cls.__module__) else cls.__bases__:
            self._look(base, base.__name__, depth)
        if not _library(cls.__module__):
            self._each(map(_method, list(vars(cls).values())), cls.__name__, depth)
            self._names(
                lambda name: f"attribute '{name}' of {cls.__name__}",
                lambda: {k: v for k, v in vars(cls).items() if not k.startswith("__") and _method(v) is None},
                partial(setattr, cls),
                partial(delattr, cls),
                depth,
            )

    def _function(self, function: FunctionType, depth: int) -> None:
        # Test both the name of its module and the module of its globals, because `functools.wraps` changes the first.
        if _library(function.__module__) and _library(function.__globals__.get("__name__")):
            return
        of, names = function.__name__, _used(function.__code__)
        self._object(function, of, depth)
        self._each((function.__defaults__, function.__kwdefaults__), f"a default of {of}", depth)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._look(cell, f"variable '{name}' of {of}", depth)
        self._variables(function.__globals__, names, "", of, depth)
        for name in names & set(sys.modules):  # imported within the function
            self._variables(vars(sys.modules[name]), names, f"{name}.", of, depth)

    def _variables(self, values: Named, names: set[str], prefix: str, of: str, depth: int) -> None:
        """Record the named variables of a Python module, and those of the modules among them."""
        if depth > DEPTH or _library(values.get("__name__")):
            return
        place = lambda name: f"variable '{prefix}{name}' of {of}"  # noqa: E731
        read = lambda: {name: values[name] for name in sorted(names) if name in values}  # noqa: E731
        self._names(place, read, values.__setitem__, values.__delitem__, depth)
        for name, item in read().items():
            if isinstance(item, ModuleType):
                self._variables(vars(item), names, f"{prefix}{name}.", of, depth + 1)


def _copy(value: Any) -> Any:
    """Return a copy of a small tensor or array, or None for others."""
    if isinstance(value, Tensor):
        small = value.numel() < MOST and value.layout == torch.strided and not (value.is_quantized or value.is_meta)
        return value.detach().clone() if small else None
    return value.copy() if value.size < MOST and not value.dtype.hasobject else None


def _picture(value: Any) -> Any:
    # In-place changes through `.data` or a NumPy view do not change the version of a tensor, so compare elements if possible.
    copied = _copy(value)
    if copied is None:
        return times_changed(value) if isinstance(value, Tensor) else value.shape
    if isinstance(copied, Tensor):
        copied = copied.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return copied.tobytes()


def _overwrite(value: Any, kept: Any) -> None:
    if kept is not None:
        (value.detach().copy_ if isinstance(value, Tensor) else partial(np.copyto, value))(kept)


def _fill(value: Any, before: Named) -> None:
    """Restore the content of a container."""
    if isinstance(value, (dict, set)):
        value.clear()
        value.update(before)
    else:
        while value:
            value.pop()
        value.extend(before.values())


def _content(cell: CellType) -> Named:
    return {} if cell == CellType() else {"cell_contents": cell.cell_contents}


def _slots(value: Any) -> Named:
    state = object.__getstate__(value)
    return state[1] if isinstance(state, tuple) else {}


def _method(item: Any) -> FunctionType | None:
    inner = getattr(item, "__func__", getattr(item, "fget", item))
    return inner if isinstance(inner, FunctionType) else None


def _same(one: Any, two: Any) -> bool:
    return one is two or (isinstance(one, _PLAIN) and type(one) is type(two) and repr(one) == repr(two))


def _alike(one: Any, two: Any, depth: int = 0) -> bool:
    """True if replacing the first value by the second is no change that matters."""
    if _same(one, two):
        return True
    if type(one) is not type(two) or isinstance(one, (*_PLAIN, Tensor, np.ndarray)) or depth > DEPTH:
        return False
    if isinstance(one, dict):
        return list(one) == list(two) and all(_alike(item, two[key], depth + 1) for key, item in one.items())
    try:
        return (hasattr(one, "__dict__") and _library(type(one).__module__)) or bool(one == two)
    except Exception:  # for example of tensors within the values
        return False


def _used(code: CodeType) -> set[str]:
    """Return the names in a code object that are not local, including those in functions defined within it."""
    inner = (_used(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _library(name: Any, standard: bool = True) -> bool:
    """True if a Python module belongs to a library or, with ``standard``, to Python itself."""
    first = str(name or "").split(".")[0]
    return first in LIBRARIES or (standard and first in sys.stdlib_module_names)
