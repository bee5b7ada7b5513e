"""A flat graph as text, for another process.

* `write_graph` makes a text of a graph of torch's own operations without constants, and `read_graph` makes the graph of it,
  with the same nodes in the same order. Pickling a graph would let torch trace it anew, which drops some nodes; and to read a
  pickle runs what is in it.
"""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from pyro_vi.compiling.looking import OPERATION
from pyro_vi.errors import NoGraph

_OF_TORCH: tuple[type, ...] = (torch.dtype, torch.layout, torch.memory_format)


def write_graph(graph: fx.Graph) -> str:
    """Return the nodes of a graph: kind, name of the operation, arguments and keywords of each.

    Raises:
        NoGraph: it has a node or an argument of another kind.
    """
    numbers: dict[fx.Node, int] = {}
    lines = []
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, OPERATION):
            name = str(node.target)
        elif node.op == "call_function" and node.target is operator.getitem:
            name = "getitem"
        elif node.op in ("placeholder", "output"):
            name = node.op
        else:
            raise NoGraph(f"a graph with '{node.target}' cannot be handed to another process")
        keywords = {key: written(value, numbers.__getitem__) for key, value in node.kwargs.items()}
        lines.append([node.op, name, [written(value, numbers.__getitem__) for value in node.args], keywords])
        numbers[node] = len(numbers)
    return json.dumps(lines)


def read_graph(text: str) -> fx.GraphModule:
    """Return the graph that `write_graph` wrote."""
    graph = fx.Graph()
    made: list[fx.Node] = []
    for number, (kind, name, args, kwargs) in enumerate(json.loads(text)):
        values = tuple(read(value, made) for value in args)
        if kind == "placeholder":
            made.append(graph.placeholder(f"input_{number}"))
        elif kind == "output":
            made.append(graph.output(values[0]))
        else:
            target = operator.getitem if name == "getitem" else _operation(name)
            made.append(graph.call_function(target, values, {key: read(one, made) for key, one in kwargs.items()}))
    return fx.GraphModule(torch.nn.Module(), graph)


def written(value: Any, number: Callable[[fx.Node], int]) -> Any:
    """Return an argument in a form that JSON has: as it is, or as a list of its kind and its parts."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, fx.Node):
        return ["node", number(value)]
    if isinstance(value, float):
        return ["float", value.hex()]
    if isinstance(value, complex):
        return ["complex", value.real.hex(), value.imag.hex()]
    if isinstance(value, _OF_TORCH):
        return ["torch", str(value).removeprefix("torch.")]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    if value is ...:
        return ["ellipsis"]
    if isinstance(value, slice):
        return ["slice", *(written(one, number) for one in (value.start, value.stop, value.step))]
    if isinstance(value, Sequence):
        return ["tuple" if isinstance(value, tuple) else "list", *(written(one, number) for one in value)]
    if isinstance(value, Mapping):
        return ["dict", *([key, written(one, number)] for key, one in value.items())]
    raise NoGraph(f"an argument of type {type(value).__name__} cannot be handed to another process")


def read(value: Any, nodes: Sequence[fx.Node]) -> Any:
    """Return the argument that `written` wrote."""
    if not isinstance(value, list):
        return value
    kind, *parts = value
    if kind == "dict":
        return {key: read(one, nodes) for key, one in parts}
    simple: dict[str, Callable[..., Any]] = {
        "node": nodes.__getitem__,
        "ellipsis": lambda: ...,
        "float": float.fromhex,
        "complex": lambda real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
        "torch": lambda name: getattr(torch, name),
        "device": torch.device,
    }
    if kind in simple:
        return simple[kind](*parts)
    found = [read(one, nodes) for one in parts]
    return slice(*found) if kind == "slice" else tuple(found) if kind == "tuple" else found


def _operation(name: str) -> Any:
    space, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, space), packet), overload)
