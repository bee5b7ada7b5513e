"""Programs run without leaving a mark: a parameter store of their own, every global put back.

* `isolated` is the block in which every program runs.
* `ready` makes a program's PyroModules fit to run apart from the global store; `kept_buffers` undoes what a run does to running
  statistics; `evaluating` sets the evaluation mode for a block.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from torch import nn

from pyro_vi.support import kept_generators, seed_generators
from pyro_vi.support.pyro_internals import context_of

Program = Callable[..., Any]


def ready(program: Any) -> None:
    """Let the PyroModules of ``program`` run while Pyro's setting ``module_local_params`` is on.

    Pyro gives a PyroModule what that needs only if the setting was on when it was made, which it is not by default. Those
    of a function are looked for in its closure, its globals and the object that it is bound to.
    """
    for module in modules_of(program):
        context = context_of(module)
        if context is not None and not hasattr(context, "param_state"):
            context.param_state = {"params": {}, "constraints": {}}


def modules_of(program: Any) -> Iterator[nn.Module]:
    """The modules of a program: its own, or those in the closure, the globals and the bound object of a function."""
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
def kept_buffers(program: Any) -> Iterator[None]:
    """Put the buffers of ``program`` back after the block: a run in training mode moves a batch norm's statistics."""
    before = [(buffer, buffer.detach().clone()) for module in modules_of(program) for buffer in module.buffers(False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


@contextmanager
def isolated(seed: int | None = None, *, validation: bool | None = None) -> Iterator[None]:
    """Run Pyro programs without a trace: the parameter store, generators, validation flags and dtype are put back.

    Args:
        seed: seeds the generators of torch, NumPy and Python for the time of the block; by default they run on as they are.
        validation: Pyro's validation of distributions and traces within the block; by default as it is.
    """
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
    """Set evaluation mode (dropout, batch norm) for the block; afterwards each submodule has the mode that it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
