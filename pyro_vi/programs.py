"""From a name to a program, and from two programs to a pair.

A program is named by a registered name (``vae``), ``path/file.py:Name`` or ``package.module:Name``, each with options as
Python literals in parentheses: ``vae(latent_dim=8)``. A class is built by its contract, ``Model(data_spec, **options)`` or
``Guide(model, example_batch, **options)``; a function or a module is used as it is.

* `resolve` finds what a name stands for; `build_pair` makes the pair; `pair_of` binds two programs that are there already.
"""

import copy
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from torch import Tensor, nn

from pyro_vi.binding import Shared, bind
from pyro_vi.data import Batch, Data
from pyro_vi.errors import InputError, UsageError, first_line, kind_and_line
from pyro_vi.pairs import Pair, isolated, title
from pyro_vi.specs import check_options, parse, unknown

Kind = Literal["model", "guide"]

__all__ = ["available", "bind", "build_pair", "name_of", "pair_and_args", "pair_of", "resolve"]


def available(kind: Kind) -> dict[str, str]:
    """Registered programs by name, each with the first line of what it says about itself."""
    table = _table(kind)
    return {name: (inspect.getdoc(_load(target)) or "").split("\n")[0] for name, target in table.items()}


def _table(kind: Kind) -> dict[str, str]:
    # By name only: the engine knows no particular model or guide.
    table: dict[str, str] = importlib.import_module(f"pyro_vi.{kind}s").TABLE
    return table


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def resolve(text: str, kind: Kind) -> tuple[Any, dict[str, Any]]:
    """What a name stands for, and the options given with it.

    Args:
        text: ``name``, ``path/file.py:Name`` or ``package.module:Name``, with options in parentheses where wanted.
        kind: ``"model"`` or ``"guide"``: where a plain name is looked up.

    Raises:
        UsageError: no such name; the message lists what there is, and the nearest match.
        InputError: the file or module is not there or does not import.

    Example:
        >>> resolve("vae(latent_dim=2)", "model")[1]
        {'latent_dim': 2}
    """
    target, options = parse(text)
    if ":" not in target:
        table = _table(kind)
        if target.endswith(".py") or "/" in target:
            raise UsageError(f"{kind} '{target}' names a file but nothing in it: write '{target}:Name'")
        if target not in table:
            raise unknown(kind, target, table)
        return _load(table[target]), options
    path, _, name = target.rpartition(":")
    module = _from_file(path, kind) if path.endswith(".py") else _from_package(path, kind)
    if not hasattr(module, name):
        public = [
            n for n, v in vars(module).items() if callable(v) and not n.startswith("_") and _defined_in(v, module)
        ]
        raise unknown(f"{kind} in {path}", name, public)
    return getattr(module, name), options


def _defined_in(value: Any, module: ModuleType) -> bool:
    return getattr(value, "__module__", None) == module.__name__


def _from_file(path: str, kind: Kind) -> ModuleType:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UsageError(
            f"{kind} file '{path}' does not exist; give the path of a Python file, as in 'path/file.py:Name'"
        )
    # Registered under its path, so that a model and a guide from one file share that file's classes and networks.
    name = f"_pyro_vi_file_{abs(hash(str(file)))}"
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
        raise InputError(f"{kind} file '{path}' does not import: {kind_and_line(error)}") from error
    finally:
        sys.path.remove(str(file.parent))
    return module


def _from_package(path: str, kind: Kind) -> ModuleType:
    try:
        with isolated():
            return importlib.import_module(path)
    except Exception as error:
        message = f"{kind} module '{path}' does not import: {kind_and_line(error)}"
        raise (UsageError if isinstance(error, ModuleNotFoundError) else InputError)(message) from error


def pair_of(model: Any, guide: Any, args: Batch) -> Pair:
    """A pair of two programs that are there already, modules or functions, each owning its parameters (see `bind`)."""
    shared: Shared = {}
    return Pair(_bound(model, args, shared, "model"), _bound(guide, args, shared, "guide"))


def pair_and_args(model: Any, guide: Any, batch: Batch | Tensor) -> tuple[Pair, Batch]:
    """`pair_of` two programs, and the batch as the tuple that they are called with: where a public function begins."""
    args = batch if isinstance(batch, tuple) else (batch,)
    return pair_of(model, guide, args), args


def _bound(program: Any, args: Batch, shared: Shared, kind: Kind) -> nn.Module:
    if inspect.isclass(program) or not callable(program):
        raise InputError(f"the {kind} must be a function or a module, not {program!r}; make an instance of it first")
    try:
        return bind(program, args, shared)
    except InputError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(a.shape)) for a in args)
        raise InputError(f"the {kind} fails on a batch of shape {shapes}: {first_line(error)}") from error


def build_pair(model: Any, guide: Any, data: Data, *, seed: int = 0, size: int = 8) -> Pair:
    """Build a model and a guide for a data set, from names, classes, modules or functions.

    Modules are copied, so that what is fitted later is the pair's own: the originals keep their parameters.

    Args:
        model: a name, a class ``Model(data_spec, **options)``, a module or a function.
        guide: a name, a class ``Guide(model, example_batch, **options)``, a module or a function.
        data: what the pair is for.
        seed: of the initial parameters.
        size: rows of the example batch.

    Raises:
        UsageError: an unknown name or option.
        InputError: a program that cannot be built for this data, or fails on it.
    """
    args = data.example(size)
    shared: Shared = {}
    with isolated(seed):
        bound_model = _bound(_make(model, "model", (data.spec,)), args, shared, "model")
        bound_guide = _bound(_make(guide, "guide", (bound_model, args)), args, shared, "guide")
        return copy.deepcopy(Pair(bound_model, bound_guide))


def _make(program: Any, kind: Kind, contract: tuple[Any, ...]) -> Any:
    options: dict[str, Any] = {}
    label = program if isinstance(program, str) else getattr(program, "__name__", "")
    if isinstance(program, str):
        program, options = resolve(program, kind)
        label = parse(label)[0]
    if not inspect.isclass(program):
        if options:
            raise UsageError(
                f"{kind} '{label}' is used as it is and takes no options; it was given {', '.join(options)}"
            )
        return program
    check_options(f"{kind} '{label}'", options, _options_of(program, len(contract)))
    try:
        return program(*contract, **options)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{kind} '{label}' cannot be built: {kind_and_line(error)} "
            f"(a {kind} class is called with {'(data_spec, **options)' if kind == 'model' else '(model, batch, **options)'})"
        ) from error


def name_of(program: Any) -> str:
    """What a run's configuration calls a program: the name that it was given by, or its own."""
    return program if isinstance(program, str) else getattr(program, "__qualname__", None) or title(program)


def _options_of(factory: Callable[..., Any], skip: int) -> list[str]:
    parameters = list(inspect.signature(factory).parameters.values())[skip:]
    return [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
