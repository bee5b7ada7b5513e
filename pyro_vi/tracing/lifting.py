"""Random draws of a graph as its inputs, so that equal draws can be given to it again, and many to one graph at once.

* `lifted` finds the draws whose distribution is fixed, such as standard normal noise, and makes them inputs; each is a `Draw`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vi.support.torch_internals import schema
from pyro_vi.tracing.shapes import is_random

META = torch.device("meta")


@dataclass(frozen=True)
class Draw:
    """A random draw that is an input of a graph: how to make it, and its site, if that is known.

    Attributes:
        make: makes it, from the generator as it is; ``make(device)`` elsewhere than the programs do.
        site: the site that it is for.
        operation: what makes it, such as ``"aten.rand"``.
        law: distribution of each element: ``("normal", mean, sd)``, ``("uniform", low, high)``, or None if it is neither.
        like: a tensor of its shape and dtype, without storage.
        device: where the graph takes it.
    """

    make: Callable[..., Tensor]
    site: str | None
    operation: str
    law: tuple[str, float, float] | None
    like: Tensor
    device: torch.device


def lifted(graph: fx.Graph, site: Callable[[int], str | None] = lambda index: None) -> tuple[list[Draw], bool]:
    """Make the random draws of a graph its last inputs, in place; return them, and true if these are all.

    Args:
        graph: a recorded or traced graph.
        site: gives the site of a random operation from its number.
    """
    complete = True
    draws: list[Draw] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for index, node in enumerate([node for node in graph.nodes if is_random(node)]):
        inputs = node.all_input_nodes
        if any(source.target is not torch.ops.aten.empty.memory_format for source in inputs):
            complete = False
            continue
        with graph.inserting_after(last):
            last = graph.placeholder(f"draw{len(draws)}")
        operation: Any = node.target
        name, value, make = str(operation.overloadpacket), node.meta["val"], _maker(node)
        last.meta["val"] = value
        # A trace notes no shape. To make a draw without storage takes nothing from a generator, but imports torch's compiler.
        like = make(META) if not isinstance(value, Tensor) else torch.empty(value.shape, dtype=value.dtype, device=META)
        draws.append(Draw(make, site(index), name, _law(node), like, value.device))
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.set_codegen(fx.graph.CodeGen())
    return draws, complete


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
