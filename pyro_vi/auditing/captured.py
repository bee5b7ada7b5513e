"""A pair and an estimator as one flat pure function of (parameters, random draws, batch).

`capture` runs loss and gradient once under a tracer and keeps the graph of tensor operations: the effect handlers are gone
from it. Random draws whose distribution is fixed (standard normal noise, uniforms) are lifted to inputs: the same draws can
be given to two estimators, and many to one graph at once by vmap. Draws that depend on parameters (a Bernoulli of a network's
output, a rejection sampler) stay in the graph.

* `Captured` is the graph with what it takes to draw for it; `NoGraph` says why there is none.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, fx
from torch.func import functionalize, vmap

from pyro_vi.data import Batch
from pyro_vi.errors import NoGraph
from pyro_vi.estimators.traits import differentiable_loss
from pyro_vi.programs import Pair, swapped
from pyro_vi.support import kept_generators
from pyro_vi.support.torch_internals import graph_in_the_making, make_fx, schema
from pyro_vi.tracing import (
    OPERATION,
    Draw,
    Replay,
    copied,
    faster,
    flat,
    is_random,
    lifted,
    reason,
    record,
    without_values,
)

BATCHABLE: dict[Any, Callable[..., Any]] = {torch.ops.aten.fill.Scalar: torch.full_like}
"""Operations that vmap cannot batch, and what does the same."""


@dataclass(frozen=True)
class Captured:
    """Loss and gradients of one estimator on a pair, as a function of parameters, draws and batch.

    Attributes:
        graph: called with ``(*parameters, *batch, *draws)``; gives the loss and one gradient for each parameter.
        draws: the draws that it takes, in the order in which the programs make them.
        lifted: true if all randomness is in ``draws``, so that equal draws give equal numbers.
    """

    graph: fx.GraphModule
    draws: tuple[Draw, ...]
    lifted: bool

    def __call__(self, parameters: Sequence[Tensor], draws: Sequence[Tensor], args: Batch) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = self.graph(*parameters, *args, *draws)
        return result

    def draw(self) -> list[Tensor]:
        """Draw for one evaluation with the present state of the generators; the programs would make the same draws."""
        return [draw.make() for draw in self.draws]

    def many(self, parameters: Sequence[Tensor], draws: Sequence[Tensor], args: Batch) -> tuple[Tensor, ...]:
        """Evaluations for stacked draws, at once: each result has their number as first dimension."""
        return self._many(len(parameters) + len(args), *parameters, *args, *draws)

    def _many(self, fixed: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        with warnings.catch_warnings():
            # torch runs an operation without a batching rule one by one, and would warn of it on stderr each time.
            warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
            result: tuple[Tensor, ...] = vmap(partial(self.graph, *inputs[:fixed]))(*inputs[fixed:])
        return result

    def replay(self, parameters: Sequence[Tensor], draws: Sequence[Tensor], args: Batch) -> Replay:
        """`many` at these parameters and this batch, as a function of as many draws; what is the same for all is computed once.

        Raises:
            Exception: the batched evaluation has no flat graph.
        """
        fixed = (*parameters, *args)
        graph = record(partial(self._many, len(fixed)), *fixed, *draws)
        replay = Replay(graph, len(fixed))
        replay.fix(*fixed)
        return replay

    def faster(self) -> "Captured":
        """The same with faster forms of some operations (`pyro_vi.tracing.rewriting`)."""
        graph = copied(self.graph.graph)
        faster(graph)
        return replace(self, graph=fx.GraphModule(self.graph, graph))

    @property
    def numbers(self) -> int:
        """The numbers that one evaluation computes, intermediate ones included."""
        values = [node.meta.get("val") for node in self.graph.graph.nodes]
        return sum(value.numel() for value in values if isinstance(value, Tensor))


def loss_and_gradients(
    elbo: ELBO, pair: Pair, args: Batch, parameters: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Loss of one evaluation, and its gradients: 0 for a parameter that it does not depend on."""
    loss = differentiable_loss(elbo, pair, args)
    depends = bool(parameters) and loss.requires_grad
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True) if depends else [None] * len(parameters)
    return loss.detach(), [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def capture(elbo: ELBO, pair: Pair, args: Batch, parameters: Sequence[Tensor]) -> Captured:
    """Trace loss and gradients of an estimator at a batch into a flat graph.

    Call it within `pyro_vi.programs.isolation.isolated`. Gradients are with respect to ``parameters``, which are the pair's own
    and become inputs.

    Raises:
        NoGraph: the control flow of the programs depends on the values of tensors, or an operation cannot be traced.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.estimators.table import get
        >>> from pyro_vi.programs import isolated
        >>> from pyro_vi.programs import build_pair
        >>> digits = load("digits")
        >>> pair, x = build_pair("vae", "diag_normal", digits), digits.example(16)
        >>> with isolated(0, validation=False):
        ...     captured = capture(get("stl"), pair, x, list(pair.parameters()))
        >>> captured.lifted, [draw.site for draw in captured.draws]
        (True, ['z'])
    """
    keys = [id(parameter) for parameter in parameters]
    count = len(keys)
    marks = _Marks()

    def evaluation(*inputs: Tensor) -> tuple[Tensor, ...]:
        live = [value.detach().requires_grad_() for value in inputs[:count]]
        with swapped(pair, dict(zip(keys, live, strict=True))), marks:
            loss, gradients = loss_and_gradients(elbo, pair, inputs[count:], live)
        return (loss, *gradients)

    inputs = [*(parameter.detach() for parameter in parameters), *args]
    with kept_generators():
        # The estimator examines the pair in its first call; this must not become part of the graph.
        differentiable_loss(elbo, pair, args)
        try:
            found = flat(evaluation, *inputs, watch=marks.start)
            draws, complete = lifted(found.graph, marks.site)
            if any(schema(node.target).is_mutable for node in found.graph.nodes if isinstance(node.target, OPERATION)):
                # Operations in place cannot be batched; a second pass replaces them.
                again = make_fx(functionalize(found.module()), decomposition_table=BATCHABLE)
                graph = again(*inputs, *(draw.make() for draw in draws))
            else:
                _batchable(found.graph)
                graph = found.module()
        except Exception as error:
            raise NoGraph(reason(error)) from error
    without_values(graph.graph)
    return Captured(graph, tuple(draws), complete)


def _batchable(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target in BATCHABLE:
            with graph.inserting_before(node):
                other = graph.call_function(BATCHABLE[node.target], node.args, node.kwargs)
            other.meta = node.meta
            node.replace_all_uses_with(other)
            graph.erase_node(node)


class _Marks(Messenger):
    """The number of random operations in the graph when each site has drawn, which tells the site of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.start(None)

    def start(self, graph: fx.Graph | None) -> None:
        """Forget the numbers; the operations will be in ``graph``, or in the graph that is being traced."""
        self.graph, self.counts = graph, list[tuple[str, int]]()

    def _pyro_post_sample(self, msg: Any) -> None:
        graph = self.graph or graph_in_the_making()
        if graph is not None and not msg["is_observed"]:
            self.counts.append((msg["name"], sum(is_random(node) for node in graph.nodes)))

    def site(self, index: int) -> str | None:
        return next((name for name, count in self.counts if index < count), None)
