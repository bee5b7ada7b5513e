"""The steps of a fit, eager or compiled.

* `Steps` takes them, chooses between eager and compiled steps, and does what the option ``nonfinite`` asks for at a loss or a
  gradient that is not finite. Compiled steps stop before such a step, and the eager step decides.

The objective is the loss divided by the number of data, so that learning rates and gradient norms have the same meaning for
every data set.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.compiling import (
    MANY,
    CapturedSteps,
    Choice,
    Chosen,
    Compile,
    CompiledSteps,
    Estimate,
    Held,
    Losses,
    Optimizer,
    Raised,
    Ways,
    WholeStep,
    check_mode,
    choose,
    estimate_step,
    lengths_to_come,
    refuse_without_compiler,
)
from pyro_vi.data import Batch, Data
from pyro_vi.errors import FitError, NoGraph, UsageError
from pyro_vi.estimators import FreeBits, Objective, Parts
from pyro_vi.fitting.failures import Failed, Overflowed, Step, failed, where
from pyro_vi.fitting.guarded import Guarded
from pyro_vi.fitting.named_optimizers import library
from pyro_vi.fitting.optimizers import Recipe
from pyro_vi.fitting.settings import Settings
from pyro_vi.fitting.stepping import Stepper
from pyro_vi.programs import Pair, kept_buffers
from pyro_vi.support import generators, set_generators, torch_generators


class Steps(Guarded):
    """The steps of one fit.

    Args:
        optimizer: a recipe, or a function that makes the optimizer of the parameters.
        compile: True, False or ``"auto"``: see ``mode`` of `pyro_vi.compiling.choice.choose`.

    Attributes:
        position: the present position in the fit.
        guard: counts the steps that are left out, and goes back.
        choice: the choice of compiled steps, with its reason; None before the first step.
        say: takes a line for the user.

    Raises:
        UsageError: the pair has no parameters.
    """

    def __init__(
        self,
        pair: Pair,
        elbo: ELBO,
        data: Data,
        settings: Settings,
        optimizer: Recipe | Callable[[Iterable[torch.nn.Parameter]], Optimizer],
        compile: Compile,
    ) -> None:
        check_mode(compile)
        self.data, self.settings, self.compile = data, settings, compile
        self.parameters = [parameter for _, parameter in pair.owned().values()]
        if not self.parameters:
            raise UsageError("the pair has no parameters to fit; look at it with `audit` or `evidence`")
        if compile is True:
            refuse_without_compiler(self.parameters[0].device)
        example = data.example(settings.batch_size)
        stepper = Stepper(optimizer, pair, example, settings.clip_norm, settings.average)
        free = None if settings.free_bits is None else FreeBits(elbo, settings.free_bits)
        if settings.nonfinite == "restore" and library(stepper.optimizer) is not None:
            name = type(stepper.optimizer).__name__
            raise UsageError(
                f"nonfinite='restore' cannot put back the step sizes that {name} keeps; use 'skip' or 'stop'"
            )
        super().__init__(pair, Objective(pair, elbo, free_bits=free), stepper, settings)
        self.width = len(data.example(1))  # arguments of a batch
        self.used = (1.0, 1.0)  # weight of the KL and fraction of the learning rate in the last step
        self.choice: Choice | None = None
        self._chosen: Chosen | None = None
        self._generators: Callable[[], dict[str, Any]] | None = None  # the state of those that the programs draw from

    def together(self) -> bool:
        """True if a call can take up to `MANY` steps on batches of full length."""
        return self._compiled is not None and (self.settings.rows, MANY) in self._compiled.steps

    def take(self, rows: Tensor, source: Batch, many: int) -> int:
        """Take steps and return their number: ``many``, or one if a compiled call of several steps raised an error.

        If compiled steps meet a loss or a gradient that is not finite, the steps before it are added to the position, and the
        number is one: that step is taken eagerly, or left out.
        """
        start, generator, length = time.perf_counter(), torch.get_rng_state(), len(rows) // many
        now, lowered = self.position, self.guard.rate
        found = [self.settings.controls(now.step + i) for i in range(many)]
        controls = [(weight, rate * lowered) for weight, rate in found]
        self.used = controls[-1]
        if self._captured is not None and many == 1 and length in self._captured.steps:
            self._take_captured(rows, source, start, generator)
            return 1
        if self._compiled is None or not self._compiled.takes(length, many):
            self._take_eagerly(rows, source, start)
            return 1
        try:
            ratio = self.stepper.ratio() or 1.0  # the end of an epoch leaves no compiled steps where there is none
            compiled = [(weight, rate * ratio) for weight, rate in controls]
            values, norm = self._compiled(length, many, source, compiled)
        except Raised as error:
            first = source if many == 1 else (*source[:-1], rows[:length])
            return self._without_graph(error, rows[:length], first)
        except Exception as error:
            raise FitError(str(failed(self.pair, where(now), error))) from error
        now.add(values, time.perf_counter() - start)
        self.guard.took(len(values))
        if len(values) == many:
            self._norm = norm
            return many
        start, parts = time.perf_counter(), rows.split(length)
        sources = [source] if many == 1 else [(*source[:-1], part) for part in parts]
        torch.set_rng_state(generator)
        with torch.no_grad(), kept_buffers(self.pair):
            for done in sources[: len(values)]:  # draw what the steps before it drew
                self.objective(self._fetch(*done))
        self.synchronize()
        self._compiled.whole.restart()
        now.batch += len(values)
        self.used = controls[len(values)]
        self._take_eagerly(parts[len(values)], sources[len(values)], start)
        return 1

    def _take_captured(self, rows: Tensor, source: Batch, start: float, generator: Tensor) -> None:
        """Take a captured step, or an eager one if that one did nothing: the eager step has the cause."""
        assert self._captured is not None
        self.synchronize()
        with torch.no_grad():
            done = self._captured(len(rows), source, *self.used)
        if done is None:
            torch.set_rng_state(generator)
            self._take_eagerly(rows, source, start)
            return
        loss, self._norm = done
        if self._compiled is not None:
            self._compiled.whole.count += 1
        self.position.add([loss], time.perf_counter() - start)
        self.guard.took(1)

    def _take_eagerly(self, rows: Tensor, source: Batch, start: float) -> None:
        """Take an eager step, or do what is asked for if its loss or its gradient is not finite."""
        now, before = self.position, (self._generators or generators)()
        try:
            batch = self._fetch(*source)
            loss, taken = self._descend(batch)
        except Exception as error:
            found = failed(self.pair, where(now), error)
            if isinstance(found, Failed):
                set_generators(before)
            elif isinstance(found, Overflowed) and self.went_back(str(found)):
                self.guard.leave_out(now.step)
                now.step += 1
                return
            raise found from error
        if self._generators is None:
            self._generators = generators if _drew_elsewhere(before) else torch_generators
        if taken:
            now.add([float(loss)], time.perf_counter() - start)
            self.guard.took(1)
            self._norm = None
            return
        self.leave_out(
            Step(where(now), float(loss), self.used[0], self._factor(batch), self.data.numbers(rows), batch, before)
        )
        now.step += 1
        now.seconds += time.perf_counter() - start

    def _factor(self, batch: Batch) -> float:
        return float(self.objective.size(batch)) if self.stepper.summed else 1.0

    def _without_graph(self, error: Raised, rows: Tensor, source: Batch) -> int:
        """Take the step at which a compiled step raised an error eagerly, and turn compiled steps off."""
        place, note = where(self.position), self._go_eager(f"the compiled step raised ({error})")
        taken = self.take(rows, source, 1)
        if self.compile is True:
            raise FitError(f"the compiled step raises {place}, the programs do not: {error}; fit with compile='auto'")
        self.say(note)
        return taken

    def _descend(self, batch: Batch) -> tuple[Tensor, bool]:
        """Take an eager step; return its loss, and whether it was taken; otherwise nothing has changed."""
        self.synchronize()
        (weight, rate), taken = self.used, False
        kept = self._buffers.keep()
        try:
            loss = self.objective(batch, weight)
            taken = bool(loss.isfinite()) and self.stepper.descend(loss, self.objective.size(batch), rate)
        finally:
            if not taken:
                self._buffers.put_back(kept)
        if taken:
            self._buffers.taken(kept)
            if self._compiled is not None:
                self._compiled.whole.count += 1
        return loss.detach(), taken

    def end_epoch(self, loss: float) -> None:
        """Step the scheduler, with the mean loss of the epoch; what a graph cannot follow turns compiled steps off."""
        changed = self.stepper.end_epoch(loss)
        if changed and self._compiled is not None:
            why = f"the scheduler changes {changed}, which a graph would freeze"
            if self.compile is True:
                raise FitError(f"{why}, after step {self.position.step}; fit with compile='auto'")
            self.say(self._go_eager(why))

    def _go_eager(self, why: str) -> str:
        assert self.choice is not None
        self.synchronize()
        self.close()
        self._compiled = None
        if self._chosen is not None:
            self._chosen.pending = None  # no later step is compiled, either
        note = f"{'captured' if self._captured else 'eager'} steps from step {self.position.step + 1} on: {why}"
        self.choice = replace(self.choice, lengths=(), together=(), coming=(), note=note)
        return note

    def _fetch(self, *source: Tensor) -> Batch:
        """Make the batch of a step from its source, or its batches if there are several."""
        size = self.settings.batch_size
        if self.data.mapped:
            parts = [source[i : i + self.width] for i in range(0, len(source), self.width)] if self.width else [source]
        elif len(source[-1]) > size:
            parts = [self.data.gather(source[:-1], rows) for rows in source[-1].split(size)]
        else:
            parts = [self.data.gather(source[:-1], source[-1])]
        return parts[0] if len(parts) == 1 else Parts(parts)

    def choose(self, before: dict[str, list[int]] | None = None) -> str:
        """Choose whether to compile the remaining steps, and return the choice in one line.

        This comes after the first step, because the optimizer has no state before it.
        """
        if self.compile is False:
            self.choice = Choice((), "eager steps: compile=False", 0.0)
            return ""
        settings, data, stepper, now = self.settings, self.data, self.stepper, self.position
        size = settings.rows
        coming = lengths_to_come(data.per_epoch(settings.batch_size), size, now.batch, settings.steps - now.step)
        varying = settings.weight
        fixed = settings.schedule == "constant" and stepper.scheduler is None and settings.nonfinite != "restore"
        rate = 1.0 if fixed else None

        def captured() -> CapturedSteps:
            held = Held(self.pair, stepper.parameters)
            losses = Losses(self.objective, held, self._fetch, varying, self.used[0])
            return CapturedSteps(losses, stepper.along, self._copied)

        def compiled(losses: Losses) -> CompiledSteps:
            ratio = stepper.ratio()
            if ratio is None:
                raise NoGraph("the learning rates of the optimizer's groups change differently")
            if library(stepper.optimizer) is not None:
                name = type(stepper.optimizer).__name__
                raise NoGraph(f"optimizer {name} keeps its step sizes as Python numbers, which a graph would freeze")
            whole = WholeStep(losses, stepper.optimizer, stepper.clip_norm, rate, summed=stepper.summed)
            whole.set([(self.used[0], self.used[1] * ratio)] * MANY)
            return CompiledSteps(whole, self._descend)

        columns: list[Batch] = []

        def sources(length: int, many: int) -> list[Batch]:
            if not columns:  # which may be drawn anew in each call
                columns.append(data.stored(now.epoch))
            stored = columns[0]
            rows = [(torch.arange(length * many) + i * length) % data.spec.num_data for i in (0, 1)]
            if data.mapped:
                return [
                    tuple(v for some in r.split(settings.batch_size) for v in data.gather(stored, some)) for r in rows
                ]
            return [(*stored, r.to(stored[0].device if stored else None)) for r in rows]

        def estimate(length: int) -> Estimate:
            source = sources(length, 1)[0]
            return estimate_step(
                self.objective, self.used[0], stepper.optimizer, settings.clip_norm, lambda: self._fetch(*source)
            )

        ways = Ways(captured, compiled, sources, estimate, now.seconds / max(1, now.step))
        self._chosen = choose(self.compile, ways, coming, before)
        return self._adopt()

    def ready(self) -> bool:
        """True if a step that was compiled in the background can take the place of the captured one."""
        return self._chosen is not None and self._chosen.pending is not None and self._chosen.pending.ended()

    def switch(self) -> str:
        """Take compiled steps from now on, and return that in one line; captured ones go on if there is no code."""
        assert self._chosen is not None and self._chosen.pending is not None
        whole = self._chosen.pending.compiled.whole
        whole.set(
            [(self.used[0], self.used[1] * (self.stepper.ratio() or 1.0))] * MANY
        )  # of the last step, for the proof
        line = self._chosen.switch(self.position.step)
        self._adopt()
        return line

    def close(self) -> None:
        """End the compilation in the background, if there is one."""
        if self._chosen is not None and self._chosen.pending is not None:
            self._chosen.pending.stop()

    @property
    def graphs(self) -> bool:
        """True if steps are captured or compiled."""
        return self._captured is not None or self._compiled is not None

    def _adopt(self) -> str:
        assert self._chosen is not None
        found = self._chosen
        self.choice, self._captured, self._compiled = found.choice, found.captured, found.compiled
        return found.choice.note

    def _copied(self, source: Sequence[Tensor]) -> Sequence[int]:
        """Return the positions in a source of the tensors that are new in each step."""
        return range(len(source)) if self.data.mapped else (len(source) - 1,)


def _drew_elsewhere(before: Mapping[str, Any]) -> bool:
    """True if NumPy's or Python's generator has moved since ``generators`` gave this state."""
    (kind, keys, *rest), now = before["numpy"], generators()
    same = torch.equal(keys, now["numpy"][1]) and [kind, *rest] == [now["numpy"][0], *now["numpy"][2:]]
    return not same or before["python"] != now["python"]
