"""Steps that may be left out: those whose loss or gradient is not finite, and updates that overflowed.

* `Guarded` is the part of `pyro_vi.fitting.steps.Steps` that leaves steps out, goes back, or ends the fit with the cause.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from pyro_vi.compiling import CapturedSteps, CompiledSteps
from pyro_vi.estimators.objective import Objective
from pyro_vi.fitting.failures import NotTaken, Overflowed, Step, blame, not_finite, overflow
from pyro_vi.fitting.nonfinite import Buffers, Guard
from pyro_vi.fitting.settings import Position, Settings
from pyro_vi.fitting.stepping import Stepper
from pyro_vi.programs import Pair
from pyro_vi.support import set_generators


class Guarded:
    """Steps that may be left out.

    Args:
        pair: the pair.
        objective: its loss.
        stepper: its optimizer.
        settings: the settings of the fit.

    Attributes:
        position: the present position in the fit.
        guard: counts the steps that are left out, and goes back.
        say: takes a line for the user.
    """

    def __init__(self, pair: Pair, objective: Objective, stepper: Stepper, settings: Settings) -> None:
        self.pair, self.objective, self.stepper = pair, objective, stepper
        self.position = Position()
        self.guard = Guard(settings.nonfinite, pair, stepper.optimizer)
        self.say: Callable[[str], None] = lambda line: None
        self._captured: CapturedSteps | None = None
        self._compiled: CompiledSteps | None = None
        self._norm: Tensor | None = None  # of the last gradient, if its step was captured or compiled
        self._buffers = Buffers(pair, stepper.parameters)
        self._apart = not_finite(pair)

    @property
    def begun(self) -> bool:
        """True if the optimizer has taken a step, so that it has its state."""
        return self.position.step > self.guard.skipped + self.guard.undone

    def norm(self) -> float:
        """Return the norm of the gradient of the last step, per datum."""
        return float(self.stepper.norm() if self._norm is None else self._norm)

    def synchronize(self) -> None:
        """Write the number of compiled steps into the optimizer's state."""
        if self._compiled is not None:
            self._compiled.whole.synchronize()

    def leave_out(self, step: Step) -> None:
        """Leave a step out, and go back if that is asked for.

        Raises:
            FitError: it may not be left out, or the state before it is not finite.
        """
        guard, now = self.guard, self.position
        found = self.overflow()
        if found:
            what = "gradient is not finite" if math.isfinite(step.loss) else f"loss is {step.loss}"
            text = f"the {what} {step.place}: {found}"
            if not self.went_back(text):
                raise Overflowed(text)
        else:
            why = guard.refuses(now.step + 1)
            if guard.policy == "stop" or why or not guard.skipped:
                named = {
                    n: p for n, (_, p) in self.pair.owned().items() if any(p is q for q in self.stepper.parameters)
                }
                text = blame(self.objective, step, named)
            if guard.policy == "stop" or why:
                set_generators(step.generators)
                raise NotTaken(f"{text}; {why}" if why else text)
            if guard.policy == "restore":
                self.went_back(text if not guard.skipped else f"loss or gradient is not finite {step.place}")
            elif not guard.skipped:
                self.say(f"left out: {text}")
        guard.leave_out(now.step)

    def went_back(self, text: str) -> bool:
        """Go back to the last good state, if that is asked for and allowed."""
        if self.guard.policy != "restore" or self.guard.refuses(self.position.step + 1):
            return False
        self.synchronize()
        step = self.guard.go_back(self.position.step)
        if self._compiled is not None:
            self._compiled.whole.restart()
        self.say(f"back to the state after step {step}, at {self.guard.rate:g} of the learning rate: {text}")
        return True

    def mark(self) -> None:
        """Take the present state for the last good one, if the fit may go back to it."""
        if self.guard.policy == "restore":
            self.synchronize()  # the number of steps is in the optimizer's state
            self.guard.mark(self.position.step)

    def guarded(self) -> dict[str, Any]:
        """Return the entry of a checkpoint about the steps that were left out."""
        return self.guard.state(self.norm())

    def restore(self, found: Any, changed: Collection[str]) -> None:
        """Restore the entry that `guarded` returned, but what the ``changed`` settings replace; None restores nothing."""
        self.guard.restore(found, changed)
        self._norm = None if found is None else torch.tensor(self.guard.norm, dtype=torch.float64)

    def look(self) -> None:
        """See that parameters, buffers and the optimizer's state are finite; go back otherwise.

        Raises:
            FitError: they are not, and the fit may not go back.
        """
        found = self.overflow()
        if found and not self.went_back(f"after step {self.position.step}, {found}"):
            why = self.guard.refuses(self.position.step + 1)
            raise Overflowed(f"the fit ends after step {self.position.step}: {found}{f'; {why}' if why else ''}")

    def overflow(self) -> str:
        """Name the first parameter, buffer or state of the optimizer that is not finite; empty if all are finite."""
        return overflow(self.pair, self.stepper.optimizer, self._apart)
