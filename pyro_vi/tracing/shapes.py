"""Shapes that depend on the values of tensors, which a graph would hold as they were when it was traced.

A trace runs on real tensors. Of ``x[mask]`` or ``nonzero`` a program learns a number, the length, by which Python may decide:
for ever, as no later call asks again. `refuse_varying_shapes` finds the operations that give such a number away, where the
values behind it are others in the next call. Those of constants are not, nor those of buffers that are only read, such as the
mask of a coupling layer.
"""

from typing import Any

import torch
from torch import fx

from pyro_vi.errors import NoGraph
from pyro_vi.support.torch_internals import schema

OPERATION = type(torch.ops.aten.mm.default)
"""What the operations of a graph are, but for those of Python."""

UNTAGGED = ("_pack_padded_sequence", "_to_sparse", "unique_dim_consecutive")
"""Operations whose results have a shape that depends on values, and which torch does not tag so."""
WRITTEN = {
    "index": "x[mask]",
    "_pack_padded_sequence": "a packed sequence",
    "_unique2": "unique",
    "_to_sparse": "to_sparse",
}
"""How people write some operations."""


def is_random(node: fx.Node) -> bool:
    """Whether a node draws from torch's generator."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def refuse_varying_shapes(graph: fx.Graph, state: int = 0) -> None:
    """Raise where the shape of a result depends on values that are others in the next call.

    Args:
        graph: as it was traced, with what is not used.
        state: how many of its first inputs are held from call to call: those that it does not write into stay as they are.

    Raises:
        NoGraph: with the operation.
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
    """The inputs by whose values the shape of a node's result is decided."""
    operation = node.target
    if not isinstance(operation, OPERATION):  # such as an item of a tuple
        return []
    if operation is torch.ops.aten.index.Tensor:
        indices: Any = node.args[1]
        return [i for i in indices if i is not None and i.meta["val"].dtype in (torch.bool, torch.uint8)]
    tagged = torch.Tag.dynamic_output_shape in operation.tags
    return node.all_input_nodes if tagged or _name(operation) in UNTAGGED else []


def _written(node: fx.Node) -> list[fx.Node]:
    """What a node writes into, and all that this is a view of."""
    if not isinstance(node.target, OPERATION) or not schema(node.target).is_mutable:
        return []
    arguments = schema(node.target).arguments
    given = dict(zip((a.name for a in arguments), node.args, strict=False)) | node.kwargs
    into = [given.get(a.name) for a in arguments if a.alias_info and a.alias_info.is_write]
    found = [part for value in into for part in (value if isinstance(value, list | tuple) else [value])]
    return [base for one in found if isinstance(one, fx.Node) for base in _memory(one)]


def _memory(node: fx.Node) -> list[fx.Node]:
    """A node, and all that it is a view of."""
    chain = [node]
    # A view, an operation in place, and an item of a list of views share memory with their first input.
    while not isinstance(node.target, OPERATION) or any(r.alias_info for r in schema(node.target).returns):
        if not node.all_input_nodes:
            break
        node = node.all_input_nodes[0]
        chain.append(node)
    return chain


def _name(operation: Any) -> str:
    return str(schema(operation).name).removeprefix("aten::")
