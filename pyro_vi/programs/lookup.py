"""Lookup of programs by name.

A program is named by a registered name (``vae``), one of Pyro's AutoGuides (``auto_normal`` or ``AutoNormal``),
``path/file.py:Name`` or ``package.module:Name``, each with options as Python literals in parentheses: ``vae(latent_dim=8)``.
The name may be dotted: ``vae.py:vae.model`` is a method of the object ``vae``. `resolve` finds the program of a name;
`available` lists the registered names.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pyro.infer import autoguide

from pyro_vi.errors import InputError, UsageError, kind_and_line
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.messages import title
from pyro_vi.support import parse, shown, unknown

AUTOGUIDES = {
    "auto_normal": "AutoNormal",
    "auto_diagonal_normal": "AutoDiagonalNormal",
    "auto_multivariate_normal": "AutoMultivariateNormal",
    "auto_low_rank": "AutoLowRankMultivariateNormal",
    "auto_iaf": "AutoIAFNormal",
    "auto_structured": "AutoStructured",
    "auto_gaussian": "AutoGaussian",
    "auto_laplace": "AutoLaplaceApproximation",
    "auto_delta": "AutoDelta",
    "auto_discrete": "AutoDiscreteParallel",
}
"""Pyro's guides for latents that all data share, by the names that they have here; those of Pyro serve too."""

Kind = Literal["model", "guide"]
Source = str | type | Callable[..., Any]
"""A program as people give it: by name, or as a class, module or function: see `pyro_vi.programs.build.build_pair`."""


def available(kind: Kind) -> dict[str, str]:
    """Return the registered programs by name, each with the first line of its docstring."""
    table = _table(kind)
    return {name: (inspect.getdoc(_load(target)) or "").split("\n")[0] for name, target in table.items()}


def resolve(text: str, kind: Kind) -> tuple[Source, dict[str, Any]]:
    """Return the program of a name, and the options given with it.

    Args:
        text: ``name``, ``path/file.py:Name`` or ``package.module:Name``, dotted names among them, with options in parentheses
            if there are any.
        kind: ``"model"`` or ``"guide"``, the table in which a plain name is looked up.

    Raises:
        UsageError: no such name, file or module; for a name, the message gives the nearest match and lists all names.
        InputError: the file or module cannot be imported.

    Example:
        >>> resolve("vae(latent_dim=2)", "model")[1]
        {'latent_dim': 2}
    """
    target, options = parse(text)
    if ":" not in target:
        table = _table(kind)
        if target.endswith(".py") or "/" in target:
            raise UsageError(f"{kind} '{target}' names a file but no program in it; write '{target}:Name'")
        pyros = AUTOGUIDES.get(target, target)
        if target not in table and kind == "guide" and isinstance(getattr(autoguide, pyros, None), type):
            return getattr(autoguide, pyros), options
        if target not in table:
            raise unknown(kind, target, [*table, *(AUTOGUIDES if kind == "guide" else ())])
        return _load(table[target]), options
    path, _, name = target.rpartition(":")
    module = _from_file(path, kind) if path.endswith(".py") else _from_package(path, kind)
    first, *attributes = name.split(".")
    if not hasattr(module, first):
        public = [
            n for n, v in vars(module).items() if callable(v) and not n.startswith("_") and _defined_in(v, module)
        ]
        raise unknown(f"{kind} in {path}", first, public)
    found, place = getattr(module, first), first
    for attribute in attributes:
        if not hasattr(found, attribute):
            raise UsageError(f"{kind} '{target}': {place} has no attribute '{attribute}'; check the name")
        found, place = getattr(found, attribute), f"{place}.{attribute}"
    return found, options


def with_options(program: Source, kind: Kind) -> tuple[Source, dict[str, Any]]:
    """Return a program with its options: those of a name, or those of a partial of a class."""
    if isinstance(program, str):
        return resolve(program, kind)
    if isinstance(program, partial) and isinstance(program.func, type) and not program.args:
        return program.func, dict(program.keywords)
    return program, {}


def name_of(program: Source) -> str:
    """Return the name of a program in a run's configuration: the name by which it was given, or its own."""
    if isinstance(program, str):
        return program
    found, options = with_options(program, "guide")
    name = getattr(found, "__qualname__", None) or title(program)
    given = ", ".join(f"{option}={shown(value)}" for option, value in options.items())
    return f"{name}({given})" if given else name


def _table(kind: Kind) -> dict[str, str]:
    # Imported by name, so that the engine depends on no particular model or guide.
    table: dict[str, str] = importlib.import_module(f"pyro_vi.{kind}s").TABLE
    return table


def _load(target: str) -> Source:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _defined_in(value: object, module: ModuleType) -> bool:
    return getattr(value, "__module__", None) == module.__name__


def _from_file(path: str, kind: Kind) -> ModuleType:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UsageError(
            f"{kind} file '{path}' does not exist; give the path of a Python file, as in 'path/file.py:Name'"
        )
    # Registered under path and content: a model and a guide from one file share its classes and networks, and a file that was
    # edited is another module.
    name = f"_pyro_vi_file_{abs(hash((str(file), file.read_bytes())))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"{kind} file '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    try:
        with isolated():
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{kind} file '{path}' cannot be imported: {kind_and_line(error)}") from error
    finally:
        sys.path.remove(str(file.parent))
    return module


def _from_package(path: str, kind: Kind) -> ModuleType:
    try:
        with isolated():
            return importlib.import_module(path)
    except Exception as error:
        message = f"{kind} module '{path}' cannot be imported: {kind_and_line(error)}"
        raise (UsageError if isinstance(error, ModuleNotFoundError) else InputError)(message) from error
