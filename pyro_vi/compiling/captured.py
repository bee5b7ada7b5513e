"""Captured steps of a fit: loss and gradients replayed operation by operation, and the optimizer called directly.

* `CapturedSteps` holds one captured step for each length of a batch. It needs no compiler. A captured step is used only if it
  has the loss, the gradients and the buffers of the proved graph (`pyro_vi.compiling.losses`) on two batches.

Nothing of the fit changes before the loss and the gradients are known. So a step that is not finite, or whose operations raise
an error, is simply taken eagerly.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vi.compiling.losses import Losses, LossGraph
from pyro_vi.compiling.proof import copies, digits_of, near, proving
from pyro_vi.compiling.replay import Replay
from pyro_vi.errors import NoGraph, kind_and_line
from pyro_vi.support import generators, kept_generators, set_generators

Update = Callable[[tuple[int, ...], list[Tensor], Tensor | None, int, float], Tensor | None]


class CapturedSteps:
    """Captured steps, by the length of the batch.

    Args:
        losses: the graphs of loss and gradients.
        update: takes the positions of the parameters that have a gradient, the gradients, all of them as one vector if they lie
            side by side, the number of data and the factor of the learning rate; changes the parameters and returns the joint
            norm of the gradients, or None if it is not finite.
        copied: returns the positions in a source of the tensors that are new in each step.
    """

    def __init__(self, losses: Losses, update: Update, copied: Callable[[Sequence[Tensor]], Sequence[int]]) -> None:
        self.losses, self.update, self.copied = losses, update, copied
        self.steps: dict[int, tuple[LossGraph, Replay]] = {}
        self.varying = losses.weight is None

    def add(self, length: int, sources: Sequence[Sequence[Tensor]]) -> Replay:
        """Capture the step for batches of a length, and keep it if it does what the programs do.

        Raises:
            NoGraph: the step has no graph, or differs from the programs.
        """
        graph, losses = self.losses.graph(length, sources), self.losses
        kept = [*losses.held.tensors, losses.weight_now]
        beside = tuple(range(1, 1 + len(graph.fitted)))
        with proving():
            replay = Replay(graph.recording, [*kept, *sources[0]], len(kept), self.copied(sources[0]), beside)
            if losses.weight_now.is_cuda:
                record(replay)
            for source in sources:
                self._compare(graph, replay, source)
        self.steps[length] = graph, replay
        return replay

    def __call__(
        self, length: int, source: Sequence[Tensor], weight: float, rate: float
    ) -> tuple[float, Tensor] | None:
        """Take a step; return its loss and the norm of its gradient, or None if nothing was done.

        Nothing is done where the loss or a gradient is not finite, or an operation raises an error. The generator has moved.
        """
        graph, replay = self.steps[length]
        losses = self.losses
        losses.held.adopt()
        if self.varying:
            losses.weight_now.fill_(weight)
        try:
            results = replay(source)
        except Exception:  # a program may catch the error of an operation; the eager step finds out
            return None
        loss = float(results[0])
        if not math.isfinite(loss):
            return None
        _, gradients, buffers = graph.split(results)
        norm = self.update(graph.fitted, gradients, replay.beside, graph.size, rate)
        if norm is None:
            return None
        for i, value in zip(graph.changed, buffers, strict=True):
            losses.held.buffers[i].copy_(value)
        return loss, norm

    def _compare(self, graph: LossGraph, replay: Replay, source: Sequence[Tensor]) -> None:
        kept = [*copies(self.losses.held.tensors), self.losses.weight_now]
        with kept_generators(), torch.no_grad():
            start = generators()
            wanted = graph.module(*kept, *source)
            set_generators(start)
            found = replay(source)
            digits = digits_of(wanted[0])
            largest = max((float(g.abs().max()) for g in graph.split(wanted)[1] if g.numel()), default=0.0)
            for one, two in zip(found, wanted, strict=True):
                if not near(one, two, digits, digits * 0.01 * largest):
                    raise NoGraph("the replayed graph gives other numbers than the graph")


def record(replay: Replay) -> None:
    """Let a GPU record the calls of a replay as a CUDA graph, which launches them at once; never run on a GPU so far.

    The generator's state advances at each replay, so that draws are new.

    Raises:
        NoGraph: the calls cannot be recorded.
    """
    calls: list[Callable[[], Any]] = replay.calls
    stream = torch.cuda.Stream()
    try:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # kernels set themselves up in their first launches, which cannot be recorded
                for call in calls:
                    call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
    except Exception as error:
        raise NoGraph(f"{kind_and_line(error)}") from error
    replay.calls = [graph.replay]
    replay.recorded = (graph, calls)  # the graph reads and writes the memory of the calls
