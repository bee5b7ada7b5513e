"""Making of pairs from models and guides.

`build_pair` makes a pair for a data set; `pair_of` binds two existing programs. A class is called as
``Model(data_spec, **options)`` or ``Guide(model, example_batch, **options)``; a function or a module is used as it is. A model
that is made here and has a method ``start(*batch)`` is started on the data: it may set its parameters from them.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from traceback import walk_tb
from typing import Any

from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide, AutoMessenger
from pyro.nn import PyroModule
from torch import nn

from pyro_vi.data import Batch, Data, numbered
from pyro_vi.errors import InputError, UsageError, of_program
from pyro_vi.programs.autoguides import model_for
from pyro_vi.programs.binding import FunctionProgram, bind
from pyro_vi.programs.copying import Copies, used_names
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.lookup import Kind, Source, available, name_of, resolve, with_options
from pyro_vi.programs.messages import failure, mismatch, shapes_of, title
from pyro_vi.programs.numbering import ignore_numbers, takes_row_numbers
from pyro_vi.programs.pair import Pair
from pyro_vi.support import check_options, fitting_threads, parse

PYROS = (AutoGuide, AutoMessenger, EasyGuide)
"""Pyro's classes of guides, which are made from the model alone: they see the data in their first call."""
EXAMPLE_ROWS = 5000
"""Most rows that a pair is built on if nothing says how many it will be called with."""

__all__ = ["available", "bind", "build_pair", "called", "name_of", "options_of", "pair_and_args", "pair_of", "resolve"]


def pair_of(model: object, guide: object, args: Batch, *, copied: bool = True) -> Pair:
    """Make a pair of two existing programs, modules or functions, as modules that own their parameters (see `bind`).

    Args:
        model: generative program.
        guide: variational program.
        args: one batch to call both with.
        copied: take copies of the programs, so that these stay as they are. Otherwise plain modules are taken themselves.
    """
    if not copied and all(_plain(program) for program in (model, guide)):
        return Pair(model, guide)  # type: ignore[arg-type]
    copies = Copies()
    shell = _shell(model, copies, "model")
    return Pair(*_bind(shell, _shell(guide, copies, "guide"), args, copies))


def pair_and_args(model: object, guide: object, batch: Any, *, copied: bool = True) -> tuple[Pair, Batch]:
    """Return `pair_of` two programs, and the batch as the tuple of arguments that they are called with: see `called`."""
    model, guide, args = called(model, guide, batch)
    return pair_of(model, guide, args, copied=copied), args


def called(model: object, guide: object, batch: Any) -> tuple[Any, Any, Batch]:
    """Return two programs and the tuple of their arguments, from a batch as a person hands it over.

    A tuple holds positional arguments, a dictionary holds keyword arguments, and None means no arguments, as in a fit.
    """
    if isinstance(batch, Mapping):
        names = tuple(batch)
        return by_name(model, names), by_name(guide, names), tuple(batch.values())
    return model, guide, batch if isinstance(batch, tuple) else () if batch is None else (batch,)


def build_pair(model: Source, guide: Source, data: Data, *, seed: int = 0, rows: int | None = None) -> Pair:
    """Build a model and a guide for a data set, from names, classes, modules or functions.

    Programs are copied: a later fit changes the copies, and the originals keep their parameters.

    Args:
        model: a name, a class ``Model(data_spec, **options)``, a module or a function.
        guide: a name, a class ``Guide(model, example_batch, **options)``, a `functools.partial` of a class with options, one of
            Pyro's AutoGuides (also as a class or by its name), a module or a function.
        data: data set that the pair is for.
        seed: seed of the initial parameters.
        rows: rows of the batch that the programs are built on, which must be those that they will be called with; by default
            all of small data.

    Raises:
        UsageError: an unknown name or option.
        InputError: a program that cannot be built for this data, or fails on it.
    """
    numbers = takes_row_numbers(guide)
    data = numbered(data) if numbers else data
    args = data.example(min(data.spec.num_data, EXAMPLE_ROWS) if rows is None else rows)
    names = data.arguments.names if data.arguments is not None else ()
    copies = Copies()
    with isolated(seed):
        shell = _shell(by_name(_started(_make(model, "model", (data.spec,)), model, data), names), copies, "model")
        # A guide class gets the model that the pair will have.
        plain = args[:-1] if data.numbered else args
        contract = (shell, plain, data.spec.num_data) if numbers else (shell, plain)
        with fitting_threads(shell, args):
            made = _make(guide, "guide", contract, data.spec.num_data)
            other = _shell(by_name(made, names), copies, "guide")
            if data.numbered:
                for program in (shell,) if numbers else (shell, other):
                    ignore_numbers(program, len(plain))
            return Pair(*_bind(shell, other, args, copies))


def by_name(program: Any, names: tuple[str, ...]) -> Any:
    """Return a program that takes its keyword arguments by position, in the order of ``names``."""
    if not names or not callable(program) or _takes_in_order(program, names):
        return program
    parameters = inspect.signature(program.forward if isinstance(program, nn.Module) else program).parameters
    strange = [name for name in names if name not in parameters]
    if strange and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise InputError(
            f"{title(program)} takes ({', '.join(parameters)}), and the data name an argument {strange[0]!r}; name the data so"
        )
    if isinstance(program, nn.Module):
        return _ByName(program, names)

    def called_by_name(*args: Any, **kwargs: Any) -> Any:
        return program(**dict(zip(names, args, strict=False)), **kwargs)

    return called_by_name


class _ByName(nn.Module):
    """A module that takes the keyword arguments of another one by position."""

    def __init__(self, program: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.program, self.names = program, names
        self._hidden = (program,)  # its name in messages

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.program(**dict(zip(self.names, args, strict=False)), **kwargs)


def _takes_in_order(program: Any, names: tuple[str, ...]) -> bool:
    found = inspect.signature(program.forward if isinstance(program, nn.Module) else program).parameters.values()
    positional = [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(positional[: len(names)]) == names or any(p.kind is p.VAR_POSITIONAL for p in found)


def _shell(program: object, copies: Copies, kind: Kind) -> nn.Module:
    """Return the copy of a module, or a function's copy as a `FunctionProgram` that has no parameters yet."""
    if inspect.isclass(program) or not callable(program):
        raise InputError(f"the {kind} must be a function or a module, not {program!r}; make an instance of it first")
    if isinstance(program, nn.Module):
        copied: nn.Module = copies.of(program)
        copies.stand_in(program, copied)
        return copied
    if "get_param_store" in used_names(program):
        raise InputError(
            f"the {kind} reads Pyro's parameter store by get_param_store, which is empty in a fit; read the parameter by "
            "pyro.param(name)"
        )
    shell = FunctionProgram(program)
    copies.stand_in(program, shell)  # an AutoGuide of this function gets the same module
    shell._hidden = (copies.of(program),)
    return shell


def _bind(model: nn.Module, guide: nn.Module, args: Batch, copies: Copies) -> tuple[nn.Module, nn.Module]:
    try:
        return bind(model, guide, args, copies)
    except InputError:
        raise
    except Exception as error:
        wrong = mismatch(model, args) or mismatch(guide, args)
        said = f"{_failed(error, model, guide)} fails on {shapes_of(args)}: {of_program(error)}"
        raise InputError(wrong or said) from error


def _failed(error: Exception, model: nn.Module, guide: nn.Module) -> str:
    """Return which of both programs raised an error."""
    places = {id(frame.f_locals.get("self")) for frame, _ in walk_tb(error.__traceback__)}
    return "the model" if id(model) in places else "the guide" if id(guide) in places else "the pair"


def _plain(program: object) -> bool:
    return isinstance(program, nn.Module) and not any(isinstance(m, PyroModule) for m in program.modules())


def _started(made: object, given: Source, data: Data) -> object:
    """Return a model that was made here, started on rows of the data if it has a method ``start(*batch)``."""
    start = getattr(made, "start", None)
    if made is not given and data.columns and isinstance(made, nn.Module) and callable(start):
        # Without row numbers; on the same rows whatever the size of a batch.
        args = replace(data, numbered=False).example(min(data.spec.num_data, EXAMPLE_ROWS))
        try:
            start(*args)
        except InputError:
            raise
        except Exception as error:
            raise InputError(failure(made, args, error)) from error
    return made


def _make(program: Source, kind: Kind, contract: tuple[Any, ...], num_data: int = 0) -> object:
    label = parse(program)[0] if isinstance(program, str) else ""
    program, options = with_options(program, kind)
    label = label or getattr(program, "__name__", "")
    if not inspect.isclass(program):
        if options:
            raise UsageError(f"{kind} '{label}' is not a class and takes no options; leave out {', '.join(options)}")
        return program
    if issubclass(program, PYROS):
        contract = (model_for(program, label, contract[0], contract[1], num_data),) if kind == "guide" else contract[:1]
    check_options(f"{kind} '{label}'", options, [option.name for option in options_of(program, kind)])
    try:
        return program(*contract, **options)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{kind} '{label}' cannot be built: {of_program(error)}; "
            f"(a {kind} class is called with {'(data_spec, **options)' if kind == 'model' else '(model, batch, **options)'})"
        ) from error


def options_of(program: type, kind: Kind) -> list[inspect.Parameter]:
    """Return the options of a class: the arguments after those that the contract of its kind passes."""
    skip = 1 if kind == "model" or issubclass(program, PYROS) else 3 if takes_row_numbers(program) else 2
    found: dict[str, inspect.Parameter] = {}
    for cls in inspect.getmro(program):
        if cls is not program and "__init__" not in vars(cls):
            continue
        own = list(inspect.signature(cls).parameters.values())
        for p in own[skip:]:
            if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD):
                found.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in own):  # else the other options are those of the class below
            break
    return list(found.values())
