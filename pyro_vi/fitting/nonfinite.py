"""The option ``nonfinite``: leave out steps whose loss or gradient is not finite, or go back to the last good state.

* `Guard` counts the steps that are left out, keeps the state to go back to, and says when there have been too many.
* `Buffers` keeps what a step changes besides the parameters, for a step that is not taken.

A step whose loss or gradient is not finite is never taken: parameters, optimizer and buffers stay as they are. It counts as a
step all the same, so that the schedule, the epochs and the order of the data do not move; its draws are made, so that the next
step has new ones. All this depends on the seed only, and the counts are in the checkpoint.
"""

import copy
import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from pyro_vi.errors import InputError, UsageError
from pyro_vi.programs import Pair
from pyro_vi.support.torch_internals import tensors_of

IN_A_ROW, SHARE, FEW = 10, 0.05, 20
"""``"skip"`` leaves out at most so many steps in a row, and this share of all steps so far, or so many if that is more."""

RESTORES, FACTOR = 5, 0.5
"""``"restore"`` goes back at most so many times, and each time multiplies the learning rate by this."""

SMALL = 2**14
"""Numbers in a buffer that is copied before each eager step. A larger one is copied only if the first step changes it."""


class Guard:
    """The counts of steps that were left out, and the state to go back to.

    Args:
        policy: the option ``nonfinite``.
        pair: the pair.
        optimizer: its optimizer.

    Attributes:
        skipped: number of steps that were left out.
        restored: number of times that the fit went back.
        rate: factor of the learning rate.
        since: the steps left out since the last record, by the number of steps before them.
        in_epoch: number of steps left out in this epoch.
        good: the last good state, that after the last record; None if the fit never goes back.
        norm: norm of the last gradient when the checkpoint was written.

    Raises:
        UsageError: the learning rate cannot be lowered, because the optimizer has none.
    """

    def __init__(self, policy: str, pair: Pair, optimizer: torch.optim.Optimizer) -> None:
        if policy == "restore" and not all("lr" in group for group in optimizer.param_groups):
            raise UsageError(
                f"nonfinite='restore' lowers the learning rate, and {type(optimizer).__name__} has none; use 'skip' or 'stop'"
            )
        self.policy, self.pair, self.optimizer = policy, pair, optimizer
        self.skipped, self.in_a_row, self.in_epoch, self.restored, self.rate = 0, 0, 0, 0, 1.0
        self.undone = 0  # steps that were taken before the fit went back to its start
        self.since: list[int] = []
        self.good: dict[str, Any] | None = None
        self.norm = 0.0

    def refuses(self, step: int) -> str:
        """Return why ``step``, counted from 1, may not be left out; an empty string if it may."""
        if self.policy == "restore" and self.restored >= RESTORES:
            return f"nonfinite='restore' has gone back {RESTORES} times, the most that it may"
        if self.policy == "skip" and self.in_a_row >= IN_A_ROW:
            return f"nonfinite='skip' has left out the {IN_A_ROW} steps before it, the most in a row"
        if self.policy == "skip" and self.skipped >= max(FEW, SHARE * step):
            return f"nonfinite='skip' has left out {self.skipped} of {step - 1} steps, the most that it may"
        return ""

    def leave_out(self, done: int) -> None:
        """Count the step after ``done`` steps as left out."""
        self.skipped, self.in_a_row, self.in_epoch = self.skipped + 1, self.in_a_row + 1, self.in_epoch + 1
        self.since.append(done)

    def took(self, steps: int) -> None:
        """Count steps that were taken."""
        if steps:
            self.in_a_row = 0

    def counts(self) -> dict[str, int]:
        """Return the entries of a record: the numbers so far, if steps may be left out."""
        self.since.clear()
        if self.policy == "stop":
            return {}
        return {"skipped": self.skipped} | ({"restored": self.restored} if self.policy == "restore" else {})

    def end_epoch(self, total: float, batches: int) -> float:
        """Return the mean loss of an epoch, given the sum over the steps that were taken, and the number of batches."""
        taken, self.in_epoch = batches - self.in_epoch, 0
        return total / taken if taken else math.nan

    def mark(self, step: int) -> None:
        """Keep the present state as the last good one."""
        pair = {name: value.detach().clone() for name, value in self.pair.state_dict().items()}
        self.good = {"step": step, "pair": pair, "optimizer": _copied(self.optimizer)}

    def go_back(self, done: int) -> int:
        """Put parameters, buffers and optimizer back into the last good state after ``done`` steps; return that state's step.

        The learning rate is lowered.
        """
        assert self.good is not None
        if not self.good["step"]:
            self.undone = done - self.skipped
        self.pair.load_state_dict(self.good["pair"])
        with torch.no_grad():
            for index, parameter in enumerate(_parameters(self.optimizer)):
                _put(self.optimizer.state, parameter, self.good["optimizer"].get(index))
        self.restored += 1
        self.rate *= FACTOR
        step: int = self.good["step"]
        return step

    def state(self, norm: float) -> dict[str, Any]:
        """Return the entry of a checkpoint, in tensors and plain values; none if no step is ever left out.

        Args:
            norm: norm of the last gradient, which is that of the next record if all steps until then are left out.
        """
        if self.policy == "stop" and not self.skipped:
            return {}
        return {"nonfinite": {**{name: copy.copy(getattr(self, name)) for name in (*COUNTS, *OTHERS)}, "norm": norm}}

    def restore(self, found: Any, changed: Collection[str] = ()) -> None:
        """Restore the entry of a checkpoint that `state` returned; None restores nothing.

        Args:
            found: the entry.
            changed: the settings that differ from those of the checkpoint. A new learning rate is not lowered.

        Raises:
            InputError: it is no such entry, or of another pair.
        """
        if found is None:
            return
        try:
            fits = {*found} == {*COUNTS, *OTHERS} and 0 < found["rate"] <= 1 and type(found["norm"]) is float
            fits &= all(type(n) is int and n >= 0 for n in (*(found[name] for name in COUNTS), *found["since"]))
            fits &= found["good"] is None or self._fits(found["good"])
        except (TypeError, KeyError, AttributeError):
            fits = False
        if not fits:
            raise InputError("the checkpoint has no counts of the steps that were left out; start the run again")
        for name, value in found.items():
            setattr(self, name, copy.copy(value))
        if "lr" in changed or "optimizer" in changed:
            self.rate, self.good = 1.0, None
        if self.policy != "restore":
            self.good = None

    def _fits(self, good: dict[str, Any]) -> bool:
        own, count = self.pair.state_dict(), len(list(_parameters(self.optimizer)))
        return (
            type(good["step"]) is int
            and good["pair"].keys() == own.keys()
            and all(good["pair"][name].shape == value.shape for name, value in own.items())
            and all(0 <= index < count and isinstance(held, dict) for index, held in good["optimizer"].items())
        )


COUNTS, OTHERS = ("skipped", "in_a_row", "in_epoch", "restored", "undone"), ("since", "rate", "good", "norm")


class Buffers:
    """The tensors of a pair that a step may change besides the parameters that it fits, such as statistics of a batch norm.

    Args:
        pair: the pair.
        fitted: the parameters that are fitted.
    """

    def __init__(self, pair: Pair, fitted: Iterable[Tensor]) -> None:
        own = {id(parameter) for parameter in fitted}
        self._places = [
            (values, name, held)
            for module in pair.modules()
            for held, values in enumerate(tensors_of(module))
            for name, value in values.items()
            if value is not None and id(value) not in own
        ]
        self._known = False

    def keep(self) -> list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]]:
        """Return the tensors with copies of their values."""
        return [
            (values, name, value, value.detach().clone())
            for values, name, _ in self._places
            if (value := values[name]) is not None
        ]

    def taken(self, kept: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]]) -> None:
        """See what the first step has changed: large tensors that it left alone are not copied any more."""
        if not self._known:
            moved = {(id(values), name) for values, name, value, was in kept if not _same(values[name], value, was)}
            self._places = [
                (values, name, held)
                for values, name, held in self._places
                if (id(values), name) in moved or (held and (now := values[name]) is not None and now.numel() <= SMALL)
            ]
            self._known = True

    def put_back(self, kept: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]]) -> None:
        """Put the tensors back as they were."""
        with torch.no_grad():
            for values, name, value, was in kept:
                if not _same(values[name], value, was):
                    values[name] = value
                    value.copy_(was)


def _same(now: Tensor | None, value: Tensor, was: Tensor) -> bool:
    return now is value and torch.equal(now, was)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _copied(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """Return a copy of an optimizer's state, by the position of the parameter."""
    return {
        index: {key: _copy(value) for key, value in optimizer.state[parameter].items()}
        for index, parameter in enumerate(_parameters(optimizer))
        if parameter in optimizer.state
    }


def _put(states: Any, parameter: Tensor, saved: dict[str, Any] | None) -> None:
    """Put back the state of one parameter; compiled steps hold its tensors, so these stay the same objects."""
    if saved is None:
        states.pop(parameter, None)
        return
    state = states[parameter]
    for key in [key for key in state if key not in saved]:
        del state[key]
    for key, value in saved.items():
        held = state.get(key)
        if isinstance(held, Tensor) and isinstance(value, Tensor) and held.shape == value.shape:
            held.copy_(value)
        else:
            state[key] = _copy(value)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
