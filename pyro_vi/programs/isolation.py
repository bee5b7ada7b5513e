"""Running of programs without side effects: in a parameter store of their own, with all global state restored.

* `isolated` is the block in which every program runs.
* `kept_buffers` restores buffers, such as running statistics; `moved_parameters` moves parameters for a block; `evaluating`
  sets evaluation mode for a block.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from torch import nn

from pyro_vi.support import kept_generators, seed_generators

Program = Callable[..., Any]
"""A Pyro program: a function, a bound method or a module that is called with a batch."""


def modules_of(program: Program) -> Iterator[nn.Module]:
    """Yield the modules of a program: its submodules, or those in a function's closure, globals and bound object."""
    if isinstance(program, nn.Module):
        yield from program.modules()
        return
    values = [getattr(program, "__self__", None)]
    function = getattr(program, "__func__", program)
    if inspect.isfunction(function):
        seen = inspect.getclosurevars(function)
        values += [*seen.nonlocals.values(), *seen.globals.values()]
    for value in values:
        if isinstance(value, nn.Module):
            yield from value.modules()


@contextmanager
def kept_buffers(program: Program) -> Iterator[None]:
    """Restore the buffers of ``program`` after the block: a run in training mode changes the statistics of a batch norm."""
    before = [(buffer, buffer.detach().clone()) for module in modules_of(program) for buffer in module.buffers(False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                # Writing into a buffer spoils the gradients of what was computed from it, even if the values are the same.
                if not _equal(buffer, value):
                    buffer.copy_(value)


def _equal(buffer: torch.Tensor, value: torch.Tensor) -> bool:
    try:
        return torch.equal(buffer, value)
    except RuntimeError:  # a traced tensor has no value to compare
        return False


@contextmanager
def moved_parameters(program: Program, generator: torch.Generator) -> Iterator[None]:
    """Move every parameter of ``program`` a little at random within the block: its sign stays, and none stays at 0."""
    seen = {id(p): p for module in modules_of(program) for p in module.parameters(False) if p.is_floating_point()}
    before = [(parameter, parameter.detach().clone()) for parameter in seen.values()]
    try:
        with torch.no_grad():
            for parameter, value in before:
                noise = torch.randn(value.shape, generator=generator).to(value)
                parameter.add_(noise.clamp(-2, 2) * torch.where(value == 0, 0.02, 0.05 * value))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)


ALONE = threading.RLock()
"""Held by the one thread that runs programs, as the process has one parameter store and one stack of handlers."""


@contextmanager
def isolated(seed: int | None = None, *, validation: bool | None = None) -> Iterator[None]:
    """Run Pyro programs without side effects: restore the parameter store, validation flags, default dtype and generators.

    Programs run in one thread at a time; another thread waits.

    Args:
        seed: seed for the generators of torch, NumPy and Python, which are restored after the block; without a seed they are
            neither seeded nor restored.
        validation: turns Pyro's validation of distributions and traces on or off within the block; by default unchanged.
    """
    with ALONE:
        yield from _isolated(seed, validation)


def _isolated(seed: int | None, validation: bool | None) -> Iterator[None]:
    dtype, check_args = torch.get_default_dtype(), pyro.settings.get("validate_distributions_torch")
    flag = pyro.poutine.util.is_validation_enabled() if validation is None else validation
    try:
        with (
            pyro.get_param_store().scope(),
            pyro.settings.context(module_local_params=True),
            kept_generators() if seed is not None else nullcontext(),
            pyro.validation_enabled(flag),
        ):
            if seed is not None:
                seed_generators(seed)
            yield
    finally:
        torch.set_default_dtype(dtype)
        pyro.settings.set(validate_distributions_torch=check_args)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Set evaluation mode (dropout, batch norm) for the block; afterwards restore the mode of each submodule."""
    modes = {part: part.training for part in module.modules()}
    if any(modes.values()):
        module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            if part.training != training:  # to set an attribute of a module takes as long as a small operation
                part.training = training
