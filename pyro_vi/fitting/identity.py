"""The identity of a run: which of its programs, settings, data and versions have changed since it was made.

`names_of` names the programs and the data of a run; `differences` names what differs between two configurations.

`fingerprint` is a short text that depends on what a function, a class or an object does: on its code, and the plain
values and constant tensors that it uses, and not on comments, docstrings or line numbers. It is the same in every process of
one version of Python.
"""

import functools
import inspect
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch

from pyro_vi.data import Data
from pyro_vi.programs import Source, name_of
from pyro_vi.programs.lookup import Kind, resolve
from pyro_vi.support import finite

PLAIN = (bool, int, float, complex, str, bytes, type(None))
CONSTANTS = (torch.Tensor, np.ndarray)
OURS_AND_OTHERS = ("torch", "pyro", "numpy", "builtins", "functools", "typing", "collections", "math", "pyro_vi")
"""Packages whose code is known by its version, or by its name alone."""


DETAILS: dict[str, tuple[str, tuple[str, ...]]] = {
    "code": ("the code of the model or the guide has changed", ("model", "guide")),
    "elbo_options": ("the options of the estimator have changed", ("elbo",)),
    "optimizer_groups": ("the options of the optimizer have changed", ("optimizer", "lr")),
    "scheduler": ("the scheduler has changed", ("schedule",)),
}
"""Parts of a configuration that are too long for a message: what is said, and the settings that may explain a difference."""

ABSENT = {"nonfinite": "stop"}
"""Settings that older versions did not have, with the value by which those versions acted."""

APART = ("given", "run", "checksum", "signature", "changes")
"""Parts of a configuration that do not tell one run from another."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the parts of two configurations that differ, each with a text that says how.

    Of the optimizer's details, only those are named that no other setting explains.

    Example:
        >>> differences({"lr": 0.1, "versions": {"torch": "1"}}, {"lr": 0.2, "versions": {"torch": "2"}})
        {'lr': 'lr was 0.1, is 0.2', 'versions': 'torch was 1, is 2'}
    """
    old, new = {**ABSENT, **old}, {**ABSENT, **json.loads(json.dumps(finite(new)))}
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and key not in APART]
    found = {key: f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in changed if key not in DETAILS}
    versions = [v if isinstance(v := one.get("versions"), Mapping) else {} for one in (old, new)]
    if "versions" in found:
        names = [name for name in {**versions[0], **versions[1]} if versions[0].get(name) != versions[1].get(name)]
        found["versions"] = "; ".join(
            f"{name} was {versions[0].get(name, 'not there')}, is {versions[1].get(name, 'not there')}"
            for name in names
        )
    pythons = [str(one.get("python")).split(".")[:2] for one in versions]
    for key, (text, explained) in DETAILS.items():
        comparable = key != "code" or pythons[0] == pythons[1]  # other versions of Python write other code
        if key in changed and comparable and not {*explained} & {*changed}:
            found[key] = text
    return found


def names_of(model: Source, guide: Source, given: object, data: Data) -> dict[str, Any]:
    """Return the names of model, guide and data in a run's configuration, as they were ``given`` or their own, and
    fingerprints of the programs, by which a run of other code with the same names is recognised."""
    source = str(given) if isinstance(given, (str, Path)) else data.spec.name
    code = {
        kind: fingerprint(found)
        for kind, found in (("model", _found(model, "model")), ("guide", _found(guide, "guide")))
    }
    return {"model": name_of(model), "guide": name_of(guide), "data": source, "code": code}


def _found(program: Source, kind: Kind) -> object:
    return resolve(program, kind)[0] if isinstance(program, str) else program


def fingerprint(value: Any) -> str:
    """Return a text that is equal for equal programs, functions, classes and plain values.

    Example:
        >>> fingerprint({"lr": 1.0}) == fingerprint({"lr": 1.0}) != fingerprint({"lr": 2.0})
        True
    """
    parts = "\n".join(_parts(value, {}))
    return f"{zlib.crc32(parts.encode()):08x}"


def plain_options(value: object) -> dict[str, Any]:
    """Return the plain attributes of an object, such as the options of an estimator.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> plain_options(Trace_ELBO(num_particles=3))["num_particles"]
        3
    """
    return {k: v for k, v in vars(value).items() if isinstance(v, (bool, int, float, str)) and not k.startswith("_")}


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    if isinstance(value, PLAIN):
        yield repr(value)
        return
    if id(value) in seen:
        return
    if isinstance(value, CONSTANTS):
        yield from _constant(value)
        return
    seen[id(value)] = value  # kept alive, so that no id is used twice
    if isinstance(value, functools.partial):
        for part in (value.func, value.args, value.keywords):
            yield from _parts(part, seen)
    elif isinstance(value, MethodType):
        yield from _parts(value.__func__, seen)
        yield from _parts(value.__self__, seen)
    elif isinstance(value, FunctionType):
        yield from _function(value, seen)
    elif inspect.isclass(value):
        yield from _class(value, seen)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parts(key, seen)
            yield from _parts(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item, seen)
    elif isinstance(value, frozenset | set):
        yield repr(sorted(map(repr, value)))
    else:
        yield from _object(value, seen)


def _function(function: Any, seen: dict[int, Any]) -> Iterator[str]:
    if _foreign(function):
        yield f"{function.__module__}.{function.__qualname__}"
        return
    yield from _code(function.__code__, function.__doc__)
    yield from _parts((function.__defaults__, function.__kwdefaults__), seen)
    try:
        closed = inspect.getclosurevars(function)
    except ValueError:  # a variable of the closure that has no value yet
        return
    for name, value in sorted({**closed.globals, **closed.nonlocals}.items()):
        yield name
        plain = isinstance(value, Mapping) and all(isinstance(item, PLAIN) for item in value.values())
        if plain or isinstance(value, (*PLAIN, *CONSTANTS, list, tuple, FunctionType)) or inspect.isclass(value):
            yield from _parts(value, seen)


def _constant(value: Any) -> Iterator[str]:
    """The values of an array or a tensor; those of a parameter change in a fit, and only its shape counts."""
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}"
        if value.requires_grad or value.layout is not torch.strided or value.is_meta or value.is_quantized:
            return
        value = value.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8).numpy()
    yield f"{value.dtype} {value.shape} {zlib.crc32(np.ascontiguousarray(value).tobytes()) if value.dtype != object else 0}"


def _code(code: CodeType, doc: str | None = None) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant)))
        elif constant != doc:
            yield repr(constant)


def _class(cls: Any, seen: dict[int, Any]) -> Iterator[str]:
    for base in cls.__mro__:
        yield base.__qualname__
        if _foreign(base):
            continue
        for name, value in vars(base).items():
            value = inspect.unwrap(getattr(value, "__func__", getattr(value, "fget", None) or value))
            if isinstance(value, (FunctionType, *PLAIN)) and name not in ("__doc__", "__module__", "__firstlineno__"):
                yield name
                yield from _parts(value, seen)


def _object(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    """The class of an object, and its plain attributes; of a module also those of its submodules."""
    yield from _class(type(value), seen)
    if _foreign(type(value)) and not hasattr(value, "named_children"):
        return
    for name, item in sorted(getattr(value, "__dict__", {}).items()):
        if isinstance(item, PLAIN) and not name.startswith("_") and name != "training":
            yield f"{name} {item!r}"
    if hasattr(value, "named_children"):
        for name, child in value.named_children():
            yield name
            yield from _parts(child, seen)


def _foreign(value: Any) -> bool:
    return str(getattr(value, "__module__", None) or "").split(".")[0] in OURS_AND_OTHERS
