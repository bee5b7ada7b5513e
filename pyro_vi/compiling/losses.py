"""The loss of a fit and its gradients as a flat graph, proved against the programs.

* `Losses` captures one graph for each length of a batch, twice, and compares it with the programs on two batches. Captured and
  compiled steps are made from it.
* `LossGraph` is such a graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx

from pyro_vi.compiling.held import Held
from pyro_vi.compiling.inductor import collecting_later
from pyro_vi.compiling.proof import copies, digits_of, near, proving
from pyro_vi.data import Batch
from pyro_vi.errors import NoGraph
from pyro_vi.estimators.objective import Objective
from pyro_vi.programs import swapped
from pyro_vi.support import generators, set_generators
from pyro_vi.support.torch_internals import has_gradient_hooks, times_changed, untraced
from pyro_vi.tracing import Recording, flat, reason, same_twice, without_values

Fetch = Callable[..., Batch]


@dataclass(frozen=True)
class LossGraph:
    """A graph of ``(*parameters, *buffers, weight, *source)`` that returns loss, gradients and new buffers.

    Attributes:
        recording: the graph.
        fitted: positions of the parameters that have a gradient, in the order of the results.
        changed: positions of the buffers that the programs change, in the order of the results.
        size: number of data by which the loss of a batch is divided.
    """

    recording: Recording
    fitted: tuple[int, ...]
    changed: tuple[int, ...]
    size: int

    @cached_property
    def module(self) -> fx.GraphModule:
        """The graph as a function."""
        return self.recording.module()

    def split(self, results: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return loss, gradients and new buffers."""
        ends = 1 + len(self.fitted)
        return results[0], list(results[1:ends]), list(results[ends:])


class Losses:
    """The graphs of one objective, by the length of the batch.

    Args:
        objective: the function that the fit minimises.
        held: its parameters and buffers.
        fetch: makes a batch from a source, with tensor operations only.
        weight: weight of the KL; None if it changes from step to step.
        now: present weight of the KL.

    Attributes:
        weight_now: weight of the KL, of shape (): an input of the graphs.

    Raises:
        NoGraph: the gradients have hooks.
    """

    def __init__(self, objective: Objective, held: Held, fetch: Fetch, weight: float | None, now: float = 1.0) -> None:
        if any(map(has_gradient_hooks, held.parameters)):
            raise NoGraph("a parameter has a hook on its gradient, which a graph would leave out")
        self.objective, self.held, self.fetch, self.weight = objective, held, fetch, weight
        first = held.parameters[0]
        self.weight_now = torch.full((), now, dtype=first.dtype, device=first.device)
        self.graphs: dict[int, LossGraph] = {}

    def graph(self, length: int, sources: Sequence[Sequence[Tensor]]) -> LossGraph:
        """Return the graph for batches of a length, after comparing it with the programs on sources of that length.

        Raises:
            NoGraph: the programs have no graph, or it differs from them.
        """
        if length not in self.graphs:
            pair = self.objective.pair
            with self._put_back():
                facts: list[LossGraph] = []

                def capture() -> Recording:
                    facts.append(self._capture(sources[0]))
                    without_values(facts[-1].recording.graph)  # now, so that there is memory for the second capture
                    return facts[-1].recording

                with collecting_later():
                    same_twice(capture, pair.model, pair.guide)
            found = facts[0]
            for source in sources:
                with self._put_back():
                    self._compare(found, source)
            self.graphs[length] = found
        return self.graphs[length]

    def _capture(self, source: Sequence[Tensor]) -> LossGraph:
        inputs = [*copies(self.held.tensors), self.weight_now.clone(), *source]
        # Only torch's generator is restored: `watched` must see draws from those of NumPy and Python.
        with torch.random.fork_rng(devices=sorted({t.get_device() for t in inputs if t.is_cuda})):
            weight = self.weight if self.weight is not None else float(self.weight_now)
            try:
                batch = self.fetch(*source)
                self.objective(batch, weight)  # the estimator examines the pair in its first call
            except Exception as error:  # as on a shorter batch; the fit will meet the same error and name the step
                raise NoGraph(reason(error)) from error
            self.held.adopt()
            found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
            try:
                graph = flat(self._function(found), *inputs, state=len(self.held.tensors))
            except Exception as error:
                raise NoGraph(reason(error)) from error
        return LossGraph(graph, *found[-1], self.objective.size(batch))

    def _function(self, found: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> Callable[..., tuple[Tensor, ...]]:
        held, many = self.held, len(self.held.parameters)
        keys = [*map(id, held.parameters)]

        def losses(*inputs: Tensor) -> tuple[Tensor, ...]:
            old, old_buffers = inputs[:many], inputs[many : len(held.tensors)]
            given, *source = inputs[len(held.tensors) :]
            weight = given if self.weight is None else self.weight
            live = [value.detach().requires_grad_() for value in old]
            moving = [value.clone() for value in old_buffers]
            places = dict(zip(keys, live, strict=True))
            places.update(zip(map(id, held.buffers), moving, strict=True))
            with swapped(self.objective.pair, places) as now:
                loss = self.objective(self.fetch(*source), weight, live)
                new_buffers = [now(id(buffer)) for buffer in held.buffers]
            gradients = torch.autograd.grad(loss, live, allow_unused=True)
            changed = []
            for i, (before, start, after) in enumerate(zip(old_buffers, moving, new_buffers, strict=True)):
                if after is not start or times_changed(after) or _moved(before, after):
                    if after.shape != before.shape:
                        raise NoGraph("the programs change the shape of a buffer; keep its shape")
                    changed.append(i)
            fitted = [i for i, g in enumerate(gradients) if g is not None]
            found.append((tuple(fitted), tuple(changed)))
            kept = [g for g in gradients if g is not None]
            if any(g.is_sparse for g in kept):
                raise NoGraph("the gradient of a parameter is sparse, and a graph has none; make it with sparse=False")
            return loss.detach(), *kept, *(new_buffers[i].detach() for i in changed)

        return losses

    def _compare(self, found: LossGraph, source: Sequence[Tensor]) -> None:
        """Raise NoGraph unless the graph has the programs' loss, gradients and buffers."""
        held, start = self.held, generators()
        with torch.no_grad(), proving():
            results = found.module(*copies(held.tensors), self.weight_now, *source)
        loss, gradients, buffers = found.split(results)
        set_generators(start)
        try:
            expected = self.objective(
                self.fetch(*source), self.weight if self.weight is not None else float(self.weight_now)
            )
            wanted = torch.autograd.grad(expected, held.parameters, allow_unused=True)
        except Exception as error:  # an error of the programs; the fit will meet it and name the step
            raise NoGraph(reason(error)) from error
        held.adopt()
        digits = digits_of(loss)
        if not near(loss, expected, digits):
            raise NoGraph(f"the graph's loss is {float(loss):.10g} where the programs give {float(expected):.10g}")
        kept = {i: g for i, g in enumerate(wanted) if g is not None}
        if not bool(expected.isfinite()) or not all(bool(g.isfinite().all()) for g in kept.values()):
            return  # the fit will meet this step, too
        if tuple(kept) != found.fitted:
            raise NoGraph(
                "the graph lacks the gradients of some parameters: the programs also hold these outside of the modules' "
                "parameters, as torch's recurrent networks do"
            )
        largest = max((float(g.abs().max()) for g in kept.values() if g.numel()), default=0.0)
        for gradient, (i, expected_gradient) in zip(gradients, kept.items(), strict=True):
            if not near(gradient, expected_gradient, digits, digits * 0.01 * largest):
                name = self._name(held.parameters[i])
                raise NoGraph(f"the graph's gradient of parameter '{name}' differs from that of the programs")
        for i, value in zip(found.changed, buffers, strict=True):
            if not near(value, held.buffers[i], digits):
                raise NoGraph("the graph changes a buffer differently from the programs")

    def _name(self, parameter: Tensor) -> str:
        named = self.objective.pair.owned().items()
        return next((name for name, (_, p) in named if p is parameter), "?")

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        """Restore buffers, gradients and generators after a block that runs the programs."""
        held, start, values = self.held, generators(), copies(self.held.tensors)
        gradients = [p.grad for p in held.parameters]
        try:
            yield
        finally:
            held.adopt()
            with torch.no_grad():
                for tensor, value in zip(held.tensors, values, strict=True):
                    tensor.copy_(value)
            for parameter, gradient in zip(held.parameters, gradients, strict=True):
                parameter.grad = gradient
            set_generators(start)


def _moved(before: Tensor, after: Tensor) -> bool:
    # Batch norm changes its running statistics without increasing their version counter.
    with untraced():
        return not torch.equal(before, after)
