"""Pyro's optimizer objects, `pyro.optim.PyroOptim`, as one torch optimizer of a pair.

Pyro makes a torch optimizer for each parameter when it first meets it, with options that may depend on the name of the
parameter. `grouped` makes the same optimizers and puts them together as groups of one. The steps are the same for every
optimizer that treats its parameters one by one; others are refused.

`names_in_store` gives the names that Pyro's callables expect.
"""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.optim import PyroOptim
from pyro.params.param_store import module_from_param_with_module_name, normalize_param_name, user_param_name
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from pyro_vi.data import Batch
from pyro_vi.errors import InputError, UsageError
from pyro_vi.programs import Pair, draw, isolated, kept_buffers
from pyro_vi.support.pyro_internals import waiting_state


def refuse_used(optimizer: PyroOptim) -> None:
    """Raise UsageError for an optimizer with a state that was loaded, which a fit would leave out."""
    if waiting_state(optimizer):
        raise UsageError("optimizer has a state that was loaded, which a fit cannot take over; give a fresh one")


def grouped(given: PyroOptim, pair: Pair, batch: Batch) -> Optimizer:
    """Return one optimizer with a group for each parameter of a pair, which clips their gradients as Pyro does.

    Raises:
        UsageError: the options differ between the parameters and are not kept in the optimizer's groups.
    """
    owned = pair.owned()
    make: Any = given.pt_optim_constructor
    by_name = callable(given.pt_optim_args) or callable(given.pt_clip_args)
    store = names_in_store(pair, batch) if by_name else {}
    optimizers: list[tuple[dict[str, Any], Optimizer]] = []
    limits: list[tuple[nn.Parameter, dict[str, float]]] = []
    for name, (_, parameter) in owned.items():
        name = store.get(id(parameter), name.removesuffix("_unconstrained"))
        options = _asked(given.pt_optim_args, name, getattr(given, "pt_optim_args_argc", 1))
        optimizers.append((options, make([parameter], **options)))
        limit = _asked(given.pt_clip_args, name, 2)
        if limit:
            limits.append((parameter, limit))
    (first, merged), *others = optimizers
    for options, other in others:
        (group,) = other.param_groups
        hidden = [key for key in {**first, **options} if key not in group and first.get(key) != options.get(key)]
        if hidden:
            raise UsageError(
                f"optimizer {type(merged).__name__} has one '{hidden[0]}' for all parameters; give the same for each of them"
            )
        merged.add_param_group(group)
        merged.state.update(other.state)  # some optimizers make it at once
    if limits:
        merged.register_step_pre_hook(_clipping(limits))
    return merged


def names_in_store(pair: Pair, batch: Batch) -> dict[int, str]:
    """Return the name in Pyro's parameter store of each parameter that a run of the pair meets, by its ``id``.

    A parameter of a network is named ``module$$$submodule.weight``, as in the store.
    """
    found: dict[int, str] = {}
    with isolated(seed=0, validation=False), kept_buffers(pair), torch.no_grad():
        with poutine.trace(param_only=True) as seen:
            draw(pair.model, pair.guide, batch)
        for name, site in seen.trace.nodes.items():
            value = site.get("value")
            if site["type"] == "param" and value is not None:
                leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
                found.setdefault(id(leaf), name)
    return found


def _asked(given: Any, name: str, arguments: int) -> dict[str, Any]:
    """Return the options of a parameter: a dictionary, or what a function of its name, or of module and name, returns."""
    if not callable(given):
        return dict(given)
    parts = (normalize_param_name(name),) if arguments == 1 else (_module(name), user_param_name(name))
    try:
        options = given(*parts)
    except InputError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UsageError(
            f"the options of parameter '{normalize_param_name(name)}' cannot be computed: {told}"
        ) from error
    if not isinstance(options, dict):
        raise UsageError(
            f"the options of parameter '{normalize_param_name(name)}' must be a dictionary, not {options!r}"
        )
    return options


def _module(name: str) -> str | None:
    found: str | None = module_from_param_with_module_name(name)
    return found


def _clipping(limits: list[tuple[nn.Parameter, dict[str, float]]]) -> Callable[..., None]:
    def clip(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, limit in limits:
            if parameter.grad is None:
                continue
            if limit.get("clip_norm") is not None:
                clip_grad_norm_(parameter, limit["clip_norm"])
            if limit.get("clip_value") is not None:
                clip_grad_value_(parameter, limit["clip_value"])

    return clip
