"""Texts for messages: names of programs and distributions, shapes of batches, and why a program fails.

* `describe` and `title` name distributions and programs; `shapes_of` names a batch.
* `running` runs a program as a prototype; `failure` and `mismatch` say what it failed on.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pyro_vi.data import Batch, tensors_in
from pyro_vi.errors import InputError, of_program
from pyro_vi.programs.isolation import Program, isolated, kept_buffers


def describe(fn: Any) -> str:
    """Return the name of a distribution in messages: ``Normal``, ``Independent(Normal)``, ``Transformed(Normal)``.

    Example:
        >>> import pyro.distributions as dist
        >>> describe(dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        'Independent(Normal)'
    """
    name = getattr(fn, "described", type(fn).__name__)
    base = getattr(fn, "base_dist", None)
    if name in ("Independent", "MaskedDistribution", "ExpandedDistribution") and base is not None:
        return describe(base) if name == "ExpandedDistribution" else f"{name}({describe(base)})"
    if name == "TransformedDistribution":
        return f"Transformed({describe(base)})"
    return name


def title(program: Program) -> str:
    """Return the name of a program in messages."""
    hidden = getattr(program, "_hidden", None)
    if hidden is not None:
        program = hidden[0]
    return getattr(program, "__qualname__", None) or type(program).__name__


@contextmanager
def running(program: Program, args: Batch) -> Iterator[None]:
    """Run a program within the block as a prototype: without gradients, and nothing that it draws or changes remains.

    Raises:
        InputError: the program fails in the block.
    """
    with torch.no_grad(), isolated(seed=0, validation=False), kept_buffers(program):
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise InputError(failure(program, args, error)) from error


def failure(program: Program, args: Batch, error: Exception) -> str:
    """Return what a program failed on, in one line; what it takes, if it cannot be called so at all."""
    remedy = (
        "; give an array with a row for each datum, such as numpy.stack makes" if "'list' object" in str(error) else ""
    )
    return mismatch(program, args) or f"{title(program)} fails on {shapes_of(args)}: {of_program(error)}{remedy}"


def mismatch(program: Program, args: Batch) -> str:
    """Return what a program takes and what it is given, if it cannot be called so; else an empty text."""
    signature = inspect.signature(program.forward if isinstance(program, torch.nn.Module) else program)
    try:
        signature.bind(*args)
    except TypeError:
        takes, found = ", ".join(signature.parameters), shapes_of(args) if args else "no arguments"
        return (
            f"{title(program)} takes ({takes}), but is given {found}; choose data with these columns, or another model"
        )
    return ""


def shapes_of(args: Batch) -> str:
    """Return the shapes of a batch in messages."""
    found = [str(tuple(a.shape)) for a in tensors_in(args)]
    shapes = ", ".join(found if len(found) <= 6 else [*found[:3], f"… ({len(found)} tensors)"])
    return f"a batch of shape {shapes}" if shapes else "its arguments"
