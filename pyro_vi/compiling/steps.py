"""Compiled steps of a fit, and the proof that they do what the eager steps do.

* `CompiledSteps` holds one compiled step for each length of a batch. A step is used only if all of this holds: two captures
  under different seeds of Python's generator give the same graph; the programs change no Python state; on two batches, the
  graph has the eager loss and the eager gradient of every parameter; and the compiled step leaves every parameter, optimizer
  state and buffer as the eager step does, there or, at a kink of the loss, at the next steps. Otherwise it raises `NoGraph`
  with a one-line reason, and the fit is unchanged.
* `Raised` is the error of a proved step that later raises on some values. The programs may catch such an error; a graph cannot.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vi.compiling.inductor import Compiled, collecting_later, compile_graph, replayed, why_not
from pyro_vi.compiling.native import Native
from pyro_vi.compiling.proof import copies, digits_of, near, proving
from pyro_vi.compiling.step import MANY, WholeStep
from pyro_vi.data import Batch
from pyro_vi.errors import NoGraph, first_line
from pyro_vi.support import generators, set_generators
from pyro_vi.tracing import reason, same_twice

SMALL = 1e-3
"""Fraction of the largest gradient below which an element of a parameter is not compared. Adam divides a gradient by its size,
so rounding in a tiny gradient can be as large as a step. The optimizer state of such elements is compared."""

SHORT = 2**22
"""Parameters × rows below which a step takes less than about ten times the overhead of its call."""

RAISING = {
    *("_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq", "cholesky"),
    *("_assert_async", "_assert_scalar"),
}
"""Operations that raise an error on some values. The state of the fit is copied before each step that contains one."""

KINKS = 2
"""Steps that must agree after one that does not. At a kink of the loss, such as that of a ReLU, rounding decides on which side
a unit lies, and its gradient jumps. This is rare, and a step later the unit is on one side of it."""


class Differs(NoGraph):
    """A compiled step changes something otherwise than the eager step."""


class Raised(RuntimeError):
    """The error of a compiled step on some values, in one line. The fit is as it was before that step."""


class CompiledSteps:
    """Compiled steps, by the length of the batch and the largest number of steps per call.

    Args:
        whole: the step as a pure function.
        eager: takes one eager step on a batch; returns its loss, and whether the step was taken: loss and gradient are finite.
            Leaves the gradients in the parameters.
    """

    def __init__(self, whole: WholeStep, eager: Callable[[Batch], tuple[Tensor, bool]]) -> None:
        self.whole, self.eager = whole, eager
        self.steps: dict[tuple[int, int], Compiled] = {}
        self.raising: set[int] = set()
        self.kinds: dict[int, list[tuple[tuple[int, ...], torch.dtype]]] = {}

    def __call__(
        self, length: int, many: int, source: Sequence[Tensor], controls: Sequence[tuple[float, float]]
    ) -> tuple[list[float], Tensor]:
        """Take steps on batches of one length; return their losses and the norm of the last gradient.

        A step whose loss or gradient is not finite changes nothing, and neither do the steps after it. The losses are those
        of the steps before it, and `WholeStep.restart` lets the next step change something again.

        Raises:
            Raised: an operation of `RAISING` raised an error in one of the steps.
        """
        self.whole.set(controls)
        before = self.whole.taken()
        # Compiled code draws from torch's generator only.
        restore = _kept(self.whole, torch.get_rng_state, torch.set_rng_state) if length in self.raising else None
        try:
            losses, norm = self._take(length, many, source)
        except Exception as error:
            if restore is None:
                raise
            restore()
            raise Raised(first_line(error).rstrip(".")) from error
        return losses[: round(self.whole.taken() - before)] if self.whole.stopped() else losses, norm

    def _take(self, length: int, many: int, source: Sequence[Tensor]) -> tuple[list[float], Tensor]:
        whole, step = self.whole, self.steps[length, 1]
        inputs = [*whole.tensors, whole.control, *source]
        with torch.no_grad():
            if many == 1:
                loss, norm = step(inputs)
                return [float(loss)], norm
            if isinstance(step, Native):
                losses, (_, norm) = step.several(inputs, many, len(whole.tensors))
                return losses, norm
        return self._take_in_turn(length, many, source)

    def _take_in_turn(self, length: int, many: int, source: Sequence[Tensor]) -> tuple[list[float], Tensor]:
        """Take several steps, each in a call of its own; the result is that of one call."""
        *stored, rows = source
        control, taken = self.whole.control.clone(), []
        try:
            for i, part in enumerate(rows.chunk(many)):
                self.whole.control[0] = control[i]
                (loss,), norm = self._take(length, 1, (*stored, part))
                taken.append(loss)
        finally:
            self.whole.control.copy_(control)
        return taken, norm

    def takes(self, length: int, many: int) -> bool:
        """True if a call can take this number of steps on batches of this length."""
        return (length, 1 if many == 1 else MANY) in self.steps and many <= MANY

    def short(self, length: int) -> bool:
        """True if steps on batches of this length are so short that the overhead of a call matters."""
        return sum(p.numel() for p in self.whole.parameters) * length < SHORT

    def trace(self, length: int, sources: Sequence[Sequence[Tensor]]) -> fx.GraphModule:
        """Return the graph of a step for batches of a length; its loss and gradients are proved.

        Raises:
            NoGraph: the step has no graph, or the graph differs from the programs.
        """
        pair = self.whole.objective.pair
        missing = why_not(self.whole.control.device)
        if missing:
            raise NoGraph(missing)
        losses = self.whole.losses.graph(length, sources)
        with _put_back(self.whole), collecting_later():
            graph = same_twice(lambda: self.whole.trace(losses, sources[0]), pair.model, pair.guide)
        return graph.module()

    def add(self, length: int, graph: fx.GraphModule, sources: Sequence[Sequence[Tensor]]) -> None:
        """Compile a traced step, and keep it if it does what the eager step does.

        Raises:
            NoGraph: the step cannot be compiled, or differs from the eager step.
        """
        if any(not RAISING.isdisjoint(str(node.target).split(".")) for node in graph.graph.nodes):
            self.raising.add(length)
        self.kinds[length] = [_kind(value) for value in sources[0]]
        self.steps[length, 1] = self._compile(graph, sources[0])
        try:
            for source in sources:
                self._prove(length, source)
        except NoGraph:
            del self.steps[length, 1]
            raise

    def add_several(self, length: int, source: Sequence[Tensor]) -> None:
        """Let one call take up to `MANY` steps, if it does what as many calls do; ``source`` has as many batches.

        Raises:
            NoGraph: the batches are not made from row numbers, or a call does something else.
        """
        *stored, rows = source
        if [*map(_kind, stored), ((MANY * length,), torch.int64)] != [*self.kinds[length][:-1], _kind(rows)]:
            raise NoGraph("several steps in a call need row numbers")
        source = (*stored, torch.cat([rows, rows])[len(rows) :])  # in the midst of others, as in an epoch
        with _put_back(self.whole), proving():
            losses, norm = self._take(length, MANY, source)
            after = copies(self.whole.tensors)
        with _put_back(self.whole), proving():
            expected, last = self._take_in_turn(length, MANY, source)
            pairs = [
                *zip(after, self.whole.tensors, strict=True),
                (norm, last),
                (torch.tensor(losses), torch.tensor(expected)),
            ]
            same = all(torch.equal(one.nan_to_num(), two.nan_to_num()) for one, two in pairs)
        if not same:
            raise NoGraph(f"{MANY} steps in one call differ from {MANY} single steps")
        self.steps[length, MANY] = self.steps[length, 1]

    def _compile(self, graph: fx.GraphModule, source: Sequence[Tensor]) -> Compiled:
        whole = self.whole
        compiled = compile_graph(graph, [*copies(whole.tensors), whole.control.clone(), *source])
        if whole.control.device.type == "cuda":
            with _put_back(whole):
                compiled = replayed(compiled, [*whole.tensors, whole.control], source)
        return compiled

    def _eager(self, source: Sequence[Tensor]) -> tuple[Tensor, bool]:
        try:
            return self.eager(self.whole.losses.fetch(*source))
        except Exception as error:  # an error of the programs; the fit will meet it and name the step
            raise NoGraph(reason(error)) from error

    def _prove(self, length: int, source: Sequence[Tensor]) -> None:
        """Raise NoGraph unless the compiled step does what the eager step does, here or at all of the next `KINKS` steps."""
        try:
            self._check_step(length, source)
        except Differs:
            with _put_back(self.whole):
                for _ in range(KINKS):
                    self._step(source)
                    self._check_step(length, source)

    def _step(self, source: Sequence[Tensor]) -> tuple[Tensor, bool]:
        """Take an eager step; return its loss, and whether it was taken: loss and gradient are finite."""
        whole = self.whole
        loss, good = self._eager(source)
        whole.adopt()
        if good:
            whole.count += 1  # the optimizer counts in its own state
        whole.going.fill_(good)
        return loss, good

    def _check_step(self, length: int, source: Sequence[Tensor]) -> None:
        """Raise NoGraph unless the compiled step leaves everything as the eager step does."""
        whole = self.whole
        with _put_back(whole), proving():
            (value,), _ = self._take(length, 1, source)
            after = copies(whole.tensors)
        with _put_back(whole):
            before = copies(whole.tensors)
            expected, good = self._step(source)
            gradients = [p.grad for p in whole.parameters]
            wanted = copies(whole.tensors)
        digits = digits_of(whole.parameters[0])
        if not near(torch.tensor(value, dtype=expected.dtype), expected.cpu(), digits):
            raise NoGraph(f"the compiled loss is {value:.10g} where the programs give {float(expected):.10g}")
        largest = max((float(g.abs().max()) for g in gradients if g is not None and g.numel()), default=0.0)
        for position, (start, one, two) in enumerate(zip(before, after, wanted, strict=True)):
            moved = whole.averages.get(position, position)
            if moved < len(whole.parameters):
                gradient = gradients[moved]
                if not good or (gradient is None and moved == position):
                    agree = torch.equal(one, two)
                else:
                    seen = ... if gradient is None else gradient.abs() > SMALL * largest
                    rounding = 8 * torch.finfo(one.dtype).eps * float(start.abs().max() if start.numel() else 0)
                    agree = near((one - start)[seen], (two - start)[seen], max(0.01, digits), rounding)
                what = f"parameter '{self._name(whole.parameters[moved])}'"
            else:
                what = "the optimizer's state and the buffers"
                # If gradients consist of rounding only, so does their optimizer state.
                slack = digits * 0.01 * max(largest, largest**2) if one.is_floating_point() else 0.0
                agree = near(one, two, digits, slack)
            if not agree:
                raise Differs(f"the compiled step changes {what} differently from the eager step")

    def _name(self, parameter: Tensor) -> str:
        named = self.whole.objective.pair.owned().items()
        return next((name for name, (_, p) in named if p is parameter), "?")


@contextmanager
def _put_back(whole: WholeStep) -> Iterator[None]:
    """Restore the fit and the generators after a block that takes steps."""
    restore = _kept(whole)
    try:
        yield
    finally:
        restore()


def _kept(
    whole: WholeStep, get: Callable[[], Any] = generators, put: Callable[[Any], None] = set_generators
) -> Callable[[], None]:
    """Return a function that restores the present state of the fit, and of the generators that ``get`` reads."""
    start, values, control = get(), copies(whole.tensors), whole.control.clone()
    gradients = [p.grad for p in whole.parameters]

    def restore() -> None:
        whole.adopt()
        with torch.no_grad():
            for tensor, value in zip(whole.tensors, values, strict=True):
                tensor.copy_(value)
            whole.control.copy_(control)
        whole.synchronize()
        for parameter, gradient in zip(whole.parameters, gradients, strict=True):
            parameter.grad = gradient
        put(start)

    return restore


def _kind(value: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(value.shape), value.dtype
