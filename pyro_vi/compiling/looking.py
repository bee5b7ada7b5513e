"""One run of a flat graph on real inputs, which shows the value of each node and the memory that is changed.

* `look` runs a graph and returns what it has `Seen`: the value of each node, and the memory that is changed.
* `memory`, `tensors`, `written`, `writes`, `is_random` and `name_of` say what values and operations are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vi.errors import NoGraph
from pyro_vi.support.torch_internals import memory, schema
from pyro_vi.tracing import OPERATION, Recording

_NORMS = {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"}
"""Operations that change their fourth and fifth operand, the running statistics, although their schema does not say so."""


@dataclass
class Seen:
    """A graph, and what one run of it on real inputs has shown.

    Attributes:
        graph: the flat graph.
        values: the value of each node: a tensor, or a tuple or list of tensors.
        inputs: its inputs, in order.
        changed: the memory that operations change in place.
    """

    graph: fx.Graph
    values: dict[fx.Node, Any]
    inputs: list[fx.Node]
    changed: set[int]


def look(recording: Recording, inputs: Sequence[Tensor], free: Sequence[int] = ()) -> Seen:
    """Run a graph once on real inputs, and note every value and the memory that is changed.

    Args:
        recording: the graph.
        inputs: its inputs.
        free: positions of inputs that it may change.

    Raises:
        NoGraph: it would change another input, or a tensor of the programs; neither has changed then.
    """
    own = {memory(value) for i, value in enumerate(inputs) if i not in free}
    values: dict[fx.Node, Any] = {}
    changed: set[int] = set()
    given = iter(inputs)
    places = []
    with torch.no_grad():
        for node in recording.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
                places.append(node)
            elif node.op == "get_attr":
                values[node] = recording.constant(node)
                own.add(memory(values[node]))
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
                now = {memory(value) for value in written(node, args, kwargs)}
                if now & own:
                    raise NoGraph(
                        "the programs change a parameter or data in place; change a copy, or hold the tensor in a buffer"
                    )
                changed |= now
                values[node] = node.target(*args, **kwargs)
    return Seen(recording.graph, values, places, changed)


def written(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the arguments that an operation changes in place."""
    if not isinstance(node.target, OPERATION):
        return []
    found: list[Tensor] = []
    hidden = (3, 4) if _hides(node) else ()
    for position, argument in enumerate(schema(node.target).arguments):
        if position in hidden or (argument.alias_info is not None and argument.alias_info.is_write):
            value = kwargs.get(argument.name, args[position] if position < len(args) else None)
            found += [value] if isinstance(value, Tensor) else list(value or ())
    return found


def writes(node: fx.Node) -> bool:
    """True if an operation may change an operand."""
    if not isinstance(node.target, OPERATION):
        return False
    return bool(schema(node.target).is_mutable) or _hides(node)


def _hides(node: fx.Node) -> bool:
    return name_of(node) in _NORMS and bool(node.args[5])  # in training


def is_random(node: fx.Node) -> bool:
    """True if an operation draws from a generator."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def name_of(node: fx.Node) -> str:
    """Return the name of an operation without namespace and overload, as in ``"mul"``."""
    found = getattr(node.target, "overloadpacket", None)
    return "" if found is None else str(found).removeprefix("aten.")


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a value of a node."""
    if isinstance(value, Tensor):
        return [value]
    return [one for part in value for one in tensors(part)] if isinstance(value, (tuple, list)) else []
