"""Draws of importance weights from a recorded graph: what does not depend on the draws is computed once for a block of data.

* `Repeated` gives the log-weights of a chunk of draws: those of the programs with the same seed, up to rounding.
* `Total` sums log-weights as they come.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pyro_vi.diagnostics.tails import Tail
from pyro_vi.errors import NoGraph
from pyro_vi.tracing import Draw, Recording, Replay, faster, lifted, record

CACHED = 2**17
"""Most numbers in a tensor of one call: some such tensors fit in the processor's second cache."""
GATHERED = 1024
"""Log-weights of each datum that are summed at once."""


class Repeated:
    """Log-weights of a chunk of draws for blocks of data of one shape, without running the programs.

    The draws of a chunk are made as the programs make them, and handed over in parts that fit in the processor's cache.

    Args:
        function: gives the log-weights of a number of draws, its first argument, from the tensors of the pair and the data.
        whole: the graph of ``function`` for a whole chunk, with its tensors.
        inputs: the tensors of the pair and the data.
        chunk: number of draws in a chunk.

    Attributes:
        operations: tensor operations of a call.

    Raises:
        NoGraph: the draws depend on parameters, or the programs change a buffer.
    """

    def __init__(self, function: Callable[..., Tensor], whole: Recording, inputs: Sequence[Tensor], chunk: int) -> None:
        self._draws = _lifted(whole)
        widest = max((value.numel() for value in _values(whole)), default=1)
        self._parts = next(n for n in range(1, chunk + 1) if chunk % n == 0 and (widest <= n * CACHED or n == chunk))
        self._axes = [0] * len(self._draws)
        if self._parts > 1:
            part = record(lambda *inputs: function(chunk // self._parts, *inputs), *inputs)
            axes = [_axis(a, b, self._parts) for a, b in zip(self._draws, _lifted(part), strict=True)]
            if all(axis is not None for axis in axes):
                self._axes, whole = [axis or 0 for axis in axes], part
            else:
                self._parts = 1
        self.operations = sum(node.op == "call_function" for node in whole.graph.nodes)
        faster(whole.graph, products=True)
        # Recorded again, because a replay must know the memory of each operation.
        noise = [value for values in self._noise() for value in values][: len(self._draws)]
        self._replay = Replay(record(whole.module(), *inputs, *noise), len(inputs))

    def fix(self, inputs: Sequence[Tensor]) -> None:
        """Set the tensors of the pair and the block of data."""
        self._replay.fix(*inputs)

    def __call__(self) -> list[Tensor]:
        """The log-weights of a chunk, in parts of shape ``(draws, rows)``, from the generators as they are."""
        return [self._replay(*noise)[0] for noise in self._noise()]

    def _noise(self) -> Iterator[list[Tensor]]:
        every = [draw.make() for draw in self._draws]
        cut = [value.chunk(self._parts, axis) for value, axis in zip(every, self._axes, strict=True)]
        for part in zip(*cut, strict=True):
            yield [value.contiguous() for value in part]


def _lifted(recording: Recording) -> list[Draw]:
    draws, complete = lifted(recording.graph)
    if not complete or not draws:
        raise NoGraph("the draws depend on parameters")
    return draws


def _values(recording: Recording) -> list[Tensor]:
    values = [node.meta.get("val") for node in recording.graph.nodes if node.op == "call_function"]
    return [value for value in values if isinstance(value, Tensor)]


def _axis(whole: Draw, part: Draw, parts: int) -> int | None:
    """The dimension in which a draw of a chunk has ``parts`` times the length of one of a part; None if there is no such."""
    shapes = [draw.like.shape for draw in (whole, part)]
    other = [axis for axis, (a, b) in enumerate(zip(*shapes, strict=False)) if a != b]
    fits = len(shapes[0]) == len(shapes[1]) and len(other) == 1 and shapes[0][other[0]] == parts * shapes[1][other[0]]
    return other[0] if fits else None


class Total:
    """log Σ w and log Σ w² of log-weights that come in parts, and the largest of them, in memory that does not grow.

    Example:
        >>> total = Total(4, Tail(4))
        >>> for part in torch.tensor([[0.0], [1.0], [2.0], [3.0]]).split(2):
        ...     total.add(part)
        >>> [round(float(value), 4) for value in total.sums()]
        [3.4402, 6.1451]
    """

    def __init__(self, draws: int, tail: Tail) -> None:
        self.tail, self.gathered = tail, min(draws, GATHERED)
        self._parts: list[Tensor] = []
        self._count = 0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, log_weight: Tensor) -> None:
        """Take in log-weights, shape ``(draws, rows)``."""
        self._parts.append(log_weight)
        self._count += len(log_weight)
        if self._count >= self.gathered:
            self._gather()

    def sums(self) -> tuple[Tensor, Tensor]:
        """log Σ w and log Σ w² of all so far, shape ``(rows,)``."""
        self._gather()
        assert self._sums is not None
        top, one, two = self._sums
        return top + one.log(), 2 * top + two.log()

    def _gather(self) -> None:
        if not self._parts:
            return
        every = torch.cat(self._parts)
        self._parts, self._count = [], 0
        self.tail.add(every)
        top = every.amax(0)
        if self._sums is not None:
            top = torch.maximum(top, self._sums[0])
        # Nothing is subtracted from weights that are all 0, whose logarithm is −∞, or that are infinite.
        shift = torch.where(top.isfinite(), top, torch.zeros_like(top))
        weight = (every - shift).exp_()
        one, two = weight.sum(0), weight.square_().sum(0)
        if self._sums is not None:
            before = (self._sums[0] - shift).exp()
            one, two = one + before * self._sums[1], two + before.square() * self._sums[2]
        self._sums = (shift, one, two)
