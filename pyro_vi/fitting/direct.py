"""The step of torch's fused Adam and AdamW without the Python code around it.

* `direct_update` returns a function that changes parameters and states exactly as ``optimizer.step()`` does, or None where that
  is not sure: for other optimizers, without ``fused=True``, with hooks, or where a trial gives other numbers.

The Python code of ``step()`` sorts parameters by device and dtype in every call, which takes longer than the arithmetic of a
small network.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vi.support.torch_internals import add_to_each, bare_step, fused_adam, take_step

Direct = Callable[[Sequence[Tensor], float], None]


def direct_update(optimizer: Optimizer, parameters: Sequence[Tensor], fitted: Sequence[int]) -> Direct | None:
    """Return a function of gradients and of a fraction of the learning rate that takes the optimizer's step.

    Args:
        optimizer: the optimizer; it has taken a step, so that it has its states.
        parameters: all parameters.
        fitted: positions of those that have a gradient, in the order of the gradients.
    """
    try:
        made = _made(optimizer, parameters, fitted)
        return made if made is not None and _proved(optimizer, parameters, fitted) else None
    except Exception:  # a torch without the kernel, or an optimizer that cannot be copied
        return None


def _made(optimizer: Optimizer, parameters: Sequence[Tensor], fitted: Sequence[int]) -> Direct | None:
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or bare_step(optimizer) is None:
        return None
    places = {id(parameters[i]): at for at, i in enumerate(fitted)}
    groups = []
    for group in optimizer.param_groups:
        own = [p for p in group["params"] if id(p) in places]
        states = [optimizer.state.get(p) for p in own]
        names = ("exp_avg", "exp_avg_sq", "step", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
        plain = group["fused"] is True and not group["capturable"] and not group["differentiable"]
        if not plain or any(state is None or any(name not in state for name in names) for state in states):
            return None
        kinds = {(p.dtype, p.device) for p in own}
        if len(kinds) > 1 or any(p.is_complex() for p in own):
            return None
        if own:
            lists = {name: [state[name] for state in states] for name in names if states}  # type: ignore[index]
            groups.append((group, [p.detach() for p in own], [places[id(p)] for p in own], lists))
    count = add_to_each()
    steppers = {kind: fused_adam(kind) for kind in (False, True)}

    def update(gradients: Sequence[Tensor], rate: float) -> None:
        with torch.no_grad():
            for group, own, positions, lists in groups:
                count(lists["step"], 1.0)
                beta1, beta2 = group["betas"]
                steppers[bool(group.get("decoupled_weight_decay"))](
                    own,
                    [gradients[i] for i in positions],
                    lists["exp_avg"],
                    lists["exp_avg_sq"],
                    lists.get("max_exp_avg_sq", []),
                    lists["step"],
                    lr=group["lr"] if rate == 1 else group["lr"] * rate,
                    beta1=beta1,
                    beta2=beta2,
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=group["amsgrad"],
                    maximize=group["maximize"],
                )

    return update


def _proved(optimizer: Optimizer, parameters: Sequence[Tensor], fitted: Sequence[int]) -> bool:
    """True if the direct update gives copies of parameters and states the bits that ``step()`` gives them."""
    results = []
    for directly in (True, False):
        twin, own = _copied(optimizer, parameters)
        draws = torch.Generator().manual_seed(0)
        drawn = [torch.randn(own[i].shape, generator=draws, dtype=torch.float64) for i in fitted]
        gradients = [value.to(own[i].device, own[i].dtype) for i, value in zip(fitted, drawn, strict=True)]
        if directly:
            update = _made(twin, own, fitted)
            if update is None:
                return False
            update(gradients, 1.0)
        else:
            for i, gradient in zip(fitted, gradients, strict=True):
                own[i].grad = gradient
            take_step(twin)
        states = [twin.state[p][name] for p in own if p in twin.state for name in sorted(twin.state[p])]
        results.append([p.detach() for p in own] + [value for value in states if isinstance(value, Tensor)])
    return all(map(torch.equal, *results))


def _copied(optimizer: Optimizer, parameters: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
    twin: Any = copy.deepcopy(optimizer)  # without hooks
    pairs = zip(optimizer.param_groups, twin.param_groups, strict=True)
    places = {id(p): q for one, two in pairs for p, q in zip(one["params"], two["params"], strict=True)}
    return twin, [places[id(p)] for p in parameters]
