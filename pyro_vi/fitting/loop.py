"""The loop of a fit: epochs, records, snapshots and checkpoints.

* `Loop` goes from one `Position` to the next by the steps of `pyro_vi.fitting.steps`. Equal settings and seeds give equal bits,
  even if a fit is interrupted and resumed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.compiling import MANY, Choice, Compile, Optimizer
from pyro_vi.data import Batch, Data, Redrawn
from pyro_vi.fitting.averaging import at_evaluation, settle
from pyro_vi.fitting.best import BestSoFar, refuse_unscored
from pyro_vi.fitting.callbacks import Callback, tell
from pyro_vi.fitting.checkpoints import put_back, state_of
from pyro_vi.fitting.convergence import watch_of
from pyro_vi.fitting.ending import ended
from pyro_vi.fitting.failures import NotTaken, Overflowed
from pyro_vi.fitting.folder import RunFolder
from pyro_vi.fitting.interrupt import deferred_interrupt
from pyro_vi.fitting.optimizers import Recipe
from pyro_vi.fitting.plateau import height_of
from pyro_vi.fitting.progress import Progress
from pyro_vi.fitting.records import Records
from pyro_vi.fitting.settings import Options, Position, Settings
from pyro_vi.fitting.stepping import running
from pyro_vi.fitting.steps import Steps
from pyro_vi.programs import Pair

LOGGED = Options.records
"""Number of regular records in a fit."""
REPLAYED = 30
"""Fewest records of a fit that are taken from replayed graphs: to make a graph takes as long as about twenty records."""


class Loop:
    """One fit.

    Args:
        optimizer: a recipe, or a function that makes the optimizer of the parameters.
        compile: True, False or ``"auto"``: see ``mode`` of `pyro_vi.compiling.choice.choose`.
        callbacks: functions that are called with each record.

    Attributes:
        steps: takes the steps.
        state: after `run`, the state from which the fit could continue.
        last: after `run`, parameters and buffers of the last iterate, if the pair has others: an average or the best record's.
        history: the records made so far.
        best: the best record so far.
        chosen: after `run`, the step whose parameters the pair has, if it is not the last one.
        snapshots: parameters at the steps that `Settings.kept` names.
    """

    def __init__(
        self,
        pair: Pair,
        elbo: ELBO,
        data: Data,
        settings: Settings,
        optimizer: Recipe | Callable[[Iterable[torch.nn.Parameter]], Optimizer],
        compile: Compile = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.pair, self.data, self.settings, self.callbacks = pair, data, settings, callbacks
        self.steps = Steps(pair, elbo, data, settings, optimizer, compile)
        self.redrawn = Redrawn(data)
        self.folder: RunFolder | None = None
        self.saved: int | None = None  # the step of the last checkpoint
        self.state: dict[str, Any] = {}
        self.last: dict[str, Tensor] | None = None
        example = data.example(settings.batch_size)
        self.records = Records(self.steps.objective, data, example, settings.seed if settings.same_draws else None)
        refuse_unscored(settings.stop, data.num_heldout, self.records.scored)
        short = data.per_epoch(settings.batch_size) % settings.batch_size
        if short:
            pair.layouts(data.example(short))  # now, as no program may run for that within a compiled step
        self.watch = watch_of(self.records, data, settings)
        self.best = BestSoFar(settings)
        self.chosen: int | None = None
        self.history: list[dict[str, Any]] = []
        self.snapshots: dict[int, dict[str, Tensor]] = {}
        self.every, self.tenth = (max(1, settings.steps // often) for often in (settings.records or LOGGED, 10))

    @property
    def position(self) -> Position:
        """The present position in the fit."""
        return self.steps.position

    @property
    def choice(self) -> Choice | None:
        """The choice of compiled steps, with its reason; None before the first step."""
        return self.steps.choice

    @property
    def stopped(self) -> bool:
        """True if the fit ends before its last step, as the option ``stop`` asks."""
        return self.watch.stopped or self.best.stopped

    def run(self, title: str, folder: RunFolder | None = None, *, resume: bool, progress: bool, note: str = "") -> None:
        """Run to the last step; Ctrl-C and SIGTERM stop the fit between two steps, and a checkpoint is written.

        Raises:
            FitError: a loss or a parameter is not finite, or a program fails at a step.
            InputError: ``compile`` is True and the steps cannot be compiled.
        """
        self.folder = folder
        with (
            running(self.pair, self._example(), self.settings.seed),
            Progress(title, self.settings.steps, progress) as bar,
            deferred_interrupt() as interrupted,
            self._explained(),
            closing(self.steps),
            closing(self.redrawn),
        ):
            before, self.steps.say = self._restore() if resume else None, bar.say
            if note:
                bar.say(note)
            if self.steps.begun and not self.steps.stepper.fresh:
                bar.say(self.steps.choose(before))
            if self.steps.guard.good is None:
                self.steps.mark()
            self._keep()
            while self.position.step < self.settings.steps and not (interrupted or self.stopped):
                for _ in self._epoch(self.settings.steps):
                    now = self.position.step
                    if (
                        now % self.every == 0
                        or now % self.tenth == 0
                        or now in (1, self.settings.steps, *self.settings.kept)
                    ):
                        self.steps.look()
                    self._keep()
                    if now % self.every == 0 or now in (1, self.settings.steps):
                        self._record()
                        bar.update(now, self.history[-1]["elbo"])
                    if self.choice is None and self.steps.begun:
                        bar.say(self.steps.choose())
                        self.steps.mark()
                    if self.steps.ready():
                        bar.say(self.steps.switch())
                        self._checkpoint()  # from here on, a resumed fit takes compiled steps, too
                    if now % self.tenth == 0:
                        self._checkpoint()
                    if interrupted or self.stopped:
                        break
            self._checkpoint()
            self.state = self._state()
            self.last = settle(self.pair, self.steps.stepper.optimizer, self.state)
            self._choose()
            if self.last is not None and self.chosen is None:
                bar.say("the result is the average of the iterates; the last iterate is `Run.last`")

    def take(self, count: int) -> None:
        """Take steps as `run` does, but without records and checkpoints."""
        with running(self.pair, self._example()), closing(self.redrawn):
            last = self.position.step + count
            while self.position.step < last:
                for _ in self._epoch(last):
                    if self.choice is None and self.steps.begun:
                        self.steps.choose()
                    if self.steps.ready():
                        self.steps.switch()
            self.steps.synchronize()

    def _example(self) -> Batch:
        return self.data.example(self.settings.batch_size)

    def _epoch(self, last: int) -> Iterator[None]:
        """Take the remaining steps of an epoch, up to step ``last``; yield after each call."""
        now = self.position
        for rows, source, many in self._deal(last):
            # Taken first: a call that ends at a step that is left out moves the position itself.
            taken = self.steps.take(rows, source, many)
            now.batch += taken
            yield
            if now.step == last:
                return
        self._end_epoch()

    def _end_epoch(self) -> None:
        now = self.position
        mean = self.steps.guard.end_epoch(now.total, now.batch)
        now.epoch, now.batch, now.total = now.epoch + 1, 0, 0.0
        self.steps.end_epoch(mean)

    def _deal(self, last: int) -> Iterator[tuple[Tensor, Batch, int]]:
        """Yield row numbers, the source from which `Data.gather` makes their batch, and their number of steps."""
        now, most = self.position, self.data.spec.num_data
        size = min(self.settings.rows, most)
        if self.data.mapped:
            many = min(self.settings.accumulate or 1, most)
            batches = islice(self.data.batches(now.epoch, self.settings.batch_size), now.batch * many, None)
            while some := list(islice(batches, many)):
                yield torch.cat([rows for rows, _ in some]), tuple(value for _, batch in some for value in batch), 1
            return
        order = self.data.order(now.epoch)[: self.data.per_epoch(self.settings.batch_size)]
        single = order.split(size)
        stored = self.redrawn.stored(now.epoch, more=now.step + len(single) - now.batch < last)
        while now.batch < len(single):
            start, many = now.batch * size, 1
            if self.steps.together():
                many = max(1, min(MANY, (len(order) - start) // size, self._stop(last) - now.step))
            rows = single[now.batch] if many == 1 else order[start : start + many * size]
            yield rows, (*stored, rows), many

    def _stop(self, last: int) -> int:
        """Return the next step at which a call must end: for a record, a snapshot or a checkpoint, or the last step."""
        step, kept = self.position.step, self.settings.kept
        regular = (step - step % often + often for often in (self.every, self.tenth))
        return min(last, *regular, *(k for k in kept if k > step))

    def _record(self) -> None:
        steps, (weight, rate) = self.steps, self.steps.used
        lr, norm = steps.stepper.lr() * rate, steps.norm()
        self.records.replaying = steps.graphs and self.settings.steps // self.every >= REPLAYED
        with at_evaluation(steps.stepper.optimizer) as elsewhere:
            record = self.records.make(self.position, weight=weight, lr=lr, norm=norm)
            self.best.see(record, self.pair, self.folder)
        ratio = (steps.stepper.ratio() or 1.0) * steps.guard.rate
        record["converged"] = self.watch.see(self.position, self.settings, ratio, steps.guard.since).converged
        record |= steps.guard.counts()
        if elsewhere and (self.position.step == self.settings.steps or self.stopped):
            record |= self.records.last(self.position)
        steps.stepper.end_record(height_of(record, self.settings.settled, self.records.units))
        steps.mark()
        self._keep()  # a fit that stops here
        self.position.losses.clear()
        self.history.append(record)
        if self.folder:
            self.folder.log(record)
        tell(self.callbacks, record, self._checkpoint)

    def _keep(self) -> None:
        step = self.position.step
        if step in self.settings.keeps(step, self.stopped) and step not in self.snapshots:
            with at_evaluation(self.steps.stepper.optimizer):
                self.snapshots[step] = {name: value.detach().clone() for name, value in self.pair.state_dict().items()}
            if self.folder:
                self.folder.save(self.snapshots[step], f"snapshot-{step}.pt")

    def _checkpoint(self) -> bool:
        """Write a checkpoint, unless something in it is not finite; return whether it was written."""
        if self.folder is None or self.steps.overflow():
            return False
        self.steps.synchronize()
        self.best.write(self.folder)
        self.folder.save(self._state())
        self.saved = self.position.step
        return True

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (NotTaken, Overflowed) as error:
            raise ended(error, self.folder, self._checkpoint, self.saved) from error

    def _state(self) -> dict[str, Any]:
        state = state_of(self.pair, self.steps.stepper, self.position, self.choice, self.watch, self.best)
        return state | self.steps.guarded()

    def _choose(self) -> None:
        """Put the parameters of the best record into the pair if they are the result; the state keeps the last ones."""
        if self.best.asked:
            self.state["pair"] = {name: value.detach().clone() for name, value in self.state["pair"].items()}
            self.chosen = self.best.give(self.pair)
            self.last = self.state["pair"] if self.chosen is not None else self.last

    def _restore(self) -> dict[str, list[int]] | None:
        """Restore the checkpoint; return its record of compiled steps, or None if there is none."""
        assert self.folder is not None
        if (state := self.folder.load()) is None:
            return None
        changed = self.folder.changed
        batches = self.settings.steps_per_epoch(self.data.per_epoch(self.settings.batch_size))
        self.steps.position = put_back(
            state, self.pair, self.steps.stepper, self.watch, self.best, self.settings, batches, changed
        )
        self.saved = self.position.step
        self.steps.restore(state.get("nonfinite"), changed)
        self.best.find(self.folder, self.position.step)
        self.history = list(self.folder.records)
        for step in self.settings.keeps(self.position.step, self.stopped):
            if step <= self.position.step and (snapshot := self.folder.snapshot(step)) is not None:
                self.snapshots[step] = snapshot
        chosen = state.get("compiled")
        return chosen if isinstance(chosen, dict) and "compile" not in changed else None
