"""Options, settings and position of a fit.

* `Options` holds all options of a fit, with their defaults.
* `Settings` holds the options that its steps depend on. `Settings.controls` gives the weight of the KL and the learning rate
  of a step, which depend on the number of the step only.
* `Position` is the progress of a fit: the part of a checkpoint that is not parameters, optimizer or generators.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from pyro_vi.errors import UsageError

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
"""Learning rate, as a fraction of the initial one, given the fraction of steps that are done."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a fit with their defaults, which Python and the command line share; `pyro_vi.fit` describes each one."""

    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    shuffle: bool | None = None
    drop_last: bool = False
    heldout: float | None = None
    optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer] | None = None
    lr: float = 3e-3
    schedule: str = "cosine"
    clip_norm: float | None = None
    beta: float = 1.0
    warmup: int = 0
    seed: int = 0
    out: str | Path | None = None
    resume: bool = False
    compile: bool | Literal["auto"] = "auto"
    device: str | torch.device | None = None
    progress: bool = True
    check: bool = True


EPOCHS, STEPS = 100, 2000
"""Passes over the data if neither steps nor epochs are given; steps, if each step sees all data."""


@dataclass(frozen=True)
class Settings:
    """The options that the steps of a fit depend on; see `pyro_vi.fit`. ``kept`` lists the steps whose parameters are kept.

    Raises:
        UsageError: a setting is out of range.
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
                "so the KL would never reach its full weight; shorten it, or lower beta"
            )

    def controls(self, step: int) -> tuple[float, float]:
        """Weight of the KL, and learning rate as a fraction of the initial one, for the step that follows ``step`` steps.

        Example:
            >>> Settings(10, 5, "linear", None, beta=2.0, warmup=4, seed=0, kept=()).controls(1)
            (0.5, 0.9)
        """
        weight = self.beta * min(1.0, step / self.warmup) if self.warmup else self.beta
        return weight, SCHEDULES[self.schedule](min(1.0, step / self.steps))


@dataclass
class Position:
    """The progress of a fit: counts of what is done, and the losses since the last record."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # since the last record
