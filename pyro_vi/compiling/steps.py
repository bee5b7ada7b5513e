"""Compiled steps of a fit, and the proof that they are the eager ones.

* `CompiledSteps` holds one compiled step for each length of a batch. A step is used only when all of this holds: two
  captures under different states of Python give the same graph; no Python state changes as the programs run; the graph has the
  eager value and the eager gradient of every parameter on two batches; and the compiled step leaves every parameter, optimizer
  state and buffer as the eager step leaves it.
* Whatever fails raises `NoGraph` with one line that says what, and leaves the fit as it was.
* `Raised` is for a proved step that raises later, on a value: the programs may catch that, and a graph cannot.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vi.compiling.inductor import Compiled, compile_graph, replayed, why_not
from pyro_vi.compiling.step import MANY, WholeStep, several
from pyro_vi.data import Batch
from pyro_vi.errors import NoGraph, first_line
from pyro_vi.support import generators, set_generators
from pyro_vi.tracing import reason, same_twice

DIGITS = {torch.float64: 1e-9, torch.float32: 1e-4}
"""To what fraction of a tensor's largest element compiled and eager steps must agree, by dtype; 0.02 for shorter ones."""
SMALL = 1e-3
"""A gradient below this fraction of the largest is not looked at in the parameters: Adam divides by its size, and would show
rounding as large as a step. Its optimizer state is looked at."""

SHORT = 2**22
"""Parameters × rows below which a step takes less than some ten times what a call does."""

RAISING = {
    *("_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq", "cholesky"),
    *("_assert_async", "_assert_scalar"),
}
"""Operations that raise on some values. Before a step with one of them, the state of the fit is copied."""

Fetch = Callable[..., Batch]


class Raised(RuntimeError):
    """A compiled step raised on a value; one line that says how. The fit stands where it stood before that step."""


class CompiledSteps:
    """Compiled steps, by the length of the batch.

    Args:
        whole: what a step is.
        fetch: makes a batch from a source, by operations that a graph can hold.
        eager: takes one step in place, for a batch; gives its loss, and leaves the gradients in the parameters.
    """

    def __init__(self, whole: WholeStep, fetch: Fetch, eager: Callable[[Batch], Tensor]) -> None:
        self.whole, self.fetch, self.eager = whole, fetch, eager
        self.steps: dict[tuple[int, int], Compiled] = {}
        self.raising: set[int] = set()

    def __call__(
        self, length: int, many: int, source: Sequence[Tensor], controls: Sequence[tuple[float, float]]
    ) -> tuple[list[float], Tensor]:
        """Take steps on batches of a length; gives their losses and the norm of the last gradient.

        A loss that is not finite has changed nothing, nor have the steps after it.

        Raises:
            Raised: an operation of `RAISING` did, in one of the steps.
        """
        self.whole.set(controls)
        # Compiled code draws from torch only.
        restore = _kept(self.whole, torch.get_rng_state, torch.set_rng_state) if length in self.raising else None
        try:
            losses, norm = self._take(length, many, source)
        except Exception as error:
            if restore is None:
                raise
            restore()
            raise Raised(first_line(error).rstrip(".")) from error
        return [float(losses)] if many == 1 else losses.tolist(), norm

    def _take(self, length: int, many: int, source: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        whole = self.whole
        with torch.no_grad():
            losses, norm = self.steps[length, many]([*whole.tensors, whole.control, *source])
        return losses, norm

    def short(self, length: int) -> bool:
        """Whether steps on batches of this length are so short that the time of a call shows."""
        return sum(p.numel() for p in self.whole.parameters) * length < SHORT

    def trace(self, sources: Sequence[Sequence[Tensor]]) -> fx.GraphModule:
        """The graph of a step on sources of one length, seen to hold all that the programs do.

        Raises:
            NoGraph: it does not.
        """
        pair = self.whole.objective.pair
        missing = why_not(self.whole.control.device)
        if missing:
            raise NoGraph(missing)
        with _put_back(self.whole):
            graph = same_twice(lambda: self.whole.trace(tuple(sources[0]), self.fetch), pair.model, pair.guide)
        with _put_back(self.whole):
            for source in sources:
                self._check_gradients(graph, source)
        return graph

    def add(self, length: int, graph: fx.GraphModule, sources: Sequence[Sequence[Tensor]]) -> None:
        """Compile a traced step, and keep it if it does what the eager one does.

        Raises:
            NoGraph: it cannot be compiled, or does something else.
        """
        if any(not RAISING.isdisjoint(str(node.target).split(".")) for node in graph.graph.nodes):
            self.raising.add(length)
        self.steps[length, 1] = self._compile(_without_gradients(graph), sources[0])
        try:
            for source in sources:
                self._check_step(length, source)
        except NoGraph:
            del self.steps[length, 1]
            raise

    def add_several(self, length: int, graph: fx.GraphModule, source: Sequence[Tensor]) -> None:
        """Compile several steps in a row, on a source of as many batches, and see that they do what single ones do.

        Raises:
            NoGraph: they cannot be compiled, or do something else.
        """
        whole = self.whole
        inputs = [*_copies(whole.tensors), whole.control, *source]
        with _proving():
            graph = several(graph, len(whole.tensors), inputs)
        self.steps[length, MANY] = self._compile(graph, source)
        try:
            self._check_several(length, source)
        except NoGraph:
            del self.steps[length, MANY]
            raise

    def _check_several(self, length: int, source: Sequence[Tensor]) -> None:
        whole = self.whole
        with _put_back(whole), _proving():
            losses, _ = self._take(length, MANY, source)
            after = _copies(whole.tensors)
        with _put_back(whole):
            *stored, rows = source
            control = whole.control.clone()
            for i, part in enumerate(rows.chunk(MANY)):
                whole.control[0] = control[i]
                loss, _ = self._take(length, 1, (*stored, part))
                if not _near(losses[i], loss, _digits(loss)):
                    raise NoGraph(f"step {i + 1} of {MANY} in one call has another loss than on its own")
            # Over several steps Adam turns rounding of small gradients into differences of a step's size.
            if not all(_near(one, two, 0.02) for one, two in zip(after, whole.tensors, strict=True)):
                raise NoGraph(f"{MANY} steps in one call leave other parameters than one by one")

    def _compile(self, graph: fx.GraphModule, source: Sequence[Tensor]) -> Compiled:
        whole = self.whole
        compiled = compile_graph(graph, [*_copies(whole.tensors), whole.control.clone(), *source])
        if whole.control.device.type == "cuda":
            with _put_back(whole):
                compiled = replayed(compiled, [*whole.tensors, whole.control], source)
        return compiled

    def _eager(self, source: Sequence[Tensor]) -> Tensor:
        try:
            return self.eager(self.fetch(*source))
        except Exception as error:  # of the programs: the fit will come to it, and say at which step
            raise NoGraph(reason(error)) from error

    def _check_gradients(self, graph: fx.GraphModule, source: Sequence[Tensor]) -> None:
        """The graph, not yet compiled, has the program's loss and gradients."""
        self.whole.adopt()
        start = generators()
        with torch.no_grad(), _proving():
            loss, _, *gradients = graph(*_copies(self.whole.tensors), self.whole.control, *source)
        set_generators(start)
        expected = self._eager(source)
        digits = _digits(loss)
        if not _near(loss, expected, digits):
            raise NoGraph(f"the graph's loss is {float(loss):.10g} where the programs give {float(expected):.10g}")
        if not bool(expected.isfinite()):  # the fit ends here, and says why
            return
        found = [(p, p.grad) for p in self.whole.parameters if p.grad is not None]
        largest = max((float(g.abs().max()) for _, g in found if g.numel()), default=0.0)
        if len(found) != len(gradients):
            raise NoGraph(
                "the graph has no gradient of some parameters: the programs hold them where they cannot be seen, as a "
                "recurrent network of torch does"
            )
        for (parameter, wanted), gradient in zip(found, gradients, strict=True):
            if not _near(gradient, wanted, digits, digits * 0.01 * largest):
                raise NoGraph(
                    f"the graph's gradient of parameter '{self._name(parameter)}' is not that of the programs"
                )

    def _check_step(self, length: int, source: Sequence[Tensor]) -> None:
        """The compiled step leaves everything as the eager one does."""
        whole = self.whole
        with _put_back(whole), _proving():
            loss, _ = self._take(length, 1, source)
            after = _copies(whole.tensors)
        with _put_back(whole):
            before = _copies(whole.tensors)
            expected = self._eager(source)
            whole.adopt()
            finite = bool(expected.isfinite())
            if finite:
                whole.count += 1  # which the optimizer counts in its own way
            whole.going.fill_(finite)
            gradients = [p.grad for p in whole.parameters]
            wanted = _copies(whole.tensors)
        digits = _digits(whole.parameters[0])
        if not _near(loss, expected, digits):
            raise NoGraph(f"the compiled loss is {float(loss):.10g} where the programs give {float(expected):.10g}")
        largest = max((float(g.abs().max()) for g in gradients if g is not None and g.numel()), default=0.0)
        for position, (start, one, two) in enumerate(zip(before, after, wanted, strict=True)):
            if position < len(whole.parameters):
                gradient = gradients[position]
                if gradient is None or not finite:
                    agree = torch.equal(one, two)
                else:
                    seen = gradient.abs() > SMALL * largest
                    rounding = 8 * torch.finfo(one.dtype).eps * float(start.abs().max() if start.numel() else 0)
                    agree = _near((one - start)[seen], (two - start)[seen], max(0.01, digits), rounding)
                what = f"parameter '{self._name(whole.parameters[position])}'"
            else:
                what = "the optimizer's state and the buffers"
                # A state of gradients that are rounding is rounding as well.
                slack = digits * 0.01 * max(largest, largest**2) if one.is_floating_point() else 0.0
                agree = _near(one, two, digits, slack)
            if not agree:
                raise NoGraph(f"the compiled step leaves {what} other than the eager step does")

    def _name(self, parameter: Tensor) -> str:
        named = self.whole.objective.pair.owned().items()
        return next((name for name, (_, p) in named if p is parameter), "?")


@contextmanager
def _proving() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise NoGraph(f"the graph raises, which the programs may catch: {first_line(error)}") from error


@contextmanager
def _put_back(whole: WholeStep) -> Iterator[None]:
    """Whatever steps are taken in the block, afterwards the fit stands where it stood, its generators too."""
    restore = _kept(whole)
    try:
        yield
    finally:
        restore()


def _kept(
    whole: WholeStep, get: Callable[[], Any] = generators, put: Callable[[Any], None] = set_generators
) -> Callable[[], None]:
    """Gives what puts the fit back to where it stands now, and the generators to what ``get`` gives."""
    start, values, control = get(), _copies(whole.tensors), whole.control.clone()
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


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _digits(value: Tensor) -> float:
    return DIGITS.get(value.dtype, 0.02)


def agree(one: Tensor, two: Tensor) -> bool:
    """Whether a compiled result is the eager one, but for rounding."""
    return _near(one, two, _digits(two))


def _near(one: Tensor, two: Tensor, digits: float, slack: float = 0.0) -> bool:
    if one.shape != two.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, two)
    largest = float(two.detach().nan_to_num(0, 0, 0).abs().max()) if two.numel() else 0.0
    allowed = digits * largest + slack
    return torch.allclose(one.detach(), two.detach().to(one.dtype), rtol=0, atol=allowed, equal_nan=True)


def _without_gradients(graph: fx.GraphModule) -> fx.GraphModule:
    """The same graph giving back loss and norm only: each further result would cost an allocation in every step."""
    bare = fx.Graph()
    results: Any = bare.graph_copy(graph.graph, {})
    bare.output(results[:2])
    return fx.GraphModule(graph, bare)
