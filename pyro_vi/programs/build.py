"""Making of pairs from models and guides.

`build_pair` makes a pair for a data set; `pair_of` binds two existing programs. A class is called as
``Model(data_spec, **options)`` or ``Guide(model, example_batch, **options)``; a function or a module is used as it is.
"""

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pyro_vi.data import Batch, Data
from pyro_vi.errors import InputError, UsageError, first_line, kind_and_line
from pyro_vi.programs.binding import Shared, bind
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.lookup import Kind, Source, available, name_of, resolve
from pyro_vi.programs.pair import Pair
from pyro_vi.support import check_options, parse

EXAMPLE_ROWS = 8
"""Rows of the batch that a guide class is built with."""

__all__ = ["available", "bind", "build_pair", "name_of", "pair_and_args", "pair_of", "resolve"]


def pair_of(model: object, guide: object, args: Batch) -> Pair:
    """Make a pair of two existing programs, modules or functions, as modules that own their parameters (see `bind`)."""
    shared: Shared = {}
    return Pair(_bound(model, args, shared, "model"), _bound(guide, args, shared, "guide"))


def pair_and_args(model: object, guide: object, batch: Batch | Tensor) -> tuple[Pair, Batch]:
    """Return `pair_of` two programs, and the batch as the tuple of arguments that they are called with."""
    args = batch if isinstance(batch, tuple) else (batch,)
    return pair_of(model, guide, args), args


def build_pair(model: Source, guide: Source, data: Data, *, seed: int = 0) -> Pair:
    """Build a model and a guide for a data set, from names, classes, modules or functions.

    Modules are copied: a later fit changes the copies, and the originals keep their parameters.

    Args:
        model: a name, a class ``Model(data_spec, **options)``, a module or a function.
        guide: a name, a class ``Guide(model, example_batch, **options)``, a module or a function.
        data: data set that the pair is for.
        seed: seed of the initial parameters.

    Raises:
        UsageError: an unknown name or option.
        InputError: a program that cannot be built for this data, or fails on it.
    """
    args = data.example(EXAMPLE_ROWS)
    shared: Shared = {}
    with isolated(seed):
        bound_model = _bound(_make(model, "model", (data.spec,)), args, shared, "model")
        bound_guide = _bound(_make(guide, "guide", (bound_model, args)), args, shared, "guide")
        return copy.deepcopy(Pair(bound_model, bound_guide))


def _bound(program: object, args: Batch, shared: Shared, kind: Kind) -> nn.Module:
    if inspect.isclass(program) or not callable(program):
        raise InputError(f"the {kind} must be a function or a module, not {program!r}; make an instance of it first")
    try:
        return bind(program, args, shared)
    except InputError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(a.shape)) for a in args)
        raise InputError(f"the {kind} fails on a batch of shape {shapes}: {first_line(error)}") from error


def _make(program: Source, kind: Kind, contract: tuple[Any, ...]) -> object:
    options: dict[str, Any] = {}
    label = program if isinstance(program, str) else getattr(program, "__name__", "")
    if isinstance(program, str):
        program, options = resolve(program, kind)
        label = parse(label)[0]
    if not inspect.isclass(program):
        if options:
            raise UsageError(f"{kind} '{label}' is not a class and takes no options; leave out {', '.join(options)}")
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


def _options_of(factory: Callable[..., Any], skip: int) -> list[str]:
    parameters = list(inspect.signature(factory).parameters.values())[skip:]
    return [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
