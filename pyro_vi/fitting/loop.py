"""The loop of a fit: steps, records, snapshots and checkpoints.

* `Loop` takes the steps of a fit from one `Position` to the next, eager or compiled. Equal settings and seeds give equal bits,
  even if a fit is interrupted and resumed.

The objective is the loss divided by the number of data, so that learning rates and gradient norms have the same meaning for
every data set.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.compiling import (
    MANY,
    Choice,
    Compile,
    CompiledSteps,
    Estimate,
    Optimizer,
    Raised,
    WholeStep,
    check_mode,
    choose,
    estimate_step,
    lengths_to_come,
    refuse_without_compiler,
)
from pyro_vi.data import Batch, Data
from pyro_vi.errors import FitError, NoGraph, UsageError
from pyro_vi.estimators.objective import Objective
from pyro_vi.fitting.callbacks import Callback, tell
from pyro_vi.fitting.checkpoints import put_back, state_of
from pyro_vi.fitting.convergence import watch_of
from pyro_vi.fitting.failures import blame, failed, where
from pyro_vi.fitting.folder import RunFolder
from pyro_vi.fitting.interrupt import deferred_interrupt
from pyro_vi.fitting.optimizers import Recipe
from pyro_vi.fitting.progress import Progress
from pyro_vi.fitting.records import Records
from pyro_vi.fitting.settings import Position, Settings
from pyro_vi.fitting.stepping import Stepper, running
from pyro_vi.programs import Pair

LOGGED = 100
"""Number of regular records in a fit."""


class Loop:
    """One fit.

    Args:
        optimizer: a recipe, or a function that makes the optimizer of the parameters.
        compile: True, False or ``"auto"``: see ``mode`` of `pyro_vi.compiling.choice.choose`.
        callbacks: functions that are called with each record.

    Attributes:
        state: after `run`, the state from which the fit could continue.
        history: the records made so far.
        snapshots: parameters at the steps that `Settings.kept` names.
        position: the present position in the fit.
        choice: the choice of compiled steps, with its reason; None before the first step.
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
        check_mode(compile)
        self.pair, self.data, self.settings, self.compile, self.callbacks = pair, data, settings, compile, callbacks
        self.folder: RunFolder | None = None
        self.state: dict[str, Any] = {}
        self.parameters = [parameter for _, parameter in pair.owned().values()]
        if not self.parameters:
            raise UsageError("the pair has no parameters to fit; look at it with `audit` or `evidence`")
        if compile is True:
            refuse_without_compiler(self.parameters[0].device)
        example = data.example(settings.batch_size)
        self.stepper = Stepper(optimizer, pair, example, settings.clip_norm)
        self.optimizer = self.stepper.optimizer
        self.objective = Objective(pair, elbo)
        self.records = Records(self.objective, data, example)
        short = data.per_epoch(settings.batch_size) % settings.batch_size
        if short:
            pair.layouts(data.example(short))  # now, as no program may run for that within a compiled step
        self.position = Position()
        self.watch = watch_of(self.records, data, settings)
        self.used = (1.0, 1.0)  # weight of the KL and fraction of the learning rate in the last step
        self.norm: Tensor | None = None  # of the last gradient, if its step was compiled
        self.history: list[dict[str, Any]] = []
        self.snapshots: dict[int, dict[str, Tensor]] = {}
        self.every, self.tenth = (max(1, settings.steps // often) for often in (LOGGED, 10))
        self.choice: Choice | None = None
        self.compiled: CompiledSteps | None = None
        self.say: Callable[[str], None] = lambda line: None

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
        ):
            before, self.say = self._restore() if resume else None, bar.say
            if note:
                bar.say(note)
            if self.position.step:
                bar.say(self._choose(before))
            self._keep()
            while self.position.step < self.settings.steps and not (interrupted or self.watch.stopped):
                for _ in self._epoch(self.settings.steps):
                    self._keep()
                    now = self.position.step
                    if now % self.every == 0 or now in (1, self.settings.steps):
                        self._record()
                        bar.update(now, self.history[-1]["elbo"])
                    if self.choice is None:
                        bar.say(self._choose())
                    if now % self.tenth == 0:
                        self._checkpoint()
                    if interrupted or self.watch.stopped:
                        break
            self._checkpoint()
            self.state = state_of(self.pair, self.stepper, self.position, self.choice, self.watch)

    def take(self, count: int) -> None:
        """Take steps as `run` does, but without records and checkpoints."""
        with running(self.pair, self._example()):
            last = self.position.step + count
            while self.position.step < last:
                for _ in self._epoch(last):
                    if self.choice is None:
                        self._choose()
            self._synchronize()

    def _example(self) -> Batch:
        return self.data.example(self.settings.batch_size)

    def _epoch(self, last: int) -> Iterator[None]:
        """Take the remaining steps of an epoch, up to step ``last``; yield after each call."""
        now = self.position
        for rows, source, many in self._deal(last):
            now.batch += self._step(rows, source, many)
            yield
            if now.step == last:
                return
        self._end_epoch()

    def _end_epoch(self) -> None:
        now = self.position
        changed = self.stepper.end_epoch(now.total / max(1, now.batch))
        now.epoch, now.batch, now.total = now.epoch + 1, 0, 0.0
        if changed and self.compiled is not None:
            why = f"the scheduler changes {changed}, which a graph would freeze"
            if self.compile is True:
                raise FitError(f"{why}, after step {now.step}; fit with compile='auto'")
            self.say(self._go_eager(why))

    def _go_eager(self, why: str) -> str:
        assert self.choice is not None
        self._synchronize()
        self.compiled, note = None, f"eager steps from step {self.position.step + 1} on: {why}"
        self.choice = replace(self.choice, lengths=(), together=(), note=note)
        return note

    def _deal(self, last: int) -> Iterator[tuple[Tensor, Batch, int]]:
        """Yield row numbers, the source from which `_fetch` makes their batch, and the number of steps that they are for."""
        now, size = self.position, self.settings.batch_size
        if self.data.mapped:
            for rows, batch in islice(self.data.batches(now.epoch, size), now.batch, None):
                yield rows, batch, 1
            return
        stored = self.data.stored(now.epoch)
        order = self.data.order(now.epoch)[: self.data.per_epoch(size)]
        single = order.split(size)
        while now.batch < len(single):
            start, many = now.batch * size, 1
            together = self.compiled is not None and (size, MANY) in self.compiled.steps
            if together and start + MANY * size <= len(order) and now.step + MANY <= self._stop(last):
                many = MANY
            rows = single[now.batch] if many == 1 else order[start : start + many * size]
            yield rows, (*stored, rows), many

    def _stop(self, last: int) -> int:
        """Return the next step at which a call must end: for a record, a snapshot or a checkpoint, or the last step."""
        step, kept = self.position.step, self.settings.kept
        regular = (step - step % often + often for often in (self.every, self.tenth))
        return min(last, *regular, *(k for k in kept if k > step))

    def _fetch(self, *source: Tensor) -> Batch:
        return source if self.data.mapped else self.data.gather(source[:-1], source[-1])

    def _step(self, rows: Tensor, source: Batch, many: int) -> int:
        """Take steps and return their number: ``many``, or one if a compiled call of several steps raised an error."""
        start, generator, length = time.perf_counter(), torch.get_rng_state(), len(rows) // many
        now = self.position
        controls = [self.settings.controls(now.step + i) for i in range(many)]
        self.used = controls[-1]
        try:
            if self.compiled is not None and (length, many) in self.compiled.steps:
                ratio = self.stepper.ratio() or 1.0  # `_end_epoch` leaves no compiled steps where there is none
                compiled = [(weight, rate * ratio) for weight, rate in controls]
                values, self.norm = self.compiled(length, many, source, compiled)
            else:
                values, self.norm = [float(self._descend(self._fetch(*source)))], None
        except Raised as error:
            first = source if many == 1 else (*source[:-1], rows[:length])
            return self._without_graph(error, rows[:length], first)
        except Exception as error:
            raise failed(self.pair, where(now), error) from error
        if not all(map(math.isfinite, values)):
            self._blame(values, rows.split(length), source, generator)
        now.add(values, time.perf_counter() - start)
        return many

    def _without_graph(self, error: Raised, rows: Tensor, source: Batch) -> int:
        """Take the step at which a compiled step raised an error eagerly, and turn compiled steps off."""
        place, note = where(self.position), self._go_eager(f"the compiled step raised ({error})")
        taken = self._step(rows, source, 1)
        if self.compile is True:
            raise FitError(f"the compiled step raises {place}, the programs do not: {error}; fit with compile='auto'")
        self.say(note)
        return taken

    def _blame(self, values: list[float], rows: Sequence[Tensor], source: Batch, generator: Tensor) -> None:
        """Raise FitError for the first loss that is not finite; that step and later ones have changed nothing."""
        bad = next(i for i, value in enumerate(values) if not math.isfinite(value))
        batches = [self._fetch(*source[:-1], part) for part in rows] if len(rows) > 1 else [self._fetch(*source)]
        torch.set_rng_state(generator)
        with torch.no_grad():
            for batch in batches[:bad]:  # draw what the steps before it drew
                self.objective(batch)
        self.position.step += bad
        self.position.batch += bad
        place, generator = where(self.position), torch.get_rng_state()
        raise FitError(blame(self.objective, values[bad], place, self.data.numbers(rows[bad]), batches[bad], generator))

    def _descend(self, batch: Batch) -> Tensor:
        """Take an eager step and return its loss; if the loss is not finite, the step changes nothing."""
        self._synchronize()
        weight, rate = self.used
        loss = self.objective(batch, weight)
        if bool(loss.isfinite()):
            self.stepper.descend(loss, self.objective.size(batch), rate)
            if self.compiled is not None:
                self.compiled.whole.count += 1
        return loss.detach()

    def _choose(self, before: dict[str, list[int]] | None = None) -> str:
        """Choose whether to compile the remaining steps, and return the choice in one line.

        This comes after the first step, because the optimizer has no state before it.
        """
        if self.compile is False:
            self.choice = Choice((), "eager steps: compile=False", 0.0)
            return ""
        settings, data, stepper, now = self.settings, self.data, self.stepper, self.position
        size = settings.batch_size
        coming = lengths_to_come(data.per_epoch(size), size, now.batch, settings.steps - now.step)
        varying = settings.controls(0)[0] if not settings.warmup else None
        rate = 1.0 if settings.schedule == "constant" and stepper.scheduler is None else None

        def steps() -> CompiledSteps:
            ratio = stepper.ratio()
            if ratio is None:
                raise NoGraph("the learning rates of the optimizer's groups change differently")
            whole = WholeStep(
                self.objective, stepper.optimizer, stepper.clip_norm, varying, rate, summed=stepper.summed
            )
            whole.set([(self.used[0], self.used[1] * ratio)] * MANY)
            return CompiledSteps(whole, self._fetch, self._descend)

        def sources(length: int, many: int) -> list[Batch]:
            stored = data.stored(now.epoch)
            rows = [(torch.arange(length * many) + i * length) % data.spec.num_data for i in (0, 1)]
            return [
                data.gather(stored, r) if data.mapped else (*stored, r.to(stored[0].device if stored else None))
                for r in rows
            ]

        def estimate(length: int) -> Estimate:
            source = sources(length, 1)[0]
            return estimate_step(
                self.objective, self.used[0], stepper.optimizer, settings.clip_norm, lambda: self._fetch(*source)
            )

        self.choice, self.compiled = choose(self.compile, steps, coming, sources, estimate, before)
        return self.choice.note

    def _synchronize(self) -> None:
        if self.compiled is not None:
            self.compiled.whole.synchronize()

    def _record(self) -> None:
        (weight, rate), norm = self.used, self.stepper.norm() if self.norm is None else self.norm
        record = self.records.make(self.position, weight=weight, lr=self.stepper.lr() * rate, norm=float(norm))
        record["converged"] = self.watch.see(self.position, self.settings, self.stepper.ratio() or 1.0).converged
        self._keep()  # a fit that stops here
        self.position.losses.clear()
        self.history.append(record)
        if self.folder:
            self.folder.log(record)
        tell(self.callbacks, record, self._checkpoint)

    def _keep(self) -> None:
        step = self.position.step
        if step in self.settings.keeps(step, self.watch.stopped) and step not in self.snapshots:
            self.snapshots[step] = {name: value.detach().clone() for name, value in self.pair.state_dict().items()}
            if self.folder:
                self.folder.save(self.snapshots[step], f"snapshot-{step}.pt")

    def _checkpoint(self) -> None:
        if self.folder is not None and all(bool(p.isfinite().all()) for p in self.parameters):
            self._synchronize()
            self.folder.save(state_of(self.pair, self.stepper, self.position, self.choice, self.watch))

    def _restore(self) -> dict[str, list[int]] | None:
        """Restore the checkpoint; return its record of compiled steps, or None if there is none."""
        assert self.folder is not None
        if (state := self.folder.load()) is None:
            return None
        size, changed = self.settings.batch_size, self.folder.changed
        batches = math.ceil(self.data.per_epoch(size) / size)
        self.position = put_back(state, self.pair, self.stepper, self.watch, self.settings, batches, changed)
        self.history = list(self.folder.records)
        for step in self.settings.keeps(self.position.step, self.watch.stopped):
            if step <= self.position.step and (snapshot := self.folder.snapshot(step)) is not None:
                self.snapshots[step] = snapshot
        chosen = state.get("compiled")
        return chosen if isinstance(chosen, dict) and "compile" not in changed else None
