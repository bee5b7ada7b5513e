"""A flat graph as plain values, for another process.

* `write_graph` makes them of a graph of torch's own operations without constants, and `read_graph` makes the graph of them,
  with the same nodes in the same order. Pickling a graph would let torch trace it anew, which drops some nodes.
"""

import operator
from typing import Any, NamedTuple

import torch
from torch import fx

from pyro_vi.compiling.looking import OPERATION
from pyro_vi.errors import NoGraph


class Ref(NamedTuple):
    """The result of an earlier node, by its number."""

    number: int


def write_graph(graph: fx.Graph) -> list[tuple[str, str, Any, Any]]:
    """Return the nodes of a graph: kind, name of the operation, arguments and keywords.

    Raises:
        NoGraph: it has a node of another kind.
    """
    numbers: dict[fx.Node, Ref] = {}
    lines: list[tuple[str, str, Any, Any]] = []
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, OPERATION):
            name = str(node.target)
        elif node.op == "call_function" and node.target is operator.getitem:
            name = "getitem"
        elif node.op in ("placeholder", "output"):
            name = node.op
        else:
            raise NoGraph(f"a graph with '{node.target}' cannot be handed to another process")
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), numbers.__getitem__)
        numbers[node] = Ref(len(lines))
        lines.append((node.op, name, args, kwargs))
    return lines


def read_graph(lines: list[tuple[str, str, Any, Any]]) -> fx.GraphModule:
    """Return the graph that `write_graph` wrote."""
    graph = fx.Graph()
    made: list[fx.Node] = []

    def back(value: Any) -> Any:
        if isinstance(value, Ref):
            return made[value.number]
        if isinstance(value, (list, tuple)):
            return type(value)(map(back, value))
        if isinstance(value, slice):
            return slice(back(value.start), back(value.stop), back(value.step))
        return {key: back(one) for key, one in value.items()} if isinstance(value, dict) else value

    for number, (kind, name, args, kwargs) in enumerate(lines):
        if kind == "placeholder":
            made.append(graph.placeholder(f"input_{number}"))
        elif kind == "output":
            made.append(graph.output(back(args[0])))
        else:
            target = operator.getitem if name == "getitem" else _operation(name)
            made.append(graph.call_function(target, tuple(back(args)), back(kwargs)))
    return fx.GraphModule(torch.nn.Module(), graph)


def _operation(name: str) -> Any:
    space, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, space), packet), overload)
