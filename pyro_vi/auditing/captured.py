"""A pair and an estimator as one flat pure function of (parameters, random draws, batch).

`capture` runs loss and gradient once under a tracer and keeps the graph of tensor operations: the effect handlers are gone
from it. Random draws whose distribution is fixed (standard normal noise, uniforms) are lifted to inputs: the same draws can
be given to two estimators, and many to one graph at once by vmap. Draws that depend on parameters (a Bernoulli of a network's
output, a rejection sampler) stay in the graph.

* `Captured` is the graph with what it takes to draw for it; `NoGraph` says why there is none.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from pyro_vi.tracing import is_random, reason, trace

BATCHABLE: dict[Any, Callable[..., Any]] = {torch.ops.aten.fill.Scalar: torch.full_like}
"""Operations that vmap cannot batch, and what does the same."""


@dataclass(frozen=True)
class Draw:
    """A random draw that is an input of a graph: how to make it, and its site, if that is known.

    Attributes:
        make: makes it, from the generator as it is; ``make(device)`` elsewhere than the programs do.
        site: the site that it is for.
        operation: what makes it, such as ``"aten.rand"``.
        law: distribution of each element: ``("normal", mean, sd)``, ``("uniform", low, high)``, or None if it is neither.
        device: where the graph takes it.
    """

    make: Callable[..., Tensor]
    site: str | None
    operation: str
    law: tuple[str, float, float] | None
    device: torch.device


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

        def one(*draws: Tensor) -> tuple[Tensor, ...]:
            return self(parameters, draws, args)

        with warnings.catch_warnings():
            # torch runs an operation without a batching rule one by one, and would warn of it on stderr each time.
            warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
            result: tuple[Tensor, ...] = vmap(one)(*draws)
        return result


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
            graph = trace(evaluation, *inputs)
            draws, lifted = _lift(graph, marks)
            # Operations in place cannot be batched; a second pass replaces them.
            flat = make_fx(functionalize(graph), decomposition_table=BATCHABLE)
            graph = flat(*inputs, *(draw.make() for draw in draws))
        except Exception as error:
            raise NoGraph(reason(error)) from error
    return Captured(graph, tuple(draws), lifted)


class _Marks(Messenger):
    """The number of random operations in the graph when each site has drawn, which tells the site of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[tuple[str, int]] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        graph = graph_in_the_making()
        if graph is not None and not msg["is_observed"]:
            self.counts.append((msg["name"], sum(is_random(node) for node in graph.nodes)))

    def site(self, index: int) -> str | None:
        return next((name for name, count in self.counts if index < count), None)


def _lift(module: fx.GraphModule, marks: _Marks) -> tuple[list[Draw], bool]:
    graph, lifted = module.graph, True
    draws: list[Draw] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for index, node in enumerate([node for node in graph.nodes if is_random(node)]):
        inputs = node.all_input_nodes
        if any(source.target is not torch.ops.aten.empty.memory_format for source in inputs):
            lifted = False
            continue
        with graph.inserting_after(last):
            last = graph.placeholder(f"draw{len(draws)}")
        operation: Any = node.target
        name, device = str(operation.overloadpacket), node.meta["val"].device
        draws.append(Draw(_maker(node), marks.site(index), name, _law(node), device))
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.set_codegen(fx.graph.CodeGen())
    module.recompile()
    return draws, lifted


def _maker(node: fx.Node) -> Callable[..., Tensor]:
    """A function that makes the node's draw again: the same operation, on a new tensor where it fills one."""
    # Read now: a node forgets its arguments when it is erased.
    operation: Any = node.target
    recipes = [_recipe(argument) for argument in node.args]
    named = {key: _recipe(argument) for key, argument in node.kwargs.items()}

    def make(device: torch.device | None = None) -> Tensor:
        there = {} if device is None else {"device": device}
        options = {key: r() for key, r in named.items()}
        options |= there if "device" in options else {}
        # A partial makes the tensor that is filled; all else is a number or a shape.
        result: Tensor = operation(*(r(**there) if isinstance(r, partial) else r() for r in recipes), **options)
        return result

    return make


def _law(node: fx.Node) -> tuple[str, float, float] | None:
    """The distribution of a draw's elements, read off the operation and its arguments."""
    operation: Any = node.target
    arguments = schema(operation).arguments
    names = [argument.name for argument in arguments]
    given = {argument.name: argument.default_value for argument in arguments}
    given |= dict(zip(names, node.args, strict=False)) | node.kwargs
    # rand, rand_like, uniform_, uniform, normal_, normal_functional, ...
    name = schema(operation).name.removeprefix("aten::").rstrip("_").removesuffix("_like").removesuffix("_functional")
    if not node.meta["val"].is_floating_point():
        return None
    match name:
        case "randn" | "rand":
            return ("normal" if name == "randn" else "uniform", 0.0, 1.0)
        case "normal" | "uniform":
            first, second = (given[key] for key in (("mean", "std") if name == "normal" else ("from", "to")))
            if isinstance(first, int | float) and isinstance(second, int | float):
                return name, float(first), float(second)
    return None


def _recipe(argument: Any) -> Callable[[], Any]:
    if isinstance(argument, fx.Node):
        operation: Any = argument.target
        return partial(operation, *argument.args, **argument.kwargs)
    return lambda: argument
