"""Many calls of a recorded graph in which some inputs stay: what depends on these alone is computed once.

* `Replay` splits a graph in two, and calls the second part with results in memory that is used again.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vi.errors import NoGraph
from pyro_vi.support.torch_internals import schema
from pyro_vi.tracing.recording import Recording
from pyro_vi.tracing.shapes import OPERATION


class Replay:
    """Calls of a graph at fixed values of its first inputs.

    Operations whose arguments do not depend on the other inputs run once, in `fix`. The others run in each call, with the
    numbers of the recorded operations, bit for bit. Their results lie in buffers that later operations use again, so that a
    call allocates its outputs only.

    Args:
        recording: the graph; what it writes to in place must be its own.
        fixed: number of first inputs that are fixed.

    Raises:
        NoGraph: an operation writes to a tensor that stays from call to call.

    Example:
        >>> from pyro_vi.tracing.recording import record
        >>> replay = Replay(record(lambda w, x: (w.exp() * x).tanh().sum(), torch.zeros(3), torch.ones(3)), fixed=1)
        >>> replay.fix(torch.zeros(3))
        >>> replay(torch.zeros(3))
        (tensor(0.),)
    """

    def __init__(self, recording: Recording, fixed: int) -> None:
        graph = recording.graph
        graph.eliminate_dead_code()
        places = [node for node in graph.nodes if node.op == "placeholder"]
        output = next(node for node in graph.nodes if node.op == "output")
        later = set(places[fixed:])
        for node in graph.nodes:
            if not later.isdisjoint(node.all_input_nodes):
                later.add(node)
        inner = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
        before, body = [node for node in inner if node not in later], [node for node in inner if node in later]
        if not all(_owned(node, set(part)) for part in (before, body) for node in part):
            raise NoGraph("an operation writes to a tensor that stays from call to call")
        held = [n for n in [*places[:fixed], *before] if not later.isdisjoint(n.users) or output in n.users]
        results = output.args[0] if isinstance(output.args[0], list | tuple) else (output.args[0],)
        root = recording.root
        constants = root if isinstance(root, dict) else dict(root.named_buffers()) | dict(root.named_parameters())
        # Element-wise operations are slow on expanded tensors, and on parts of rows.
        self._dense = [all(user in later and _pointwise(user) for user in node.users) for node in held]
        self._before = _function(places[:fixed], before, held, {}, constants)
        self._after = _function([*held, *places[fixed:]], body, results, _buffers(body, output), {})
        self._held: tuple[Any, ...] = ()

    def fix(self, *values: Tensor) -> None:
        """Set the fixed inputs."""
        found = self._before(*values)
        self._held = tuple(v.contiguous() if dense else v for v, dense in zip(found, self._dense, strict=True))

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self._after(*self._held, *values)


def _function(
    inputs: Sequence[fx.Node],
    body: Sequence[fx.Node],
    results: Sequence[Any],
    buffers: Mapping[fx.Node, tuple[Any, Tensor]],
    constants: Mapping[str, Any],
) -> Callable[..., tuple[Tensor, ...]]:
    """The operations of ``body`` as a Python function, which forgets each tensor after its last use."""
    graph, at = fx.Graph(), dict[fx.Node, fx.Node]()
    stays = [(node, constants[str(node.target)]) for node in body if node.op == "get_attr"]
    outs = [(node, buffers[node][1]) for node in body if node in buffers]
    # What stays is an argument that is given now: to look up an attribute of a module takes longer.
    for number, (node, _) in enumerate(stays):
        at[node] = graph.placeholder(f"held_{number}")
    into = {node: graph.placeholder(f"out_{number}") for number, (node, _) in enumerate(outs)}
    for number, node in enumerate(inputs):
        at[node] = graph.placeholder(f"input_{number}")
    for node in body:
        if node.op == "get_attr":
            continue
        operation: Any = buffers[node][0] if node in buffers else node.target
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), at.__getitem__)
        if node in into:
            kwargs = {**kwargs, "out": into[node]}
        at[node] = graph.call_function(operation, args, kwargs)
    graph.output(tuple(fx.node.map_arg(tuple(results), at.__getitem__)))
    made = fx.GraphModule(torch.nn.Module(), graph)
    return partial(made.forward, *(value for _, value in (*stays, *outs)))


def _buffers(body: Sequence[fx.Node], output: fx.Node) -> dict[fx.Node, tuple[Any, Tensor]]:
    """For each operation that can write its result into a given tensor, that form of it, and a tensor that is free then."""
    roots: dict[int, fx.Node] = {}
    for node in body:
        for one in _tensors(node):
            roots.setdefault(one.untyped_storage().data_ptr(), node)

    def owners(node: fx.Node) -> set[fx.Node]:
        found = {roots.get(value.untyped_storage().data_ptr()) for value in _tensors(node)}
        return {one for one in found if one is not None}

    last: dict[fx.Node, int] = {}
    for index, node in enumerate(body):
        for source in node.all_input_nodes:
            last.update(dict.fromkeys(owners(source), index))
    kept = {one for node in output.all_input_nodes for one in owners(node)}
    ends: dict[int, list[fx.Node]] = {}
    for node, index in last.items():
        ends.setdefault(index, []).append(node)
    free: dict[tuple[torch.dtype, torch.device, int], list[Tensor]] = {}
    blocks: dict[fx.Node, Tensor] = {}
    result: dict[fx.Node, tuple[Any, Tensor]] = {}
    for index, node in enumerate(body):
        value: Any = node.meta.get("val")
        if isinstance(value, Tensor) and owners(node) == {node} and node not in kept and _dense(value):
            into = _with_out(node.target)
            if into is not None:
                key = (value.dtype, value.device, value.numel())
                block = _in_place(node, index, blocks, last, owners)
                if block is None:
                    waiting = free.get(key)
                    block = waiting.pop() if waiting else torch.empty(key[2], dtype=key[0], device=key[1])
                blocks[node] = block
                result[node] = (into, block.as_strided(value.shape, value.stride()))
        for ended in ends.get(index, ()):
            owned = blocks.get(ended)
            if owned is not None and (ended is node or blocks.get(node) is not owned):
                free.setdefault((owned.dtype, owned.device, owned.numel()), []).append(owned)
    return result


def _in_place(node: fx.Node, index: int, blocks: Any, last: Any, owners: Any) -> Tensor | None:
    """The memory of an argument that an element-wise operation is the last to read, or None."""
    if not _pointwise(node):
        return None
    value = node.meta["val"]
    for source in node.all_input_nodes:
        one = source.meta.get("val")
        if not isinstance(one, Tensor) or one.dtype != value.dtype or one.shape != value.shape:
            continue
        if one.stride() != value.stride() or not _dense(one):
            continue
        owned = owners(source)
        if len(owned) != 1:
            continue
        (owner,) = owned
        shared = sum(owner in owners(other) for other in node.all_input_nodes)
        if last.get(owner) == index and owner in blocks and shared == 1 and blocks[owner].numel() == value.numel():
            block: Tensor = blocks[owner]
            return block
    return None


def _pointwise(node: fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _owned(node: fx.Node, body: set[fx.Node]) -> bool:
    """True if a node writes to no memory, or only to that of an operation of ``body``."""
    if not isinstance(node.target, OPERATION) or not schema(node.target).is_mutable:
        return True
    chain = [node]
    while chain[-1].all_input_nodes and _address(chain[-1].all_input_nodes[0]) == _address(node):
        chain.append(chain[-1].all_input_nodes[0])
    return all(one in body and one.op == "call_function" for one in chain)


def _address(node: fx.Node) -> int:
    return next((value.untyped_storage().data_ptr() for value in _tensors(node)), -1)


def _tensors(node: fx.Node) -> list[Tensor]:
    value = node.meta.get("val")
    return [one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, Tensor)]


def _dense(value: Tensor) -> bool:
    """True if the elements of a tensor fill its memory without gaps or overlap, from its start."""
    expected = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return value.numel() > 0 and value.storage_offset() == 0 and value.untyped_storage().nbytes() == value.nbytes


@cache
def _with_out(operation: Any) -> Any:
    """The form of an operation that writes its one result into an argument ``out``, or None."""
    if not isinstance(operation, OPERATION) or len(schema(operation).returns) != 1:
        return None
    wanted = [(a.name, str(a.type)) for a in schema(operation).arguments]
    for name in operation.overloadpacket.overloads():
        other = getattr(operation.overloadpacket, name)
        arguments = schema(other).arguments
        if not arguments or arguments[-1].name != "out" or not arguments[-1].alias_info:
            continue
        if [(a.name, str(a.type)) for a in arguments[:-1]] == wanted:
            return other
    return None
