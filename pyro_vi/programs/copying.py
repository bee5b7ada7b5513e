"""Copies of programs that own everything that holds parameters.

A program reaches its networks through attributes, closures, globals, partials, handlers, containers and other functions.
`Copies` copies every object on a way from a program to a module or to a tensor with gradients: functions are made anew with
copied variables, so that a copy needs nothing of the original. Everything else (data, settings, libraries) is shared.

Several programs that are copied together share what they shared before: an AutoGuide refers to the copy of its model.
"""

import copy
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn

from pyro_vi.support.pyro_internals import is_context, local_context
from pyro_vi.support.torch_internals import hooks_of_tensor

LONGEST = 10_000
"""Containers with more items than this hold data, not networks; they are shared."""

_PLAIN = (int, float, complex, str, bytes, type(None), np.ndarray, np.generic, type, ModuleType, ParamStoreDict)
_CONTAINERS = (list, tuple, set, frozenset, deque)
_SHARED_LIBRARIES = {"numpy", "pandas", "logging", "matplotlib", "threading", "_thread", "io", "xarray", "pyarrow"}


class Uncopied:
    """A network that programs reach by a way that is not copied, such as an attribute of a class; copies share it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network


class Copies:
    """Copies of programs; one object of this class copies each object once.

    Args:
        memo: copies by ``id`` of the original, as `copy.deepcopy` keeps them.

    Attributes:
        leaves: ids of the copied tensors with gradients.
        modules: ids of the copied modules.

    Example:
        >>> from functools import partial
        >>> net = nn.Linear(1, 1)
        >>> Copies().of(partial(print, net)).args[0] is net
        False
    """

    def __init__(self, memo: dict[int, Any] | None = None) -> None:
        self.memo: dict[Any, Any] = {} if memo is None else memo
        self.leaves: set[int] = set()
        self.modules: set[int] = set()
        self._kept: list[Any] = []  # originals and copies are kept alive, so that no id is used twice
        self._methods: dict[tuple[int, int], Any] = {}
        self._marked: set[int] = set()
        self._later: list[Callable[[], None]] = []

    def stand_in(self, original: Any, replacement: Any) -> None:
        """Use ``replacement`` wherever the original is met from now on; a bound method is met by object and function."""
        self._kept += [original, replacement]
        self.memo[id(original)] = self.memo[id(replacement)] = replacement
        if isinstance(original, MethodType):
            self._methods[id(original.__self__), id(original.__func__)] = replacement

    def of(self, program: Any) -> Any:
        """Return the copy of a program, or the program itself if it reaches nothing that holds parameters."""
        # A stand-in replaces the program in other programs; here its own copy is asked for.
        stand_in = self.memo.pop(id(program), None)
        method = (id(program.__self__), id(program.__func__)) if isinstance(program, MethodType) else None
        replaced = self._methods.pop(method, None) if method else None
        self._mark(program)
        copied = self._make(program)
        if stand_in is not None:
            self.memo[id(program)] = stand_in
        if method and replaced is not None:
            self._methods[method] = replaced
        while self._later:
            self._later.pop()()
        return copied

    def outermost(self, kind: type[nn.Module]) -> list[nn.Module]:
        """Return the copied modules of a class that no other copied module of it holds."""
        found = {id(m): m for m in self._kept if id(m) in self.modules and isinstance(m, kind)}
        inner = {id(part) for module in found.values() for part in module.modules() if part is not module}
        return [module for key, module in found.items() if key not in inner]

    def _mark(self, program: Any) -> None:
        """Mark all objects on a way to a module, to a tensor with gradients, or to what has a stand-in or a copy already."""
        above: dict[int, list[int]] = {}
        found, stack = [], [program]
        seen: dict[int, Any] = {id(program): program}
        while stack:
            value = stack.pop()
            if _holds(value) or self._known(value):
                found.append(id(value))
            if isinstance(value, nn.Module):
                found += map(id, _own(vars(value)))
            for part in _parts(value):
                if isinstance(part, _PLAIN):
                    continue
                above.setdefault(id(part), []).append(id(value))
                if id(part) not in seen:
                    seen[id(part)] = part
                    stack.append(part)
        self._kept += seen.values()
        marked: set[int] = set()  # not those of another program, whose ways lead elsewhere
        while found:
            key = found.pop()
            if key not in marked:
                marked.add(key)
                found += above.get(key, [])
        self._marked |= marked

    def _known(self, value: Any) -> bool:
        method = isinstance(value, MethodType) and (id(value.__self__), id(value.__func__)) in self._methods
        return method or id(value) in self.memo

    def _copy(self, value: Any) -> Any:
        if isinstance(value, MethodType):
            key = id(value.__self__), id(value.__func__)
            if key in self._methods:
                return self._methods[key]
        if id(value) in self.memo:
            return self.memo[id(value)]
        return self._make(value)

    def _make(self, value: Any) -> Any:
        if id(value) not in self._marked:
            return value
        kinds: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
            (Tensor, self._tensor),
            (nn.Module, self._module),
            (FunctionType, self._function),
            (MethodType, lambda v: MethodType(self._copy(v.__func__), self._copy(v.__self__))),
            (CellType, self._cell),
            (partial, self._partial),
            (weakref.ref, lambda v: weakref.ref(self._copy(v()))),
            (dict, self._dict),
            (tuple, self._tuple),
            (_CONTAINERS, self._container),
        )
        make = next((make for kind, make in kinds if isinstance(value, kind)), self._object)
        return self._keep(value, make(value))

    def _keep(self, value: Any, copied: Any) -> Any:
        self._kept.append(copied)
        self.memo[id(value)] = copied
        return copied

    def _tensor(self, value: Tensor) -> Tensor:
        if value.requires_grad and not value.is_leaf:  # left over from an earlier run
            return value.detach().clone()
        copied: Tensor = copy.deepcopy(value, {})
        for register, hook in hooks_of_tensor(value, copied):
            self._later.append(lambda register=register, hook=hook: register(self._copy(hook)))  # type: ignore[misc]
        if value.requires_grad:
            self.leaves.add(id(copied))
        return copied

    def _module(self, value: nn.Module) -> nn.Module:
        if isinstance(value, torch.jit.ScriptModule):
            copied: nn.Module = copy.deepcopy(value, self.memo)
        else:
            copied = type(value).__new__(type(value))
            self._keep(value, copied)
            vars(copied).update((name, self._copy(part)) for name, part in vars(value).items())
        self.modules.add(id(copied))
        return copied

    def _function(self, value: FunctionType) -> FunctionType:
        cells = tuple(self._copy(cell) for cell in value.__closure__ or ()) or None
        copied = FunctionType(value.__code__, self._globals(value), value.__name__, None, cells)
        self._keep(value, copied)
        copied.__defaults__, copied.__kwdefaults__ = self._copy(value.__defaults__), self._copy(value.__kwdefaults__)
        copied.__qualname__, copied.__doc__, copied.__module__ = value.__qualname__, value.__doc__, value.__module__
        copied.__annotations__ = value.__annotations__
        vars(copied).update((name, self._copy(part)) for name, part in vars(value).items())
        return copied

    def _globals(self, value: FunctionType) -> dict[str, Any]:
        """Return the variables of a function's Python module, with copies in place of those that hold parameters."""
        shared = value.__globals__
        used = {name: shared[name] for name in _global_names(value) if id(shared[name]) in self._marked}
        if not used and id(shared) not in self.memo:
            return shared
        own: dict[str, Any] = self.memo.get(id(shared)) or self._keep(shared, dict(shared))
        self._later.append(lambda: own.update((name, self._copy(part)) for name, part in used.items()))
        return own

    def _cell(self, value: CellType) -> CellType:
        copied = CellType()
        self._later.append(lambda: setattr(copied, "cell_contents", self._copy(value.cell_contents)))
        return copied

    def _partial(self, value: Any) -> Any:
        func = self._copy(value.func)
        if type(value) is not partial:  # Pyro's own, for handlers that are applied to a program
            return type(value)(func)
        return partial(func, *map(self._copy, value.args), **{k: self._copy(v) for k, v in value.keywords.items()})

    def _dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        copied = copy.copy(value)
        copied.clear()
        self._keep(value, copied)
        for key, item in value.items():
            copied[self._copy(key)] = self._copy(item)
        return copied

    def _tuple(self, value: Any) -> Any:
        items = [self._copy(item) for item in value]
        if id(value) in self.memo:  # made meanwhile, as the tuple holds itself by a way round
            return self.memo[id(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)

    def _container(self, value: Any) -> Any:
        if isinstance(value, frozenset):
            return type(value)(map(self._copy, value))
        copied = copy.copy(value)
        copied.clear()
        self._keep(value, copied)
        (copied.update if isinstance(copied, set) else copied.extend)(map(self._copy, value))
        return copied

    def _object(self, value: Any) -> Any:
        if is_context(value):
            return local_context()
        try:
            copied = object.__new__(type(value))
        except TypeError:  # of a class in C, such as a namespace; what cannot be copied stays shared
            copied = value
            with suppress(Exception):
                copied = copy.copy(value)
            if copied is value:
                return value
        self._keep(value, copied)
        for name, part in {**_slots(value), **vars_of(value)}.items():
            object.__setattr__(copied, name, self._copy(part))
        return copied


def vars_of(value: Any) -> dict[str, Any]:
    """Return the attributes that an object itself holds in a dictionary."""
    found: dict[str, Any] = getattr(value, "__dict__", {})
    return found


def _slots(value: Any) -> dict[str, Any]:
    state = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
    names = [name for slots in state for name in ([slots] if isinstance(slots, str) else slots)]
    return {n: getattr(value, n) for n in names if n not in ("__dict__", "__weakref__") and hasattr(value, n)}


def _own(value: Any) -> Iterator[Any]:
    """Yield the containers and tensors that a module holds, which its copy must not share, however nested."""
    items = value.values() if isinstance(value, dict) else value
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (dict, *_CONTAINERS)) and len(item) <= LONGEST:
            yield item
            yield from _own(item)


def _holds(value: Any) -> bool:
    return isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.requires_grad) or is_context(value)


def _parts(value: Any) -> Iterator[Any]:
    """Yield the objects that a value refers to and that may hold parameters."""
    if isinstance(value, (*_PLAIN, Uncopied, Tensor)):
        if isinstance(value, Tensor):
            yield from (hook for _, hook in hooks_of_tensor(value, value))
    elif isinstance(value, FunctionType):
        yield from value.__closure__ or ()
        yield from (value.__defaults__, value.__kwdefaults__, *vars(value).values())
        yield from (value.__globals__[name] for name in _global_names(value))
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, CellType):
        if value != CellType():
            yield value.cell_contents
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, weakref.ref):
        yield value()
    elif isinstance(value, (dict, *_CONTAINERS)):
        if len(value) <= LONGEST:
            yield from value.values() if isinstance(value, dict) else value
    elif type(value).__module__.split(".")[0] not in _SHARED_LIBRARIES:
        yield from vars_of(value).values()
        yield from _slots(value).values()


def _global_names(function: FunctionType) -> Iterator[str]:
    """Yield the global variables that a person's function uses; those of libraries lead to state of their own."""
    if not _library(function.__globals__.get("__name__"), function.__code__.co_filename):
        yield from (name for name in sorted(_used(function.__code__)) if name in function.__globals__)


def used_names(program: Any) -> set[str]:
    """Return the names in the code of a function or a bound method that are not local."""
    code = getattr(getattr(program, "__func__", program), "__code__", None)
    return set() if code is None else _used(code)


def _used(code: CodeType) -> set[str]:
    inner = (_used(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _library(name: Any, file: str) -> bool:
    first = str(name or "").split(".")[0]
    return first in {"torch", "pyro", "pyro_vi"} | sys.stdlib_module_names - {"__main__"} or "site-packages" in file
