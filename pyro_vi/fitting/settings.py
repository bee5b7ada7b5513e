"""Options, settings and position of a fit.

* `Options` holds all options of a fit, with their defaults.
* `Settings` holds the options that its steps depend on. `Settings.controls` gives the weight of the KL and the learning rate
  of a step, which depend on the number of the step only.
* `Position` is the progress of a fit: the part of a checkpoint that is not parameters, optimizer or generators.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from pyro_vi.errors import UsageError, first_line
from pyro_vi.fitting.annealing import Beta, beta_of, refuse_together, settled, weight_at
from pyro_vi.fitting.averaging import checked
from pyro_vi.fitting.callbacks import callbacks_of
from pyro_vi.fitting.identity import fingerprint
from pyro_vi.support import Real, Whole, flag, parse, real, seed_from, shown, whole, word

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "plateau": lambda done: 1.0,
}
"""Learning rate, as a fraction of the initial one, given the fraction of steps that are done. That of a plateau depends on the
records: see `pyro_vi.fitting.plateau`."""

PLATEAU = {"factor": 0.3, "patience": 10, "threshold": 0.01}
"""Options of the schedule ``"plateau"``: the rate is multiplied by the factor if the ELBO has not risen by more than the
threshold (in nats) for so many records."""

NONFINITE = ("stop", "skip", "restore")
"""Values of the option ``nonfinite``."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a fit with their defaults, which Python and the command line share; `pyro_vi.fit` describes each one.

    Numbers of NumPy and torch become plain ones.

    Raises:
        UsageError: a value that is no number, or is out of range.
    """

    steps: Whole | None = None
    epochs: Whole | None = None
    batch_size: Whole | None = None
    accumulate: Whole = 1
    shuffle: bool | None = None
    drop_last: bool = False
    heldout: Real | None = None
    optimizer: Any = None
    average: str | None = None
    lr: Real | Mapping[str, Real] | Callable[[str], Real] | None = 3e-3
    schedule: Any = None
    clip_norm: Real | None = None
    nonfinite: str = "stop"
    beta: Real | Callable[[float], Real] = 1.0
    warmup: Whole = 0
    cycles: Whole | None = None
    free_bits: Real | None = None
    stop: str | None = None
    patience: Whole = 20
    records: Whole = 100
    seed: Whole = 0
    starts: Whole = 1
    out: str | Path | None = None
    resume: bool = False
    compile: bool | Literal["auto", "captured"] = "auto"
    device: str | torch.device | None = None
    progress: bool = True
    check: bool = True
    allow: Any = ()
    callbacks: Any = ()

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise UsageError("give steps or epochs, not both")
        for name in ("steps", "epochs", "batch_size"):
            self._set(name, partial(whole, least=1), optional=True)
        for name, least in (("warmup", 0), ("patience", 1), ("records", 1), ("starts", 1)):
            self._set(name, partial(whole, least=least))
        self._set("seed", lambda name, value: seed_from(value))
        self._set("beta", beta_of)
        self._set("cycles", partial(whole, least=1), optional=True)
        refuse_together(self.beta, self.warmup, self.cycles)
        self._set("free_bits", partial(real, above=0), optional=True)
        self._set("accumulate", partial(whole, least=1))
        self._set("clip_norm", partial(real, above=0), optional=True)
        self._set("nonfinite", partial(word, choices=NONFINITE))
        self._set("heldout", partial(real, least=0, below=1), optional=True)
        for name in ("shuffle", "drop_last", "resume", "progress", "check"):
            self._set(name, flag, optional=name == "shuffle")
        if not isinstance(self.compile, bool) and self.compile not in ("auto", "captured"):
            raise UsageError(f"compile must be True, False, 'auto' or 'captured', not {shown(self.compile)}")
        if self.stop not in (None, "converged", "heldout"):
            raise UsageError(f"stop must be None, 'converged' or 'heldout', not {shown(self.stop)}")
        if self.patience != Options.patience and self.stop != "heldout":
            raise UsageError("patience is for stop='heldout'; give both, or leave patience out")
        if self.stop == "converged" and isinstance(self.schedule, str) and self.schedule in ("linear", "cosine"):
            raise UsageError(
                f"stop='converged' cannot end a fit whose rate decays until its last step; leave schedule='{self.schedule}' "
                "out, or give 'constant'"
            )
        target, given = parse(self.schedule) if isinstance(self.schedule, str) else ("", {})
        if self.stop == "converged" and target == "plateau":
            raise UsageError(
                "stop='converged' could end a fit just before schedule='plateau' lowers its rate, after which the loss falls "
                "again; use stop='heldout', or leave one of them out"
            )
        falls: Any = {**PLATEAU, **given}["patience"]
        if self.stop == "heldout" and target == "plateau" and isinstance(falls, int) and self.patience <= falls:
            raise UsageError(
                f"stop='heldout' with patience={self.patience} ends the fit before schedule='plateau' lowers its rate, after "
                f"{falls} records; give a longer patience, or schedule='plateau(patience={max(1, self.patience // 2)})'"
            )
        self._set("average", lambda name, value: checked(value))
        self._set("device", lambda name, value: device(value), optional=True)
        if not isinstance(self.out, str | Path | None):
            raise UsageError(f"out must be the path of a folder, not {shown(self.out)}")
        allow = (self.allow,) if isinstance(self.allow, str) else self.allow
        if not isinstance(allow, Collection) or not all(isinstance(name, str) for name in allow):
            raise UsageError(f"allow must be names of settings, such as ('versions', 'lr'), not {shown(self.allow)}")
        object.__setattr__(self, "allow", tuple(allow))
        object.__setattr__(self, "callbacks", callbacks_of(self.callbacks))
        if self.resume and self.out is None:
            raise UsageError("resume needs the folder of a run; give it as out")

    def _set(self, name: str, check: Callable[[str, Any], Any], *, optional: bool = False) -> None:
        value = getattr(self, name)
        if not (optional and value is None):
            object.__setattr__(self, name, check(name, value))


def device(given: str | torch.device) -> torch.device:
    """Return a device that this machine has.

    Raises:
        UsageError: there is no such device, or it cannot be used.
    """
    try:
        found = torch.device(given)
        torch.empty(0, device=found)
    except Exception as error:
        raise UsageError(f"device {shown(given)} cannot be used: {first_line(error)}; use 'cpu'") from error
    return found


def fractions(snapshots: Any) -> list[float]:
    """Return the fractions of a fit at which snapshots are taken.

    Raises:
        UsageError: they are no numbers from 0 to 1.
    """
    try:
        given = list(snapshots)
    except TypeError:
        raise UsageError(
            f"snapshots must be fractions of the fit, such as (0, 0.5, 1), not {shown(snapshots)}"
        ) from None
    found = [real("each of snapshots", value, least=0) for value in given]
    if any(value > 1 for value in found):
        raise UsageError(f"snapshots must be fractions of the fit, from 0 to 1, not {shown(max(found))}")
    return found


EPOCHS, STEPS = 100, 2000
"""Passes over the data if neither steps nor epochs are given; steps, if each step sees all data."""


@dataclass(frozen=True)
class Settings:
    """The options that the steps of a fit depend on; see `pyro_vi.fit`. ``kept`` lists the steps whose parameters are kept.

    Raises:
        UsageError: the warm-up is longer than the fit.
    """

    steps: int
    batch_size: int
    schedule: str
    clip_norm: float | None
    beta: Beta
    warmup: int
    seed: int
    kept: tuple[int, ...]
    stop: str | None = None
    nonfinite: str = "stop"
    patience: int | None = None
    cycles: int | None = None
    free_bits: float | None = None
    accumulate: int | None = None  # None for 1, as in the configurations of older runs
    average: str | None = None
    records: int | None = None  # None for the default, as in the configurations of older runs

    def __post_init__(self) -> None:
        if self.warmup > self.steps:
            raise UsageError(
                f"a warmup of {self.warmup} steps is longer than the fit ({self.steps} steps), "
                "so the KL would never reach its full weight; shorten it, or lower beta"
            )
        if self.cycles and 2 * self.cycles > self.steps:
            raise UsageError(
                f"{self.cycles} cycles of the weight of the KL need at least {2 * self.cycles} steps, and the fit has "
                f"{self.steps}; give fewer cycles, or more steps"
            )
        if self.stop and callable(self.beta) and self.settled >= self.steps - 1:
            raise UsageError(
                f"beta changes until the last step, so stop='{self.stop}' could never end the fit; leave stop out, or let "
                "beta be constant at the end"
            )

    def controls(self, step: int) -> tuple[float, float]:
        """Weight of the KL, and learning rate as a fraction of the initial one, for the step that follows ``step`` steps.

        Example:
            >>> Settings(10, 5, "linear", None, beta=2.0, warmup=4, seed=0, kept=()).controls(1)
            (0.5, 0.9)
        """
        weight = weight_at(step, self.steps, self.beta, self.warmup, self.cycles)
        return weight, SCHEDULES[self.schedule](min(1.0, step / self.steps))

    @property
    def same_draws(self) -> bool:
        """True if all records use the same draws, because a decision rests on the difference of two records."""
        return self.stop == "heldout" or self.schedule == "plateau"

    @property
    def weight(self) -> float | None:
        """The weight of the KL in every step; None if it changes from step to step."""
        return None if callable(self.beta) or self.warmup or self.cycles else self.beta

    @cached_property
    def settled(self) -> int:
        """Steps after which the weight of the KL no longer changes."""
        return self.warmup or settled(self.steps, self.beta, self.cycles)

    @property
    def rows(self) -> int:
        """Rows of a step: those of all batches whose gradients it averages."""
        return self.batch_size * (self.accumulate or 1)

    def steps_per_epoch(self, rows: int) -> int:
        """Steps of an epoch of ``rows`` rows; the last one may have fewer batches, and its last batch fewer rows."""
        return math.ceil(rows / self.rows)

    def config(self) -> dict[str, Any]:
        """The settings as plain values; a function is named by its fingerprint."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**found, "beta": fingerprint(self.beta) if callable(self.beta) else self.beta}

    def keeps(self, step: int, stopped: bool) -> list[int]:
        """Steps whose parameters are kept; a fit that stopped at ``step`` keeps those, and none of later steps."""
        return sorted({min(kept, step) if stopped else kept for kept in self.kept})


@dataclass
class Position:
    """The progress of a fit: counts of what is done, and the losses since the last record."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # since the last record
    total: float = 0.0  # sum of the losses of this epoch

    def add(self, losses: list[float], seconds: float) -> None:
        """Count steps, by their losses, and their time."""
        self.step += len(losses)
        self.losses += losses
        self.total += sum(losses)
        self.seconds += seconds
