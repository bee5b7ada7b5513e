"""The optimizer of a fit at work: gradients, clipping, learning rates and schedulers.

* `Stepper` takes eager steps on the loss, and steps the scheduler at the end of each epoch, or at each record. Its state goes
  into checkpoints.
* `norm_of` and `clip` are the joint norm of gradients and its limit, for sparse gradients too.

A learning rate has two factors. The optimizer's groups hold its own rate, which the optimizer and the scheduler may change;
the schedule of the fit multiplies it within a step only. So nothing that the optimizer does to its rate is undone.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyro_vi.data import Batch
from pyro_vi.errors import FitError, UsageError, kind_and_line
from pyro_vi.fitting.averaging import averages_itself, averaging, forget
from pyro_vi.fitting.direct import Direct, direct_update
from pyro_vi.fitting.named_optimizers import measured
from pyro_vi.fitting.optimizers import Recipe, described, recipe_of
from pyro_vi.programs import Pair, isolated
from pyro_vi.support import fitting_threads
from pyro_vi.support.torch_internals import take_step


class Stepper:
    """The optimizer of a pair, and its scheduler.

    Args:
        optimizer: how they are made: a recipe, or a function that makes the optimizer of the parameters.
        pair: the pair.
        batch: a batch, for a run of the pair that finds the names of its parameters, if the optimizer needs them.
        clip_norm: limit on the joint norm of all gradients of the loss per datum.
        average: the average of the iterates that the optimizer carries, as `pyro_vi.fitting.averaging.average_of` returns it.

    Attributes:
        optimizer: the optimizer.
        parameters: the parameters that it changes.
        summed: the steps are on the sum of the loss over all data, and not on the loss per datum.
        description: what optimizer and scheduler do at the start, in plain values.
        fresh: the optimizer lacks state until the next step, because a resumed fit has another one or another average.
    """

    def __init__(
        self,
        optimizer: Recipe | Callable[..., Optimizer],
        pair: Pair,
        batch: Batch,
        clip_norm: float | None,
        average: str | None = None,
    ) -> None:
        recipe = optimizer if isinstance(optimizer, Recipe) else recipe_of(optimizer)
        self.optimizer, self.scheduler = _averaged(recipe, average).build(pair, batch)
        if averages_itself(self.optimizer):
            if recipe.schedule != "constant" or self.scheduler is not None:
                name = type(self.optimizer).__name__
                raise UsageError(f"optimizer {name} takes the place of a schedule; leave schedule out")
            self.optimizer.train()  # type: ignore[attr-defined]
        self.summed, self.clip_norm = recipe.summed, clip_norm
        self.recorded = recipe.schedule == "plateau"  # the scheduler is stepped at each record, and not in each epoch
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        self.parameters: list[nn.Parameter] = [p for _, p in pair.owned().values() if id(p) in held]
        self.all = [p for _, p in pair.owned().values()]
        self.fresh = False
        self.factor = 1.0  # of the last loss: the number of data if the steps are on their sum
        self.description = described(self.optimizer, self.scheduler)
        self._direct: dict[tuple[int, ...], Direct | None] = {}  # the fused update of captured steps, or None

    def descend(self, loss: Tensor, num_data: int, rate: float) -> bool:
        """Take a step on a loss per datum of a number of data, with the learning rate times ``rate``.

        Returns:
            Whether it was taken: if the gradient is not finite, parameters, optimizer and the last gradients stay as they are.

        Raises:
            FitError: the optimizer cannot take the step.
        """
        last, factor = [parameter.grad for parameter in self.all], self.factor
        self.factor = float(num_data) if self.summed else 1.0
        for parameter in self.all:
            # SVI sets gradients to zero after a step, so that momentum moves a parameter that the next loss does not depend on.
            kept = parameter.grad if self.summed else None
            parameter.grad = None if kept is None else torch.zeros_like(kept)
        (loss * self.factor if self.summed else loss).backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        # The norm takes one pass over all gradients; it may overflow where they are finite.
        if not (
            bool(norm_of(gradients).isfinite()) or all(bool(g.isfinite().all()) for g in map(values_of, gradients))
        ):
            self.factor = factor
            for parameter, gradient in zip(self.all, last, strict=True):
                parameter.grad = gradient
            return False
        if self.clip_norm is not None:
            clip(self.parameters, self.clip_norm * self.factor)
        try:
            self._step(rate)
        except Exception as error:
            raise FitError(f"the optimizer {type(self.optimizer).__name__} fails: {kind_and_line(error)}") from error
        return True

    def along(
        self, fitted: tuple[int, ...], gradients: list[Tensor], beside: Tensor | None, num_data: int, rate: float
    ) -> Tensor | None:
        """Take a step on gradients of a loss per datum; they may be changed.

        Args:
            fitted: positions in ``parameters`` of those that have a gradient.
            gradients: their gradients.
            beside: all elements of them as one vector, if they lie side by side in memory.
            num_data: the number of data.
            rate: factor of the learning rate.

        Returns:
            Their joint norm after clipping, per datum; None if it is not finite, and then nothing has changed.

        Raises:
            FitError: the optimizer cannot take the step.
        """
        norm = torch.linalg.vector_norm(beside) if beside is not None else norm_of(gradients)
        size = float(norm)
        if not math.isfinite(size):
            return None
        self.factor = float(num_data) if self.summed else 1.0
        if self.clip_norm is not None and (shrink := self.clip_norm / (size + 1e-6 / self.factor)) < 1:
            norm = norm * shrink
            _multiply(gradients if beside is None else [beside], shrink)
        if self.factor != 1:
            _multiply(gradients if beside is None else [beside], self.factor)
        if fitted not in self._direct:
            # On the sum, `step()` also moves parameters that have had a gradient and have none now.
            whole = not self.summed or len(fitted) == len(self.parameters)
            self._direct[fitted] = direct_update(self.optimizer, self.parameters, fitted) if whole else None
        direct = self._direct[fitted]
        if direct is not None:
            direct(gradients, rate)
            return norm
        for parameter in self.parameters:
            # SVI sets gradients to zero after a step, so that momentum moves a parameter that the next loss does not depend on.
            kept = parameter.grad if self.summed else None
            parameter.grad = None if kept is None else torch.zeros_like(kept)
        for i, gradient in zip(fitted, gradients, strict=True):
            self.parameters[i].grad = gradient
        try:
            self._step(rate)
        except Exception as error:
            raise FitError(f"the optimizer {type(self.optimizer).__name__} fails: {kind_and_line(error)}") from error
        # The norm is that of the gradients that the optimizer leaves, as in `norm`: Pyro's ClippedAdam clips them in place.
        return torch.linalg.vector_norm(beside) / self.factor if beside is not None else self.norm()

    def _step(self, rate: float) -> None:
        groups = self.optimizer.param_groups
        if rate == 1:
            take_step(self.optimizer)
            return
        own = [group["lr"] for group in groups]
        used = [lr * rate for lr in own]
        for group, lr in zip(groups, used, strict=True):
            group["lr"] = lr
        take_step(self.optimizer)
        for group, lr, before in zip(groups, own, used, strict=True):
            now = group["lr"]
            group["lr"] = lr if now is before or now == before else lr * (now / before)

    def norm(self) -> Tensor:
        """Return the joint norm of the gradients of the last eager step, per datum."""
        return norm_of(p.grad for p in self.parameters if p.grad is not None) / self.factor

    def lr(self) -> float:
        """Return the present learning rate of the first group, without the factor of the fit's schedule."""
        return float(self.optimizer.param_groups[0].get("lr", math.nan))

    def ratio(self) -> float | None:
        """Return the present learning rate as a fraction of the first one; None if it is not the same for all groups."""
        found = []
        for group in self.optimizer.param_groups:
            now, first = float(group.get("lr", 1.0)), float(group.get("initial_lr", 1.0))
            if now != first and first == 0:
                return None
            if first != 0:  # a rate of 0 stays 0 at any fraction
                found.append(1.0 if now == first else now / first)
        # The same factor on the rates of several groups gives fractions that differ by rounding.
        alike = all(math.isclose(one, found[0], rel_tol=1e-12) for one in found)
        return None if not alike else found[0] if found else 1.0

    def end_epoch(self, loss: float) -> str:
        """Step the scheduler, with the mean loss per datum of the epoch.

        Returns:
            What it changed besides the learning rate of all groups by one factor, which is all that a compiled step follows.
        """
        if self.scheduler is None or self.recorded:
            return ""
        before = self._options()
        step: Any = self.scheduler.step
        try:
            step(*((loss * self.factor,) if takes_loss(self.scheduler) else ()))
        except Exception as error:
            name = type(self.scheduler).__name__
            raise FitError(
                f"the schedule {name}, which is stepped once per epoch, fails: {kind_and_line(error)}"
            ) from error
        after = self._options()
        changed = next((key for one, two in zip(before, after, strict=True) for key in one if one[key] != two[key]), "")
        if changed:
            return f"'{changed}'"
        return "the rates of the groups by different factors" if self.ratio() is None else ""

    def end_record(self, height: float | None) -> None:
        """Step a scheduler that follows the records, with the number of a record; None leaves it as it is."""
        if self.recorded and self.scheduler is not None and height is not None:
            step: Any = self.scheduler.step
            step(height)

    def _options(self) -> list[dict[str, Any]]:
        apart = ("params", "lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
        return [{k: repr(v) for k, v in group.items() if k not in apart} for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer, and of the scheduler if there is one."""
        state = {"optimizer": self.optimizer.state_dict(), "factor": self.factor}
        return state if self.scheduler is None else {**state, "scheduler": _simple(self.scheduler.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any], changed: Collection[str] = ()) -> None:
        """Restore a state that `state_dict` returned; what ``changed`` names keeps its present settings.

        Another optimizer or scheduler starts anew; other options of the same optimizer take the place of those in the state.
        """
        self.factor, self.fresh = state["factor"], bool({"optimizer", "average"} & {*changed})
        if "optimizer" not in changed:
            options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            if {"lr", "optimizer_groups"} & {*changed}:
                for group, own in zip(self.optimizer.param_groups, options, strict=True):
                    group.update({key: own[key] for key in own if key not in measured(self.optimizer)})
            forget(self.optimizer)
        if self.scheduler is not None and not {"optimizer", "schedule", "scheduler"} & {*changed}:
            self.scheduler.load_state_dict(state["scheduler"])


def _averaged(recipe: Recipe, average: str | None) -> Recipe:
    if average is None:
        return recipe
    kind = average

    def make(pair: Pair, batch: Batch) -> Any:
        made: Any = recipe.make(pair, batch)  # which may be no optimizer
        return averaging(made, kind) if isinstance(made, Optimizer) else made

    return replace(recipe, make=make)


@contextmanager
def running(pair: Pair, example: Batch, seed: int | None = None) -> Iterator[None]:
    """Run steps in the block: in isolation, with as many threads as are good for a batch, and without needless warnings."""
    with isolated(seed, validation=False), fitting_threads(pair, example), warnings.catch_warnings():
        # Pyro warns of a loss that is not finite; the fit ends with an error that says more.
        warnings.filterwarnings("ignore", message=r"Encountered (NaN|\+inf|-inf)")
        # Compiled steps take the optimizer's steps without it, and torch takes that for an error.
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)`")
        yield


def _multiply(tensors: Iterable[Tensor], factor: float) -> None:
    for tensor in tensors:
        tensor.mul_(factor)


def takes_loss(scheduler: Any) -> bool:
    """True if a scheduler is stepped with a loss, as `ReduceLROnPlateau` is."""
    if isinstance(scheduler, ReduceLROnPlateau):
        return True
    first = next(iter(inspect.signature(scheduler.step).parameters.values()), None)
    return first is not None and first.default is first.empty and first.kind is not first.VAR_POSITIONAL


def norm_of(gradients: Iterable[Tensor]) -> Tensor:
    """Return the joint norm of gradients.

    Example:
        >>> norm_of([torch.tensor([3.0]), torch.tensor([4.0])])
        tensor(5.)
    """
    return get_total_norm([values_of(gradient) for gradient in gradients])


def values_of(gradient: Tensor) -> Tensor:
    """Return a gradient, or the values that a sparse one holds."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def clip(parameters: Iterable[Tensor], limit: float) -> None:
    """Scale the gradients of parameters down to a joint norm of at most ``limit``."""
    found = [p for p in parameters if p.grad is not None]
    if not any(p.grad.is_sparse for p in found if p.grad is not None):
        clip_grad_norm_(found, limit)
        return
    gradients = [p.grad for p in found if p.grad is not None]
    shrink = (limit / (norm_of(gradients) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(shrink)


def _simple(state: Any) -> Any:
    """Return a scheduler's state with plain dictionaries and lists, the only ones that a checkpoint may hold."""
    if isinstance(state, Mapping):
        return {key: _simple(value) for key, value in state.items()}
    return [_simple(value) for value in state] if isinstance(state, list) else state
