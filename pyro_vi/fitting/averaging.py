"""Averages of the iterates of a fit, and the parameters at which a fit is evaluated.

* `average_of` checks the option ``average`` of a fit; `averaging` makes an optimizer carry the average in its own state. So it
  goes into checkpoints, and is a part of compiled steps.
* `evaluated` gives the values at which a fit is evaluated, and `at_evaluation` puts them in place for a record. They are the
  average, or what a schedule-free optimizer gives; for other optimizers they are the parameters themselves.

Averages are of the unconstrained parameters. Buffers, such as the statistics of a batch norm, are those of the last iterate.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vi.compiling.step import AVERAGE
from pyro_vi.errors import UsageError
from pyro_vi.fitting.named_optimizers import plain
from pyro_vi.support import check_options, parse, real, shown, unknown

ETA = 8.0
"""Order of the polynomial decay: the last iterates weigh most, and the first ones almost nothing."""
COUNT = "averaged"
"""Key of an optimizer's state, beside the first average: the number of steps in it."""
MARK = "order_of_average"
"""Attribute of an optimizer that averages: η."""
BY_DEFAULT = ("dog", "dowg")
"""Optimizers whose guarantees are for an average of the iterates."""


def checked(average: object) -> str | None:
    """Return the option ``average`` with all its numbers.

    Raises:
        UsageError: it is none of the averages.

    Example:
        >>> checked("polynomial"), checked("none"), checked(None)
        ('polynomial(eta=8.0)', 'none', None)
    """
    if average is None:
        return None
    if not isinstance(average, str):
        raise UsageError(f"average must be 'polynomial', 'polynomial(eta=8)' or 'none', not {shown(average)}")
    name, options = parse(average)
    if name not in ("polynomial", "none"):
        raise unknown("average", name, ("polynomial", "none"))
    check_options(f"average '{name}'", options, ("eta",) if name == "polynomial" else ())
    return name if name == "none" else f"polynomial(eta={real('eta', options.get('eta', ETA), least=0)})"


def average_of(average: object, optimizer: str) -> str | None:
    """Return the average that a fit takes, or None: the one that was asked for, else that of the optimizer of this name.

    Example:
        >>> average_of(None, "dog(start=1e-4)"), average_of(None, "adam"), average_of("none", "dog")
        ('polynomial(eta=8.0)', None, None)
    """
    found = checked(average) or (checked("polynomial") if plain(optimizer) in BY_DEFAULT else None)
    return None if found == "none" else found


def averaging(optimizer: Optimizer, average: str) -> Optimizer:
    """Make an optimizer carry the polynomial-decay average of its iterates (Shamir and Zhang 2013, arXiv:1212.1824), and return
    it; it stays an instance of its own class.

    Raises:
        UsageError: the optimizer averages by itself, or its steps are not those of its class.

    Example:
        >>> x = torch.nn.Parameter(torch.zeros(()))
        >>> optimizer = averaging(torch.optim.SGD([x], lr=1.0), "polynomial(eta=8)")
        >>> for _ in range(10):
        ...     x.grad = -torch.ones(())
        ...     optimizer.step()
        >>> float(x.detach()), round(float(evaluated(optimizer)[id(x)]), 5)
        (10.0, 9.1)
    """
    cls = type(optimizer)
    if averages_itself(optimizer):
        raise UsageError(f"optimizer {cls.__name__} averages its iterates by itself; leave average out")
    if "step" in vars(optimizer):
        raise UsageError(
            f"the step of optimizer {cls.__name__} was replaced, so that it cannot average; leave average out"
        )
    order = real("eta", parse(average)[1].get("eta", ETA), least=0)
    step = _step(cls, order)
    step.hooked = True  # type: ignore[attr-defined]  # torch calls the optimizer's hooks around its own step
    optimizer.__class__ = type(cls.__name__, (cls,), {"__module__": cls.__module__, "step": step, MARK: order})
    return optimizer


def _step(cls: type[Optimizer], eta: float) -> Callable[..., Any]:
    """Return a step of an optimizer of a class that updates the averages afterwards:
    mₜ = (1 − (η + 1) / (t + η)) mₜ₋₁ + (η + 1) / (t + η) θₜ. A parameter has an average from its first gradient on: before
    that, it has not moved."""

    @torch.no_grad()
    def step(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        # A first value is put into the state after the step only: optimizers make their own state where there is none.
        begun = {p: p.clone() for p in parameters if p.grad is not None and AVERAGE not in self.state.get(p, {})}
        loss = cls.step(self, closure)
        for p, start in begun.items():
            self.state[p][AVERAGE] = start
        held = [p for p in parameters if AVERAGE in self.state.get(p, {})]
        if not held:
            return loss
        count = next((self.state[p][COUNT] for p in held if COUNT in self.state[p]), None)
        if count is None:
            count = self.state[held[0]][COUNT] = torch.zeros((), dtype=held[0].real.dtype, device=held[0].device)
        count.add_(1)
        weight = (eta + 1) / (count + eta)
        for p in held:
            average = self.state[p][AVERAGE]
            average.lerp_(p, weight.to(average.device, average.dtype))
        return loss

    return step


def forget(optimizer: Optimizer) -> None:
    """Remove the averages of another run from the state of an optimizer that makes none."""
    for state in () if hasattr(optimizer, MARK) else optimizer.state.values():
        for key in (AVERAGE, COUNT):
            state.pop(key, None)


def averages_itself(optimizer: Optimizer) -> bool:
    """True for a schedule-free optimizer (Defazio et al. 2024, arXiv:2405.15682): it steps at one point, and is evaluated at
    another, between which its methods ``train`` and ``eval`` change."""
    modes = all("train_mode" in group for group in optimizer.param_groups)
    return modes and all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


@torch.no_grad()
def evaluated(optimizer: Optimizer) -> dict[int, Tensor]:
    """Return the values at which a fit is evaluated, by the ``id`` of the parameter, where they are not the parameter's own.

    The parameters do not change, not even by rounding.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if hasattr(optimizer, MARK):
        return {id(p): optimizer.state[p][AVERAGE] for p in parameters if AVERAGE in optimizer.state.get(p, {})}
    if not averages_itself(optimizer):
        return {}
    with _restoring(parameters):
        change: Any = optimizer
        change.eval()
        found = {id(p): p.detach().clone() for p in parameters}
    for group in optimizer.param_groups:  # `train` would change the parameters by rounding
        group["train_mode"] = True
    return found


@contextmanager
def at_evaluation(optimizer: Optimizer) -> Iterator[bool]:
    """In the block, the parameters have the values at which the fit is evaluated; afterwards they have their own bits again.

    The block gets True if these differ from the parameters of the steps.
    """
    values = evaluated(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if id(p) in values]
    with _restoring(parameters):
        _put(parameters, values)
        yield bool(values)


def settle(pair: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Tensor] | None:
    """Give a pair the values at which its fit is evaluated, for good.

    Args:
        pair: the pair.
        optimizer: its optimizer.
        state: the state of the fit, which keeps the parameters of the last iterate.

    Returns:
        Parameters and buffers of the last iterate; None if they are the result.
    """
    values = evaluated(optimizer)
    if not values:
        return None
    last = {name: value.detach().clone() for name, value in pair.state_dict().items()}
    state["pair"] = last
    _put([p for p in pair.parameters() if id(p) in values], values)
    return last


@torch.no_grad()
def _put(parameters: Iterable[Tensor], values: Mapping[int, Tensor]) -> None:
    for p in parameters:
        p.copy_(values[id(p)])


def named(pair: nn.Module, values: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Return the values of `evaluated` by the names that they have in the state of a pair; a shared one has several."""
    state = pair.state_dict(keep_vars=True)
    return {name: values[id(p)] for name, p in state.items() if id(p) in values}


@contextmanager
def _restoring(parameters: list[nn.Parameter]) -> Iterator[None]:
    kept = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)
