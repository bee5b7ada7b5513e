"""What a fit was asked to do, and where it stands.

* `Settings` is what was asked; `Position` is where the fit is: what a checkpoint holds beside parameters, optimizer and
  generators. `Settings.controls` gives the weight of the KL and the learning rate of a step, which depend on nothing else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from pyro_vi.errors import UsageError

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
"""Learning rate, as a fraction of the first, against the fraction of steps that are done."""


@dataclass(frozen=True)
class Settings:
    """What a fit was asked to do; see `pyro_vi.fit.fit`. ``kept`` are the steps whose parameters are kept.

    Raises:
        UsageError: a setting out of range.
    """

    steps: int
    batch_size: int
    schedule: str
    clip_norm: float | None
    beta: float
    warmup: int
    seed: int
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        for what, bad, wanted in (
            (f"steps {self.steps}", self.steps < 1, "at least 1"),
            (f"batch_size {self.batch_size}", self.batch_size < 1, "at least 1"),
            (f"clip_norm {self.clip_norm}", self.clip_norm is not None and not self.clip_norm > 0, "positive"),
            (f"beta {self.beta}", not (0 <= self.beta < math.inf), "0 or more"),
            (f"warmup {self.warmup}", self.warmup < 0, "0 or more"),
            (f"seed {self.seed}", self.seed < 0, "0 or more"),
            (f"schedule '{self.schedule}'", self.schedule not in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
        ):
            if bad:
                raise UsageError(f"{what} is out of range; it must be {wanted}")
        if self.warmup > self.steps:
            raise UsageError(
                f"a warmup of {self.warmup} steps is longer than the fit ({self.steps} steps), "
                "which would never see the whole KL; shorten it, or set beta"
            )

    def controls(self, step: int) -> tuple[float, float]:
        """Weight of the KL, and learning rate as a fraction of the first, for the step after ``step`` steps.

        Example:
            >>> Settings(10, 5, "linear", None, beta=2.0, warmup=4, seed=0, kept=()).controls(1)
            (0.5, 0.9)
        """
        weight = self.beta * min(1.0, step / self.warmup) if self.warmup else self.beta
        return weight, SCHEDULES[self.schedule](min(1.0, step / self.steps))


@dataclass
class Position:
    """Where a fit stands."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # since the last record
