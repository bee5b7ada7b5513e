"""The cost of compiling, and the time that it saves.

* `SECONDS` is the table of measured constants. `to_capture` and `to_compile` estimate the time to capture and to compile.
* `measure` times an eager computation, and estimates the time of the compiled one.
* `estimate_step` measures a step of a fit and leaves the fit unchanged.
* `eager_because` writes the sentence that says why compiling does not pay.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from pyro_vi.compiling.products import by_onednn, is_large
from pyro_vi.data import Batch
from pyro_vi.errors import NoGraph
from pyro_vi.estimators.objective import Objective
from pyro_vi.programs import kept_buffers
from pyro_vi.support import generators, set_generators
from pyro_vi.support.torch_internals import each_operation, take_step
from pyro_vi.tracing import put_back, reason

SECONDS = {
    "capture": 0.1,
    "captured": 0.0005,
    "switch": 1.0,
    "first": 2.5,
    "graph": 1.5,
    "node": 0.005,
    "operation": 4e-6,
    "call": 3e-5,
    "several": 1.2e-5,
}
"""Seconds on a free machine without the compiler's cache on disk, which is not foreseen; see `scripts/benchmark_choice.py`.

* capture, captured: capturing a step, and in addition each of its operations;
* switch: what compiling in the background must save, as the step is traced and proved in the foreground;
* first: loading the compiler and preparing its headers, once per process;
* graph, node: tracing, proving and compiling one graph, and in addition each of its operations;
* operation, call: overhead of an eager operation and of a call of compiled code, without their arithmetic;
* several: saving per step where one call takes several steps.
"""
PER_TENSOR = 13
"""Operations in a graph for each tensor that a step changes: its update, and the selection of its old or new value."""
SAVED = 0.7
"""Most that captured steps save, as a fraction of the time of eager steps."""
FUSED = 0.3
"""Time of fused element-wise operations and sums, as a fraction of the time of their eager arithmetic."""
RUNS, LONG = 5, 0.3
"""Most timed runs, and the seconds after which no further run starts."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run, eager and compiled.

    Attributes:
        eager: measured seconds.
        compiled: estimated seconds.
        operations: tensor operations of the eager run.
        update: seconds of the optimizer's part of the eager run.
        changed: number of parameters that the optimizer changes.
        captured: estimated seconds of a captured run: those of the operations alone, views left out.
    """

    eager: float
    compiled: float
    operations: int
    update: float = 0.0
    changed: int = 0
    captured: float = 0.0

    @property
    def spared(self) -> float:
        """Estimated seconds that capturing saves per run, at most `SAVED` of the eager ones; 0 if it saves none."""
        return min(SAVED * self.eager, max(0.0, self.eager - self.captured))

    @property
    def saving(self) -> float:
        """Seconds that compiling saves per run; 0 if it saves none."""
        return max(0.0, self.eager - self.compiled)


def to_capture(operations: int) -> float:
    """Estimate the seconds to trace and prove a computation of a number of tensor operations."""
    return SECONDS["capture"] + SECONDS["captured"] * operations


def timed(run: Callable[[], object], longest: float = 0.05) -> float:
    """Return the least seconds of some runs of a computation."""
    clock, wait = _clock(), torch.cuda.synchronize if torch.cuda.is_initialized() else _nothing
    start, least = time.perf_counter(), math.inf
    for _ in range(RUNS):
        wait()
        begin = clock()
        run()
        wait()
        least = min(least, clock() - begin)
        if time.perf_counter() - start > longest:
            break
    return least


def to_compile(operations: int, changed: int = 0) -> float:
    """Estimate the seconds to trace, prove and compile a computation.

    Args:
        operations: tensor operations of the eager computation.
        changed: number of tensors that it changes in place: parameters, optimizer states, buffers.
    """
    nodes = operations + PER_TENSOR * changed
    return (0.0 if loaded() else SECONDS["first"]) + SECONDS["graph"] + SECONDS["node"] * nodes


def loaded() -> bool:
    """True if this process has loaded the compiler."""
    return "torch._inductor.compile_fx" in sys.modules


def because(what: str, saved: float, cost: float) -> str:
    """Return why something does not pay.

    Example:
        >>> because("capturing", 0.14, 0.5)
        'capturing would save about 0.1 s and take about 0.5 s'
    """
    return f"{what} would save about {shown(saved)} and take about {shown(cost)}"


def eager_because(what: str, saved: float, cost: float) -> str:
    """Return the sentence that says why a computation stays eager.

    Example:
        >>> eager_because("steps", 3.14, 9.2)
        'eager steps: compiling would save about 3.1 s and take about 9.2 s'
    """
    return f"eager {what}: compiling would save about {shown(saved)} and take about {shown(cost)}"


def shown(seconds: float) -> str:
    """Format seconds, with one decimal below 10."""
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def measure(run: Callable[[], object]) -> Estimate:
    """Time an eager computation, and estimate the time of the compiled one.

    The compiler fuses element-wise operations and sums, which then take `FUSED` of their time. All other operations (products,
    convolutions, random numbers, sorting, fused optimizers) take as long as before, except large products: they are timed in
    the library that compiled code calls (`pyro_vi.compiling.products`). Python code takes the time of one call only.

    Args:
        run: the computation; it runs two to ten times.
    """
    clock, wait = _clock(), torch.cuda.synchronize if torch.cuda.is_initialized() else _nothing
    start, eager, runs = time.perf_counter(), math.inf, list[list[tuple[float, float]]]()
    while len(runs) < RUNS and (not runs or time.perf_counter() - start < LONG):
        wait()
        begin = clock()
        run()
        wait()
        eager = min(eager, clock() - begin)
        operations = _Operations(clock, wait)
        with each_operation(operations):
            run()
        runs.append(operations.seconds)
    alike = len({len(run) for run in runs}) == 1
    # The least time of each operation is the one with the least interference from other processes.
    by_operation = (
        [*zip(*runs, strict=True)] if alike else [(times,) for times in min(runs, key=lambda run: sum(map(sum, run)))]
    )
    compiled, captured = (sum(min(times[kind] for times in each) for each in by_operation) for kind in (0, 1))
    return Estimate(eager, SECONDS["call"] + compiled, len(by_operation), captured=captured)


def estimate_step(
    objective: Objective,
    weight: float,
    optimizer: torch.optim.Optimizer,
    clip_norm: float | None,
    fetch: Callable[[], Batch],
) -> Estimate:
    """Measure a step of a fit: batch, loss, gradients, clipping, and the optimizer's update of copies of the parameters.

    Parameters, buffers, optimizer, generators and the Python state of the programs are unchanged afterwards. The update of an
    optimizer that cannot be copied is left out, as if it took the same time eager and compiled.

    Raises:
        NoGraph: the programs fail.
    """
    parameters = _fitted(optimizer)
    update = _Update(optimizer, clip_norm)

    def run() -> None:
        loss = objective(fetch(), weight, parameters)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        float(loss.detach())
        update(gradients)

    start, before = generators(), [(p, p.detach().clone()) for p in objective.pair.parameters()]
    try:
        with kept_buffers(objective.pair), put_back(objective.pair.model, objective.pair.guide):
            found = measure(run)
            return replace(found, update=update.seconds, changed=len(parameters))
    except Exception as error:  # the fit will meet the same error and name the step
        raise NoGraph(reason(error)) from error
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)
        set_generators(start)


class _Update:
    """The update of an optimizer, applied to copies of its parameters and its state."""

    def __init__(self, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> None:
        self.clip_norm, self.seconds, self.clock = clip_norm, math.inf, _clock()
        self.twin: Any = None
        with suppress(Exception):
            self.twin = copy.deepcopy(optimizer)  # without hooks

    def __call__(self, gradients: Sequence[Tensor | None]) -> None:
        if self.twin is None:
            return
        begin, moved = self.clock(), _fitted(self.twin)
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.grad = gradient
        try:
            if self.clip_norm is not None:
                clip_grad_norm_(moved, self.clip_norm)
            take_step(self.twin)
        except Exception:
            self.twin = None
        self.seconds = min(self.seconds, self.clock() - begin)


_MADE_OF_SUCH = {
    *("binary_cross_entropy_with_logits", "softplus_backward", "log_sigmoid_forward", "log_sigmoid_backward"),
    *("_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data", "native_layer_norm"),
    *("native_layer_norm_backward", "native_batch_norm", "native_batch_norm_backward", "_to_copy", "copy_", "cat"),
    *("stack", "fill_", "zero_", "new_zeros", "zeros_like", "ones_like", "empty", "arange", "_foreach_add_"),
}
"""Operations that the compiler fuses like element-wise operations and sums, although torch does not tag them so."""


def _fitted(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


_FACTORS = {torch.ops.aten.mm.default: (0, 1), torch.ops.aten.addmm.default: (1, 2)}
"""Positions of the two factors among the arguments of a product."""


class _Operations:
    """A timer of the tensor operations in a block.

    Attributes:
        seconds: estimated compiled time of each operation's arithmetic, and its captured time, in order.
    """

    def __init__(self, clock: Callable[[], float], wait: Callable[[], None]) -> None:
        self.clock, self.wait, self.seconds = clock, wait, list[tuple[float, float]]()

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result, captured = self._timed(partial(func, *args, **kwargs))
        seconds = captured - SECONDS["operation"]
        tagged = torch.Tag.pointwise in func.tags or torch.Tag.reduction in func.tags
        fused = tagged or func.name().removeprefix("aten::").split(".")[0] in _MADE_OF_SUCH
        if func in _FACTORS:
            one, two = (args[i] for i in _FACTORS[func])
            if is_large(one, two):
                seconds = self._timed(partial(by_onednn, one, two))[1] - SECONDS["operation"]
        compiled = max(0.0, seconds * FUSED if fused else seconds)
        self.seconds.append((0.0, 0.0) if func.is_view else (compiled, captured))
        return result

    def _timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        """Return the result of an operation and its seconds."""
        self.wait()
        begin = self.clock()
        result = call()
        self.wait()
        return result, self.clock() - begin


def _clock() -> Callable[[], float]:
    # The processor time of one thread is the time on an idle machine, even if this machine is busy.
    return time.thread_time if torch.get_num_threads() == 1 and not torch.cuda.is_initialized() else time.perf_counter


def _nothing() -> None: ...
