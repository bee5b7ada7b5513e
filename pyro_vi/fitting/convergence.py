"""A test of convergence for the losses of a fit, which are noisy, correlated and have outliers.

* `Watch` takes the losses of a fit, and gives a `Verdict` at any time. Its state is a few hundred numbers.

The test forms block means of the losses since the weight of the KL last changed. A window is the last half, or the last third,
of the blocks. The median of all pairwise slopes of its block means predicts the fall of the loss over the steps ahead (Theil
1950; Sen 1968, doi:10.1080/01621459.1968.10480934). The steps ahead are half as many as were taken, or a quarter of the budget
if that is more. Kendall's S gives limits of the fall, corrected for the lag-1 autocorrelation of the blocks (Hamed and Rao
1998, doi:10.1016/S0022-1694(97)00125-X). When there are `BLOCKS` blocks, neighbours are merged in pairs (dynamic batch means:
Yeh and Schmeiser 2000, doi:10.1016/S0167-6377(00)00048-7). A step counts as the ratio of its learning rate to the first one.

A fit has converged if, in one of the windows, the upper limit of the fall is at most the tolerance, and at most `PRECISE`
tolerances above the fall. The tolerance is 0.1 nats, or a quarter of the standard deviation of the loss of one step if that is
more. A stop is false if the expected loss falls by more than the tolerance over the steps ahead. In the simulations of
``scripts/study_convergence.py``, at most 5 % of the fits of each kind stop falsely. The test cannot see a fall after a plateau
that is longer than half the time before the plateau.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyro_vi.data import Data
from pyro_vi.errors import InputError
from pyro_vi.fitting.records import Records
from pyro_vi.fitting.settings import Position, Settings

BLOCKS = 96
"""When there are so many blocks, neighbours are merged in pairs."""
SHORTEST = 8
"""Steps in one of the first blocks, at the full learning rate."""
FEWEST = 12
"""While the blocks of a window are correlated, neighbours are merged in pairs, but never to fewer blocks than this."""
LEAST = 512
"""No verdict before so many steps since the weight of the KL last changed."""
WINDOWS = (1 / 2, 1 / 3)
"""Windows: the last half and the last third of the blocks, each with a line of its own."""
NATS, DEVIATIONS = 0.1, 0.25
"""The tolerance: so many nats, or so many standard deviations of the loss of one step, whichever is more."""
Z = 1.3
"""Limits of the fall, in standard errors. `Z` and `PRECISE` were chosen so that at most 5 % of simulated fits stop falsely."""
PRECISE = 2.0
"""No convergence if the upper limit is more than so many tolerances above the fall: the noise could hide a fall."""
STEADY = 0.8
"""No stop if the least learning rate in a window is below this fraction of the largest: the loss falls as the rate decays."""


@dataclass(frozen=True)
class Verdict:
    """The result of a test of convergence.

    Attributes:
        converged: True if the fall is at most the tolerance. False if the loss falls or rises by more. None if the losses do
            not decide.
        evidence: the reason, in one sentence.
        steady: the learning rate was nearly constant, so the verdict may stop the fit.
    """

    converged: bool | None
    evidence: str
    steady: bool = False


@dataclass
class Watch:
    """A test for the convergence of a loss.

    Args:
        tolerance: a fall of at most this, in the unit of the losses, counts as none.
        per: the factor that turns losses into the unit of the sentences, and the name of that unit.
        shortest: least number of steps in a block. If the data have a fixed order, these are whole epochs.
        budget: most steps of the fit, each counted as the ratio of its learning rate to the first one.

    Example:
        >>> noise = np.random.default_rng(0).normal(size=2000) / 5
        >>> falling, flat = Watch(), Watch()
        >>> falling.add((noise - np.arange(2000) / 500).tolist())
        >>> flat.add(noise.tolist())
        >>> falling.verdict().converged, flat.verdict().converged, Watch().verdict().converged
        (False, True, None)
    """

    tolerance: float = NATS
    per: tuple[float, str] = (1.0, "nats")
    shortest: int = SHORTEST
    budget: float = 0.0
    weight: float | None = field(default=None, init=False)
    size: float = field(default=0.0, init=False)
    blocks: list[list[float]] = field(default_factory=list, init=False)
    part: list[float] = field(default_factory=list, init=False)
    last: float = field(default=math.nan, init=False)
    stopped: bool = field(default=False, init=False)
    evidence: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        # A block, and the part of one: sum of losses, sum of absolute differences, steps, learning rates of all steps.
        self.size, self.blocks, self.part, self.last = float(self.shortest), [], [0.0] * 4, math.nan

    def add(self, losses: Sequence[float], controls: Sequence[tuple[float, float]] | None = None) -> None:
        """Take the losses of the next steps.

        Args:
            losses: one loss for each step.
            controls: weight of the KL and learning rate of each step, the rate as a fraction of the first one.
        """
        for loss, (weight, rate) in zip(losses, controls or [(1.0, 1.0)] * len(losses), strict=True):
            if weight != self.weight:
                self._restart()
                self.weight = weight
            part = self.part
            part[0] += loss
            part[1] += abs(loss - self.last) if self.last == self.last else 0.0
            part[2] += 1
            part[3] += rate
            self.last = float(loss)
            if part[3] >= self.size - 1e-9:
                self.blocks.append(part)
                self.part = [0.0] * 4
                if len(self.blocks) == BLOCKS:
                    self._halve()

    def _halve(self) -> None:
        pairs = zip(self.blocks[::2], self.blocks[1::2], strict=True)
        self.blocks = [[a + b for a, b in zip(one, two, strict=True)] for one, two in pairs]
        self.size *= 2

    def see(self, now: Position, settings: Settings, ratio: float, without: Collection[int] = ()) -> Verdict:
        """Take the losses since the last record, and return the verdict; it stops the fit if the settings say so.

        Args:
            now: the position of the fit.
            settings: its settings.
            ratio: the learning rate of the optimizer as a fraction of the first one, without the factor of the schedule.
            without: the steps that were left out since then, by the number of steps before them.
        """
        steps = range(now.step - len(now.losses) - len(without), now.step)
        controls = [settings.controls(step) for step in steps if step not in without]
        self.add(now.losses, [(weight, rate * ratio) for weight, rate in controls])
        verdict = self.verdict()
        self.evidence = verdict.evidence
        ended = verdict.converged is True and verdict.steady
        self.stopped = settings.stop == "converged" and ended and now.step > settings.settled
        return verdict

    def verdict(self) -> Verdict:
        """Return whether the loss has converged by now."""
        blocks = np.array(self.blocks).reshape(-1, 4)
        if blocks[:, 2].sum() < LEAST or len(blocks) < BLOCKS // 4:
            return Verdict(None, f"too short to tell: fewer than {LEAST} steps at the final weight of the KL")
        ahead = max(len(blocks) / 2, self.budget / 4 / self.size)
        found = [self._of(blocks[round(len(blocks) * (1 - part)) :], ahead) for part in WINDOWS]
        return next((verdict for verdict in found if verdict.converged), found[0])

    def _of(self, window: np.ndarray, ahead: float) -> Verdict:
        """Return the verdict of one window, on the fall over the next ``ahead`` blocks."""
        sums, moves, counts, times = window.T
        fall, most, least = (-slope * ahead for slope in _slope(sums / counts))
        # The mean absolute difference of two normal numbers is 2 / √π standard deviations.
        deviation = float(np.median(moves / counts)) * math.sqrt(math.pi) / 2
        tolerance = max(self.tolerance, DEVIATIONS * deviation)
        rates = times / counts
        steady = bool(rates.min() >= STEADY * rates.max())
        factor, unit = self.per
        seen = (
            f"a {'fall' if fall >= 0 else 'rise'} of {abs(fall) * factor:.2g} {unit} in {round(ahead * counts.mean())} steps "
            f"(limits of the fall {least * factor:.2g} and {most * factor:.2g}, tolerance "
            f"{tolerance * factor:.2g}), by the losses of the last {int(counts.sum())}"
        )
        if most < -tolerance:
            return Verdict(False, f"not converged: {seen}", steady)
        if most <= tolerance and most - fall <= PRECISE * tolerance:
            return Verdict(True, f"converged: {seen}", steady)
        if least > tolerance:
            return Verdict(False, f"not converged: {seen}", steady)
        return Verdict(None, f"too noisy to tell: {seen}", steady)

    def state(self) -> dict[str, Any]:
        """Return the state in plain values."""
        return {
            name: getattr(self, name) for name in ("weight", "size", "blocks", "part", "last", "stopped", "evidence")
        }

    def restore(self, state: Any) -> None:
        """Restore what `state` returned; None restores nothing.

        Raises:
            InputError: ``state`` is not one that `state` returned.
        """
        if state is None:
            return
        try:
            numbers = [state["size"], state["last"], *state["part"], *(x for block in state["blocks"] for x in block)]
            shapes = all(len(block) == 4 for block in [state["part"], *state["blocks"]])
            fits = shapes and all(type(x) in (int, float) for x in numbers) and type(state["stopped"]) is bool
            fits = fits and isinstance(state["evidence"], str)
            fits = fits and len(state["blocks"]) < BLOCKS and type(state["weight"]) in (int, float, type(None))
        except (TypeError, KeyError):
            fits = False
        if not fits:
            raise InputError("the checkpoint has no state of the test for convergence; start the run again")
        for name in self.state():
            setattr(self, name, state[name])


def watch_of(records: Records, data: Data, settings: Settings) -> Watch:
    """Return the test for convergence of a fit.

    If all data share latents, the tolerance is in nats for all data, otherwise in nats per datum. If minibatches come in a
    fixed order, their losses repeat in each epoch, so a block has the steps of whole epochs.
    """
    shared = records.facts is not None and bool(records.facts.shared)
    per = (float(records.num_data), "nats") if shared else (1.0, "nats per datum")
    batches = settings.steps_per_epoch(data.per_epoch(settings.batch_size))
    shortest = SHORTEST if data.shuffle else math.ceil(SHORTEST / batches) * batches
    budget = settings.steps * (1.0 if settings.schedule == "constant" else 0.5)
    return Watch(NATS / per[0], per, shortest, budget)


def _slope(values: np.ndarray) -> tuple[float, float, float]:
    """Return the median of all pairwise slopes of equidistant values, and its lower and upper limit.

    Example:
        >>> _slope(np.array([0.0, 1.0, 2.0, 3.0, 40.0, 5.0, 6.0, 7.0]))[0]
        1.0
    """
    n = len(values)
    one, two = np.triu_indices(n, 1)
    slopes = np.sort((values[two] - values[one]) / (two - one))
    middle = float(np.median(slopes))
    rest = values - middle * np.arange(n)
    rest = rest - np.median(rest)
    bound = 3 * 1.4826 * float(np.median(np.abs(rest)))
    rest = np.clip(rest, -bound, bound)  # an outlier would hide the correlation of the others
    rest = rest - rest.mean()
    total = float(rest @ rest)
    found = float(rest[1:] @ rest[:-1]) / total if total > 0 else 0.0
    correlation = min(0.9, max(0.0, found + (1 + 4 * found) / n))  # the bias of an estimate from a line's residuals
    if correlation > 0.5 and n >= 2 * FEWEST:
        low, middle, high = (end / 2 for end in sorted(_slope(values[n % 2 :].reshape(-1, 2).mean(1))))
        return middle, low, high
    variance = n * (n - 1) * (2 * n + 5) / 18 * (1 + correlation) / (1 - correlation)
    half = Z * math.sqrt(variance) / 2
    ends = [len(slopes) / 2 - half, len(slopes) / 2 + half]
    low, high = (int(min(len(slopes) - 1, max(0, round(end)))) for end in (ends[0] - 1, ends[1]))
    if ends[0] < 0:  # the limits are beyond all slopes
        width = -ends[0] / half + 1
        return middle, middle - width * (middle - float(slopes[0])), middle + width * (float(slopes[-1]) - middle)
    return middle, float(slopes[low]), float(slopes[high])
