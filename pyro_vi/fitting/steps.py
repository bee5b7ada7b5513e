"""The steps of a fit, eager or compiled.

* `Steps` takes them, chooses between eager and compiled steps, and explains a loss that is not finite.

The objective is the loss divided by the number of data, so that learning rates and gradient norms have the same meaning for
every data set.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

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
from pyro_vi.fitting.failures import blame, failed, where
from pyro_vi.fitting.optimizers import Recipe
from pyro_vi.fitting.settings import Position, Settings
from pyro_vi.fitting.stepping import Stepper
from pyro_vi.programs import Pair


class Steps:
    """The steps of one fit.

    Args:
        optimizer: a recipe, or a function that makes the optimizer of the parameters.
        compile: True, False or ``"auto"``: see ``mode`` of `pyro_vi.compiling.choice.choose`.

    Attributes:
        position: the present position in the fit.
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
        self.pair, self.data, self.settings, self.compile = pair, data, settings, compile
        self.parameters = [parameter for _, parameter in pair.owned().values()]
        if not self.parameters:
            raise UsageError("the pair has no parameters to fit; look at it with `audit` or `evidence`")
        if compile is True:
            refuse_without_compiler(self.parameters[0].device)
        self.stepper = Stepper(optimizer, pair, data.example(settings.batch_size), settings.clip_norm)
        self.objective = Objective(pair, elbo)
        self.position = Position()
        self.used = (1.0, 1.0)  # weight of the KL and fraction of the learning rate in the last step
        self.choice: Choice | None = None
        self.say: Callable[[str], None] = lambda line: None
        self._compiled: CompiledSteps | None = None
        self._norm: Tensor | None = None  # of the last gradient, if its step was compiled

    def together(self) -> bool:
        """True if a call takes `MANY` steps on batches of full length."""
        return self._compiled is not None and (self.settings.batch_size, MANY) in self._compiled.steps

    def norm(self) -> float:
        """Return the norm of the gradient of the last step, per datum."""
        return float(self.stepper.norm() if self._norm is None else self._norm)

    def take(self, rows: Tensor, source: Batch, many: int) -> int:
        """Take steps and return their number: ``many``, or one if a compiled call of several steps raised an error."""
        start, generator, length = time.perf_counter(), torch.get_rng_state(), len(rows) // many
        now = self.position
        controls = [self.settings.controls(now.step + i) for i in range(many)]
        self.used = controls[-1]
        try:
            if self._compiled is not None and (length, many) in self._compiled.steps:
                ratio = self.stepper.ratio() or 1.0  # the end of an epoch leaves no compiled steps where there is none
                compiled = [(weight, rate * ratio) for weight, rate in controls]
                values, self._norm = self._compiled(length, many, source, compiled)
            else:
                values, self._norm = [float(self._descend(self._fetch(*source)))], None
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
        taken = self.take(rows, source, 1)
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
        self.synchronize()
        weight, rate = self.used
        loss = self.objective(batch, weight)
        if bool(loss.isfinite()):
            self.stepper.descend(loss, self.objective.size(batch), rate)
            if self._compiled is not None:
                self._compiled.whole.count += 1
        return loss.detach()

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
        self._compiled, note = None, f"eager steps from step {self.position.step + 1} on: {why}"
        self.choice = replace(self.choice, lengths=(), together=(), note=note)
        return note

    def _fetch(self, *source: Tensor) -> Batch:
        return source if self.data.mapped else self.data.gather(source[:-1], source[-1])

    def choose(self, before: dict[str, list[int]] | None = None) -> str:
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

        self.choice, self._compiled = choose(self.compile, steps, coming, sources, estimate, before)
        return self.choice.note

    def synchronize(self) -> None:
        if self._compiled is not None:
            self._compiled.whole.synchronize()
