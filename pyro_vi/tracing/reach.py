"""The state of Python that programs can reach: what they hold, close over and refer to.

* `walk` looks at it, by where it stands, and knows how to put it back; `state_of` is its flat picture.
"""

import copy
import inspect
import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from types import CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vi.support.torch_internals import hooks_of, times_changed

DEPTH, MOST = 6, 20_000
"""How far objects are followed, and how many things are looked at."""
_PLAIN = (int, float, complex, str, bytes, bool, type(None), np.number, np.bool_)
_STANDARD = set(vars(PyroModule()))
"""What every module has."""
_LIBRARIES = ("torch", "pyro", "numpy", "pyro_vi", "zuko", "scipy", "builtins", "collections", "functools", "typing")


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
    return walk(*programs).found


def walk(*programs: nn.Module) -> "Walk":
    """All that programs can reach now."""
    found = Walk()
    for program in programs:
        found.look(program, type(program).__name__, 0)
    return found


class Walk:
    """What was found, by where it stands, and how to put it back (which also keeps it alive, so that no id comes twice)."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.undo: list[Callable[[], None]] = []
        self.seen: set[int] = set()
        self.classes: set[type] = set()
        self.iterators: dict[int, tuple[Any, Any, Any]] = {}

    def look(self, value: Any, place: str, depth: int) -> None:
        if isinstance(value, _PLAIN):
            self.note(place, value if value == value else "nan")
            return
        if id(value) in self.seen or depth > DEPTH or len(self.seen) > MOST:
            return
        self.seen.add(id(value))
        if isinstance(value, Tensor):
            self.note(place, (id(value), times_changed(value), _bytes(value)))
            self.undo.append(partial(_restore_tensor, value, value.detach().clone() if value.numel() < MOST else None))
        elif isinstance(value, np.ndarray):
            self.note(place, (id(value), hash(value.tobytes()) if value.size < MOST else value.shape))
            if value.size < MOST and value.flags.writeable:
                self.undo.append(partial(value.__setitem__, ..., value.copy()))
        elif isinstance(value, torch.Generator):
            self.note(place, value.get_state().numpy().tobytes())
            self.undo.append(partial(_set_state, value, value.get_state()))
        elif isinstance(value, np.random.Generator):
            self.note(place, repr(value.bit_generator.state))
            self.undo.append(
                partial(_restore, value.bit_generator, "state", partial(_same_one, value.bit_generator.state))
            )
        elif isinstance(value, np.random.RandomState):
            state: Any = value.get_state(legacy=True)
            self.note(place, repr((state[1].tobytes(), *state[2:])))
            self.undo.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self.note(place, hash(value.getstate()))
            self.undo.append(partial(value.setstate, value.getstate()))
        elif isinstance(value, Mapping):
            self.note(f"the length of {place}", len(value))
            items = list(islice(value.items(), MOST))
            for key, item in items:
                self.look(item, f"{place}[{key!r}]" if isinstance(key, _PLAIN) else place, depth + 1)
            if isinstance(value, dict) and len(items) == len(value):
                self.undo.append(partial(_restore_mapping, value, {key: self.kept(item) for key, item in items}))
        elif isinstance(value, (list, tuple, set, frozenset, deque, bytearray)):
            self.note(f"the length of {place}", len(value))
            parts: list[Any] = list(islice(value, MOST))
            for number, item in enumerate(parts):
                self.look(item, f"{place}[{number}]", depth + 1)
            if isinstance(value, (list, set, deque, bytearray)) and len(parts) == len(value):
                self.undo.append(partial(_restore_items, value, [self.kept(part) for part in parts]))
        elif isinstance(value, partial):
            self.look((value.func, value.args, value.keywords), place, depth)
        elif isinstance(value, (FunctionType, MethodType)):
            self.function(value, depth)
        elif isinstance(value, nn.Module):
            self.module(value, depth)
        elif hasattr(value, "__next__"):
            self.note(place, _position(value))
        elif inspect.isclass(value):
            self.of_class(value, depth)
        elif not isinstance(value, ModuleType) and not _library(type(value)):
            self.attributes(_attributes(value), type(value).__name__, depth, value)
            self.undo.append(partial(_remove_attributes, value, set(_attributes(value))))
            self.of_class(type(value), depth)

    def note(self, place: str, value: Any) -> None:
        while place in self.found:
            place += "'"
        self.found[place] = value

    def kept(self, item: Any) -> Callable[[], Any]:
        """Gives what to put back for an item: itself, but an iterator that has gone on cannot go back, and gives a copy."""
        if not hasattr(item, "__next__") or inspect.isclass(item):
            return partial(_same_one, item)
        if id(item) not in self.iterators:
            self.iterators[id(item)] = item, _position(item), _copied(item)
        return partial(_iterator, *self.iterators[id(item)])

    def attributes(self, values: Mapping[str, Any], name_of: str, depth: int, owner: Any) -> None:
        for name, item in list(values.items()):
            self.look(item, f"attribute '{name}' of {name_of}", depth + 1)
            self.undo.append(partial(_restore, owner, name, self.kept(item)))

    def module(self, module: nn.Module, depth: int) -> None:
        owner = type(module).__name__
        own = {k: v for k, v in vars(module).items() if not k.startswith("_") or k == "_hidden"}
        if not _library(type(module)):
            hidden = {k: v for k, v in vars(module).items() if k.startswith("_") and not k.startswith("__")}
            own |= {k: v for k, v in hidden.items() if k not in _STANDARD}
        self.attributes(own, owner, depth, vars(module))
        self.undo.append(partial(_remove, vars(module), set(vars(module))))
        for hooks in hooks_of(module):
            self.look(tuple(hooks.values()), f"the hooks of {owner}", depth)
        self.of_class(type(module), depth)
        for child in module.children():
            self.look(child, owner, depth)

    def of_class(self, cls: type, depth: int) -> None:
        """What the methods of a class refer to, and what it counts up itself."""
        for base in cls.__mro__:
            if base in self.classes or _library(base) or _standard(base):
                continue
            self.classes.add(base)
            for name, item in list(vars(base).items()):
                inner = getattr(item, "__func__", getattr(item, "fget", item))
                if isinstance(inner, FunctionType):
                    self.look(inner, name, depth + 1)
                elif not name.startswith("__"):
                    self.attributes({name: item}, base.__name__, depth, base)

    def function(self, function: Any, depth: int) -> None:
        if isinstance(function, MethodType):
            self.look(function.__self__, type(function.__self__).__name__, depth + 1)
            function = function.__func__
        if not isinstance(function, FunctionType) or _foreign(function):
            return
        for name, item, owner, at in [*_closure(function), *_globals(function)]:
            self.look(item, f"variable '{name}' of {function.__name__}", depth + 1)
            self.undo.append(partial(_restore, owner, at, self.kept(item)))
        for defaults in (function.__defaults__, function.__kwdefaults__):
            self.look(defaults, f"a default of {function.__name__}", depth + 1)
        self.attributes(vars(function), function.__name__, depth, vars(function))
        self.undo.append(partial(_remove, vars(function), set(vars(function))))


def _bytes(value: Tensor) -> Any:
    # In-place changes of `.data` and of NumPy's view leave the version as it is.
    if value.numel() >= MOST or value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        return None
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _position(iterator: Any) -> Any:
    """How far an iterator has come, where that can be seen."""
    if isinstance(iterator, GeneratorType):
        frame = iterator.gi_frame
        return frame and (frame.f_lasti, repr(frame.f_locals))
    if isinstance(iterator, (tuple, list)):
        return [_position(part) for part in iterator]
    if not hasattr(iterator, "__next__") or inspect.isclass(iterator):
        return repr(iterator)
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.14 takes it from itertools
        return [type(iterator).__name__, _position(iterator.__reduce__()[1:])]
    return repr(iterator)


def _copied(iterator: Any) -> Any:
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(iterator)
    return iterator


def _same_one(item: Any) -> Any:
    return item


def _iterator(item: Any, position: Any, copied: Any) -> Any:
    return item if _position(item) == position else copied


def _restore_tensor(value: Tensor, before: Tensor | None) -> None:
    if before is not None and _bytes(value) != _bytes(before):
        value.detach().copy_(before)


def _set_state(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)


def _restore_mapping(value: dict[Any, Any], items: Mapping[Any, Callable[[], Any]]) -> None:
    before = {key: item() for key, item in items.items()}
    if list(map(id, value.values())) != list(map(id, before.values())) or list(value) != list(before):
        value.clear()
        value.update(before)


def _restore_items(value: Any, items: list[Callable[[], Any]]) -> None:
    before = [item() for item in items]
    if list(map(id, value)) != list(map(id, before)):
        value.clear()
        (value.update if isinstance(value, set) else value.extend)(before)


def _restore(owner: Any, name: str, item: Callable[[], Any]) -> None:
    value = item()
    with suppress(AttributeError, TypeError, ValueError):  # such as a read-only one
        if isinstance(owner, dict):
            owner[name] = value
        elif (vars(owner).get(name) if inspect.isclass(owner) else getattr(owner, name, None)) is not value:
            setattr(owner, name, value)


def _remove(values: dict[str, Any], names: set[str]) -> None:
    for name in set(values) - names:
        del values[name]


def _remove_attributes(value: Any, names: set[str]) -> None:
    for name in set(_attributes(value)) - names:
        with suppress(AttributeError, TypeError):
            delattr(value, name)


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for base in type(value).__mro__ for name in _names(getattr(base, "__slots__", ()))]
    return {**{name: getattr(value, name) for name in slots if hasattr(value, name)}, **getattr(value, "__dict__", {})}


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _closure(function: FunctionType) -> Iterator[tuple[str, Any, Any, str]]:
    """Names, values, and where they are held under what name."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents, cell, "cell_contents"
        except ValueError:  # not set yet
            continue


def _globals(function: FunctionType) -> Iterator[tuple[str, Any, Any, str]]:
    names, values = _used(function.__code__), function.__globals__
    for name in sorted(names & set(values)):
        item = values[name]
        yield name, item, values, name
        if isinstance(item, ModuleType) and not _named_library(item.__name__) and not _named_standard(item.__name__):
            yield from (
                (f"{name}.{inner}", vars(item)[inner], item, inner) for inner in sorted(names & set(vars(item)))
            )


def _used(code: CodeType) -> set[str]:
    """Names that are no local ones, also of what is defined within."""
    inner = (_used(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _named_library(name: str | None) -> bool:
    return (name or "").split(".")[0] in _LIBRARIES


def _named_standard(name: str | None) -> bool:
    return (name or "").split(".")[0] in sys.stdlib_module_names


def _foreign(function: FunctionType) -> bool:
    """Whether it is of a library, by its own name and by where it was written: `functools.wraps` changes the first."""
    names = (function.__module__, function.__globals__.get("__name__"))
    return all(_named_library(name) or _named_standard(name) for name in names)


def _standard(thing: Any) -> bool:
    return _named_standard(getattr(thing, "__module__", None))


def _library(thing: Any) -> bool:
    return _named_library(getattr(thing, "__module__", None))
