"""Shapes that depend on the values of tensors, which a graph would freeze.

A trace runs on real tensors. The length of ``x[mask]`` or ``nonzero`` is then a Python number, and the graph keeps it for every
call. `refuse_varying_shapes` finds operations with such results whose values differ from call to call. It accepts operations on
constants, and on buffers that are only read, such as the mask of a coupling layer.
"""

from typing import Any

import torch
from torch import fx

from pyro_vi.errors import NoGraph
from pyro_vi.support.torch_internals import schema

OPERATION = type(torch.ops.aten.mm.default)
"""The class of torch's operations in a graph; other nodes are Python functions."""

UNTAGGED = ("_pack_padded_sequence", "_to_sparse", "unique_dim_consecutive")
"""Operations whose result has a shape that depends on values, although torch does not tag them so."""
WRITTEN = {
    "index": "x[mask]",
    "_pack_padded_sequence": "a packed sequence",
    "_unique2": "unique",
    "_to_sparse": "to_sparse",
}
"""Some operations as a user writes them, for messages."""


def is_random(node: fx.Node) -> bool:
    """True if a node draws from torch's generator."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def refuse_varying_shapes(graph: fx.Graph, state: int = 0) -> None:
    """Raise an error if the shape of a result depends on values that may differ from call to call.

    Args:
        graph: a traced graph, with its unused operations.
        state: number of first inputs that persist from call to call; those that the graph does not write to are constants.

    Raises:
        NoGraph: a shape depends on such values; the message names the operation.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    written = {base for node in graph.nodes for base in _written(node)}
    varying = {*inputs[state:], *(node for node in inputs[:state] if node in written)}
    for node in graph.nodes:
        if is_random(node) or any(not varying.isdisjoint(_memory(source)) for source in node.all_input_nodes):
            varying.update((node, *_written(node)))
        if any(not varying.isdisjoint(_memory(source)) for source in _shaping(node)):
            name = _name(node.target)
            raise NoGraph(
                f"the programs use a shape that depends on values ({WRITTEN.get(name, name)}), which would be the same for all "
                "draws and batches; use torch.where, or multiply by the mask"
            )


def _shaping(node: fx.Node) -> list[fx.Node]:
    """Return the inputs whose values determine the shape of a node's result."""
    operation = node.target
    if not isinstance(operation, OPERATION):  # such as an item of a tuple
        return []
    if operation is torch.ops.aten.index.Tensor:
        indices: Any = node.args[1]
        return [i for i in indices if i is not None and i.meta["val"].dtype in (torch.bool, torch.uint8)]
    tagged = torch.Tag.dynamic_output_shape in operation.tags
    return node.all_input_nodes if tagged or _name(operation) in UNTAGGED else []


def _written(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that a node writes to, and those that they are views of."""
    if not isinstance(node.target, OPERATION) or not schema(node.target).is_mutable:
        return []
    arguments = schema(node.target).arguments
    given = dict(zip((a.name for a in arguments), node.args, strict=False)) | node.kwargs
    into = [given.get(a.name) for a in arguments if a.alias_info and a.alias_info.is_write]
    found = [part for value in into for part in (value if isinstance(value, list | tuple) else [value])]
    return [base for one in found if isinstance(one, fx.Node) for base in _memory(one)]


def _memory(node: fx.Node) -> list[fx.Node]:
    """Return a node and all nodes that it is a view of."""
    chain = [node]
    # A view, an in-place operation and an item of a list of views share memory with their first input.
    while not isinstance(node.target, OPERATION) or any(r.alias_info for r in schema(node.target).returns):
        if not node.all_input_nodes:
            break
        node = node.all_input_nodes[0]
        chain.append(node)
    return chain


def _name(operation: Any) -> str:
    return str(schema(operation).name).removeprefix("aten::")
