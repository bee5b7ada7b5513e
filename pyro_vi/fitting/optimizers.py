"""Optimizers and schedules as people give them, and what a fit makes of them.

* `recipe_of` takes ``optimizer``, ``lr`` and ``schedule`` of a fit: names, torch's classes, functions that make an optimizer
  or a scheduler, and Pyro's optimizer objects. It refuses everything else before anything runs.
* `Recipe` makes the optimizer of a pair, and its scheduler.
* `described` lists what an optimizer and a scheduler do, for the configuration of a run.

Pyro's objects step on the loss of `pyro.infer.SVI`, the sum over all data (`pyro_vi.fitting.pyro_optimizers`); everything
else steps on the loss per datum.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_vi.data import Batch
from pyro_vi.errors import InputError, UsageError, kind_and_line
from pyro_vi.fitting.identity import fingerprint
from pyro_vi.fitting.named_optimizers import library, named, plain, rated
from pyro_vi.fitting.plateau import named_schedule
from pyro_vi.fitting.pyro_optimizers import grouped, refuse_used
from pyro_vi.fitting.settings import SCHEDULES, Options
from pyro_vi.programs import Pair
from pyro_vi.support import real, shown

Scheduler = LRScheduler | ReduceLROnPlateau
Rates = float | Mapping[str, float] | Callable[[str], float]
"""A learning rate: one for all parameters, by owner or by name, or a function of the name."""

SPARSE = ("SparseAdam", "SGD", "Adagrad")
"""Optimizers that can take the gradient of ``nn.Embedding(sparse=True)``."""


def _is_optimizer(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Optimizer)


@dataclass(frozen=True)
class Recipe:
    """The optimizer and the schedule of a fit.

    Attributes:
        name: name of the optimizer in the configuration.
        make: makes the optimizer for a pair; the batch is for a run of the pair, where one is needed.
        schedule: a key of `SCHEDULES`, by which the learning rate changes from step to step.
        scheduler: makes a scheduler, which changes the learning rate from epoch to epoch.
        summed: step on the sum of the loss over all data, as `pyro.infer.SVI` does, and not on the loss per datum.
        rate: the learning rate that was given, if the optimizer uses it.
    """

    name: str
    make: Callable[[Pair, Batch], Optimizer]
    schedule: str = "constant"
    scheduler: Callable[[Optimizer], Scheduler] | None = None
    summed: bool = False
    rate: float | str | Mapping[str, float] | None = None

    def build(self, pair: Pair, batch: Batch) -> tuple[Optimizer, Scheduler | None]:
        """Return the optimizer of a pair, and its scheduler.

        Raises:
            UsageError: the optimizer or the scheduler cannot be made, or is not one that a fit can step.
        """
        optimizer = _called(f"optimizer {self.name}", self.make, pair, batch)
        if not isinstance(optimizer, Optimizer):
            raise UsageError(f"optimizer must make a torch optimizer of the parameters, not {_kind(optimizer)}")
        refuse(optimizer, pair)
        for group in optimizer.param_groups:
            if "lr" in group:
                lr = group["lr"]
                group.setdefault("initial_lr", lr.clone() if isinstance(lr, Tensor) else lr)
            elif self.schedule != "constant":
                kind = type(optimizer).__name__
                raise UsageError(f"{kind} has no learning rate that a schedule could change; use schedule='constant'")
        scheduler = None if self.scheduler is None else _called("schedule", self.scheduler, optimizer)
        if scheduler is not None and not isinstance(scheduler, LRScheduler | ReduceLROnPlateau):
            raise UsageError(f"schedule must make a torch scheduler of the optimizer, not {_kind(scheduler)}")
        if scheduler is not None and scheduler.optimizer is not optimizer:
            raise UsageError("schedule must make a scheduler of the optimizer that it is called with, not of another")
        return optimizer, scheduler


def recipe_of(optimizer: Any = None, lr: Any = Options.lr, schedule: Any = None) -> Recipe:
    """Return the recipe for what a caller gave; see `pyro_vi.fit`.

    Raises:
        UsageError: an unknown name or option, or something that is no optimizer, learning rate or schedule.

    Example:
        >>> recipe_of("sgd(momentum=0.9)", 0.1).schedule, recipe_of(torch.optim.SGD, 0.1).schedule
        ('cosine', 'constant')
    """
    rates = _rates(Options.lr if lr is None else lr)
    name, make, own, summed, rated = _maker(optimizer, rates)
    steps, scheduler = _schedule(schedule, "cosine" if own else "constant")
    if isinstance(optimizer, PyroLRScheduler):
        if scheduler is not None:
            raise UsageError(
                "schedule and Pyro's scheduler both change the rate from epoch to epoch; leave schedule out"
            )
        constructor, options = optimizer.pt_scheduler_constructor, dict(optimizer.kwargs)

        def scheduler(made: Optimizer) -> Scheduler:
            found: Scheduler = constructor(made, **options)
            return found

    rate = None if not rated else fingerprint(rates) if callable(rates) else rates
    return Recipe(name, make, steps, scheduler, summed, rate)


def _maker(given: Any, rates: Rates) -> tuple[str, Callable[[Pair, Batch], Optimizer], bool, bool, bool]:
    """Return the name, the maker, and whether it is given by name, steps on the sum, and takes ``lr``."""
    if given is None:
        return "adam", lambda pair, batch: torch.optim.Adam(_groups(pair, rates), fused=True), True, False, True
    if isinstance(given, str):
        _refuse_lbfgs(plain(given) == "lbfgs")
        cls, options = named(given)
        takes = rated(cls) and "lr" not in options
        has = "lr" in inspect.signature(cls).parameters and not hasattr(cls, "train")
        return given, _from_class(cls, options, rates if takes else None), has, False, takes
    if isinstance(given, PyroOptim):
        refuse_used(given)
        name = getattr(given.pt_optim_constructor, "__name__", "optimizer")
        return f"pyro.optim.{name}", lambda pair, batch: grouped(given, pair, batch), False, True, False
    if _is_optimizer(given):
        _refuse_lbfgs(issubclass(given, torch.optim.LBFGS))
        takes = rated(given)
        return given.__qualname__, _from_class(given, {}, rates if takes else None), False, False, takes
    if isinstance(given, Optimizer):
        _refuse_lbfgs(isinstance(given, torch.optim.LBFGS))
        kind = type(given).__name__
        raise UsageError(
            f"optimizer is {_kind(given)} that holds parameters already, and a fit has parameters of its own; "
            f"give a function that makes it: optimizer=lambda parameters: {kind}(parameters, lr=...)"
        )
    if callable(given) and not isinstance(given, nn.Module) and not _is_scheduler(given):
        return _title(given), lambda pair, batch: given(_parameters(pair)), False, False, False
    raise UsageError(
        f"optimizer must be a name, a class of torch.optim, a function that makes an optimizer of parameters, or an "
        f"optimizer of pyro.optim, not {shown(given)}"
    )


def _from_class(
    cls: type[Optimizer], options: Mapping[str, object], rates: Rates | None
) -> Callable[[Pair, Batch], Optimizer]:
    fused = {"fused": True} if cls is torch.optim.Adam and "foreach" not in options else {}

    def make(pair: Pair, batch: Batch) -> Optimizer:
        parameters = _parameters(pair) if rates is None else _groups(pair, rates)
        found: Optimizer = cls(parameters, **{**fused, **options})  # type: ignore[arg-type]
        return found

    return make


def _parameters(pair: Pair) -> list[nn.Parameter]:
    return [parameter for _, parameter in pair.owned().values()]


def _rates(lr: Any) -> Rates:
    if isinstance(lr, Mapping):
        return {str(name): real(f"lr of '{name}'", rate, least=0) for name, rate in lr.items()}
    return lr if callable(lr) and not isinstance(lr, Tensor) else real("lr", lr, above=0)


def _groups(pair: Pair, rates: Rates) -> list[dict[str, Any]]:
    """Return the parameters of a pair in groups, one for each learning rate."""
    owned = pair.owned()
    if isinstance(rates, Mapping):
        found = _by_name({name: owner for name, (owner, _) in owned.items()}, rates)
    elif callable(rates):
        found = {name: real(f"lr('{name}')", rates(name), least=0) for name in owned}
    else:
        found = dict.fromkeys(owned, rates)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, (_, parameter) in owned.items():
        groups.setdefault(found[name], []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def _by_name(owners: Mapping[str, str], rates: Mapping[str, float]) -> dict[str, float]:
    """Return the rate of each parameter: that of its name, else of the longest prefix of it, else of its owner."""
    used, found = set(), {}
    for name, owner in owners.items():
        plain = name.removesuffix("_unconstrained")
        keys = [key for key in rates if key in (name, plain) or plain.startswith(f"{key}.")]
        key = max(keys, key=len, default=owner)
        if key not in rates:
            raise UsageError(f"lr has no rate for parameter '{name}' of the {owner}; add '{owner}' or its name")
        used.add(key)
        found[name] = rates[key]
    for key in rates:
        if key not in used and key not in ("model", "guide"):
            near = difflib.get_close_matches(key, owners, n=1, cutoff=0.4)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"lr names '{key}', which is no parameter of the pair{hint}")
    return found


def _schedule(given: Any, default: str) -> tuple[str, Callable[[Optimizer], Scheduler] | None]:
    if given is None:
        return default, None
    if isinstance(given, str):
        return named_schedule(given)
    if isinstance(given, LRScheduler | ReduceLROnPlateau):
        kind = type(given).__name__
        raise UsageError(
            f"schedule is {_kind(given)} of another optimizer; give a function that makes it: "
            f"schedule=lambda optimizer: {kind}(optimizer, ...)"
        )
    if callable(given) and not _is_optimizer(given) and not isinstance(given, nn.Module | Tensor):
        return "constant", given
    raise UsageError(
        f"schedule must be one of {', '.join(SCHEDULES)}, or a function that makes a torch scheduler of the optimizer, "
        f"not {shown(given)}"
    )


def refuse(optimizer: Optimizer, pair: Pair) -> None:
    """Raise UsageError for an optimizer that a fit cannot step, or that holds other parameters than those of the pair."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    _refuse_lbfgs(isinstance(optimizer, torch.optim.LBFGS))
    if closure is not None and closure.default is closure.empty:
        raise UsageError(
            f"optimizer {type(optimizer).__name__} evaluates the loss by a closure, which a fit does not give it; use another"
        )
    own = {id(parameter) for parameter in _parameters(pair)}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(id(parameter) not in own for parameter in held):
        raise UsageError(
            "the optimizer holds parameters that the fit does not have, because a fit has copies of its own; "
            "make it of the parameters that the function is called with"
        )
    if not held:
        raise UsageError("the optimizer holds no parameters; make it of those that the function is called with")
    for name, module in pair.named_modules():
        sparse = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
        kind = type(optimizer)
        if sparse and kind.__module__.startswith("torch.optim") and kind.__name__ not in SPARSE:
            raise UsageError(
                f"'{name}' has sparse gradients, which {kind.__name__} cannot take; "
                "make it with sparse=False, or use the optimizer 'sgd' or 'adagrad'"
            )


def _refuse_lbfgs(found: bool) -> None:
    if found:
        raise UsageError(
            "optimizer LBFGS evaluates the loss several times in a step on the same draws, which a fit cannot do; "
            "use 'adam' or another one of torch.optim"
        )


def described(optimizer: Optimizer, scheduler: Scheduler | None) -> dict[str, Any]:
    """Return what an optimizer and a scheduler do, in plain values, by which a run with other ones is recognised."""
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        one = {"class": type(optimizer).__name__, **_plain(group, ("params", "initial_lr")), "parameters": 1}
        one["parameters"] = len(group["params"])
        if groups and {**groups[-1], "parameters": 0} == {**one, "parameters": 0}:
            groups[-1]["parameters"] += one["parameters"]
        else:
            groups.append(one)
    made: dict[str, Any] = {"optimizer_groups": groups}
    if library(optimizer) is not None:
        made["optimizer_library"] = library(optimizer)
    if scheduler is None:
        return made
    ignored = ("optimizer", "last_epoch", "base_lrs", "best", "num_bad_epochs", "cooldown_counter")
    return {
        **made,
        "scheduler": {"class": type(scheduler).__name__, **_plain(vars(scheduler), ignored)},
    }


def _plain(values: Mapping[str, Any], ignored: Iterable[str]) -> dict[str, Any]:
    return {k: _value(v) for k, v in values.items() if k not in ignored and not k.startswith("_")}


def _value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    return fingerprint(value)


def _called(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except InputError:
        raise
    except Exception as error:
        raise UsageError(f"{what} cannot be made: {kind_and_line(error)}") from error


def _is_scheduler(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, LRScheduler | ReduceLROnPlateau)


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _title(function: Any) -> str:
    inner = getattr(function, "func", function)  # of a partial
    return str(getattr(inner, "__qualname__", type(inner).__name__))
