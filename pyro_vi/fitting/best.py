"""The best record of a fit, by its held-out number, and its parameters.

* `Best` names the record. `BestSoFar` follows the records, keeps the parameters of the best one, and says when the patience is
  over.
* `HELDOUT` lists the held-out numbers of a record; `number_of` picks one.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from pyro_vi.errors import InputError, UsageError
from pyro_vi.fitting.folder import RunFolder
from pyro_vi.fitting.reading import BEST, read_best
from pyro_vi.fitting.settings import Settings

HELDOUT = {
    "heldout_elbo": "held-out ELBO",
    "heldout_lpd": "held-out log predictive density",
    "heldout_log_joint": "held-out log p(x, z)",
}
"""Held-out numbers of a record, in words: the first that is there and finite is compared."""


class Best(NamedTuple):
    """The best record of a fit: its step, its held-out number in nats per datum, and the key of that number."""

    step: int
    value: float
    quantity: str


def number_of(record: Mapping[str, Any], names: Any = HELDOUT) -> tuple[str, float] | None:
    """Return the first of some numbers that a record has and that is finite, with its name; None if there is none.

    Example:
        >>> number_of({"heldout_elbo": math.nan, "heldout_log_joint": -2.0})
        ('heldout_log_joint', -2.0)
    """
    found = ((name, record.get(name)) for name in names)
    return next(((name, value) for name, value in found if value is not None and math.isfinite(value)), None)


class BestSoFar:
    """The best record so far. A record is better if its held-out number is higher, by however little.

    Args:
        settings: the settings of the fit. With ``stop="heldout"``, all records use the same draws, so that their noise cancels
            in a difference. Records until the weight of the KL has changed for the last time do not count
            against the patience.

    Attributes:
        best: the best record, or None if no record has a held-out number.
        since: number of records since then, without those of the warm-up.
        parameters: the parameters at the best record; None if they are not kept, or in the folder only.
    """

    def __init__(self, settings: Settings) -> None:
        self.patience, self.warmup = settings.patience, settings.settled
        self.asked = settings.stop == "heldout"
        self.best: Best | None = None
        self.since = 0
        self.parameters: dict[str, Tensor] | None = None
        self._written: int | None = None  # the step whose parameters are in the folder

    @property
    def stopped(self) -> bool:
        """True if as many records as the patience allows have brought no better one."""
        return self.asked and self.patience is not None and self.since >= self.patience

    def see(self, record: Mapping[str, Any], pair: nn.Module, folder: RunFolder | None) -> None:
        """Compare a record with the best one. Its parameters are kept if ``stop="heldout"`` or if there is a folder."""
        if not any(name in record for name in HELDOUT):
            return
        found = number_of(record)
        if found is not None and (self.best is None or found[1] > self.best.value):
            self.best, self.since = Best(record["step"], found[1], found[0]), 0
            if self.asked or folder is not None:
                self.parameters = {name: value.detach().clone() for name, value in pair.state_dict().items()}
        elif record["step"] > self.warmup:
            self.since += 1

    def write(self, folder: RunFolder) -> None:
        """Write the parameters of the best record, unless they are written already. This comes before each checkpoint."""
        if self.best is None or self.parameters is None or self.best.step == self._written:
            return
        folder.save({"pair": self.parameters, "step": self.best.step}, BEST)
        self._written = self.best.step
        if not self.asked:
            self.parameters = None

    def give(self, pair: nn.Module) -> int | None:
        """Put the best parameters into the pair if they are the result of the fit; return their step, else None."""
        if not self.asked or self.best is None:
            return None
        if self.parameters is None:
            warnings.warn(
                f"the parameters of the best record (step {self.best.step}) are lost; the fit returns those of its last step",
                stacklevel=3,
            )
            return None
        pair.load_state_dict(self.parameters)
        return self.best.step

    def state(self) -> dict[str, Any]:
        """Return the state in plain values, without the parameters."""
        return {"best": None if self.best is None else list(self.best), "since": self.since}

    def restore(self, state: Any) -> None:
        """Restore what `state` returned; None, of an earlier version, restores nothing.

        Raises:
            InputError: ``state`` is not one that `state` returned.
        """
        if state is not None:
            self.best, self.since = best_in(state), state["since"]

    def find(self, folder: RunFolder, now: int) -> None:
        """Find the parameters of the best record in the folder of a run that is continued at step ``now``."""
        if self.best is None:
            return
        found, why = read_best(folder.path, folder.run)
        if found is not None and found["step"] == self.best.step:
            self._written, self.parameters = self.best.step, found["pair"] if self.asked else None
        elif found is None or found["step"] <= now:  # a later one is of steps that will be taken again
            why = why or f"it is of step {found['step'] if found else ''}"
            warnings.warn(
                f"'{folder.path / BEST}' is not used: {why}; the parameters of the best record (step {self.best.step}) are "
                "lost, and the run continues without them",
                stacklevel=3,
            )


def best_in(state: Any) -> Best | None:
    """Return the best record in the state of a `BestSoFar`.

    Raises:
        InputError: it is no such state.
    """
    try:
        best, since = state["best"], state["since"]
        found = None if best is None else Best(*best)
        fits = type(since) is int and since >= 0
        fits = fits and (found is None or (type(found.step) is int and type(found.value) in (int, float)))
        fits = fits and (found is None or found.quantity in HELDOUT)
    except (TypeError, KeyError):
        fits = False
    if not fits:
        raise InputError("the checkpoint has no state of the best record; start the run again")
    return found


def refuse_unscored(stop: str | None, heldout: int, scored: bool) -> None:
    """Refuse to stop a fit by held-out data that there are none of, or that have no number.

    Args:
        stop: the option ``stop``.
        heldout: number of rows that are held out.
        scored: whether records have a held-out number.

    Raises:
        UsageError: so it is.
    """
    if stop == "heldout" and not heldout:
        raise UsageError("stop='heldout' needs held-out rows, and this fit holds out none; give heldout=0.1")
    if stop == "heldout" and not scored:
        raise UsageError(
            "stop='heldout' needs a number of the held-out rows, and this pair has none, because a latent that all data share "
            "is summed out, a latent of a datum is at a point, or the model has no data plate; use stop='converged'"
        )
