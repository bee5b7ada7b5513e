"""The flat graph of a function, recorded on real tensors alone: in a tenth of the time of `pyro_vi.tracing.graph.trace`.

`trace` also keeps a copy of each tensor without storage, as Inductor needs it. What is replayed in Python does not need it.

* `record` makes the graph, a `Recording`, with the same refusals as `trace`.
* `without_values` frees its tensors, and `copied` copies it.
* `Recorder` is the recording while it is made.
"""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vi.support.torch_internals import each_operation, schema
from pyro_vi.tracing.graph import Opaque, without_items
from pyro_vi.tracing.shapes import refuse_varying_shapes

READING = "It appears that you're trying to get value out of a tracing tensor"
"""Start of the message of make_fx, which `pyro_vi.tracing.graph.reason` explains."""
READ = "aten::_local_scalar_dense"
"""The operation by which Python reads a number from a tensor."""
SAME = (torch.ops.aten.detach.default, torch.ops.aten.lift_fresh.default, torch.ops.aten.alias.default)
"""Operations whose result is their argument: no gradients are left in a graph."""


class Recorder:
    """Tensor operations of a block as nodes of a graph.

    A node's ``meta["val"]`` is its tensor, so that no two tensors of one recording share an address.

    Attributes:
        graph: the nodes so far.
        constants: tensors from outside of the block, by the name of their node.
        raised: the operation that has raised an error, which the programs may have caught; empty if there is none.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.raised = ""
        self._nodes: dict[int, fx.Node] = {}
        self._memory: set[int] = set()
        self._constant: set[int] = set()
        self._kept: list[Tensor] = []

    def input(self, value: Tensor) -> None:
        """Add an input of the graph."""
        node = self.graph.placeholder(f"input_{len(self._nodes)}")
        self._place(node, value)

    def varies(self, value: Any) -> bool:
        """True if a tensor is an input or the result of an operation, and not a constant."""
        node = self._nodes.get(id(value))
        return node is not None and node.op != "get_attr"

    def node_of(self, value: Any) -> Any:
        """Return the node of a tensor; of a tensor from outside of the block that of a constant."""
        if not isinstance(value, Tensor):
            return value
        node = self._nodes.get(id(value))
        if node is None:
            # Such a tensor is a view that was made behind the recorder's back.
            if _address(value) in self._memory - {0}:  # a tensor without elements has no memory
                raise NotImplementedError("the programs use memory of a recorded tensor through another tensor")
            name = f"constant_{len(self.constants)}"
            self.constants[name] = value
            self._constant.add(_address(value))
            self._nodes[id(value)] = node = self.graph.create_node("get_attr", name)
            node.meta["val"] = value
        return node

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record the operations of the block."""
        with each_operation(self._run):
            yield

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if schema(func).name == READ:
            if self.varies(args[0]):
                raise RuntimeError(READING)
            return func(*args, **kwargs)
        arguments, named = fx.node.map_aggregate((args, kwargs), self.node_of)
        if schema(func).is_mutable and any(map(self._outside, (*args, *kwargs.values()))):
            raise NotImplementedError("the programs write to a tensor from outside, or to a list of tensors")
        try:
            result = func(*args, **kwargs)
        except Exception:
            self.raised = str(func)
            raise
        if func in SAME:
            self._nodes[id(result)] = arguments[0]
            self._kept.append(result)
            return result
        node = self.graph.call_function(func, arguments, named)
        if isinstance(result, Tensor):
            self._place(node, result)
        elif isinstance(result, list | tuple):
            node.meta["val"] = result
            for index, part in enumerate(result):
                if isinstance(part, Tensor):
                    item = self.graph.call_function(operator.getitem, (node, index))
                    self._place(item, part)
        elif result is not None:
            raise RuntimeError(READING)
        return result

    def _outside(self, value: Any) -> bool:
        return isinstance(value, list | tuple) or (isinstance(value, Tensor) and _address(value) in self._constant)

    def _place(self, node: fx.Node, value: Tensor) -> None:
        node.meta["val"] = value
        self._nodes[id(value)] = node
        self._memory.add(_address(value))


def _address(value: Tensor) -> int:
    try:
        return value.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors and the like
        return 0


@dataclass(frozen=True)
class Recording:
    """A recorded graph.

    Attributes:
        graph: its nodes; ``meta["val"]`` is the tensor that a node gave.
        root: holds the constants, a dictionary or a module.
    """

    graph: fx.Graph
    root: Any

    def module(self) -> fx.GraphModule:
        """Return the graph as a function."""
        return fx.GraphModule(self.root, self.graph)


def record(
    function: Callable[..., Any], *inputs: Tensor, state: int = 0, watch: Callable[[fx.Graph], Any] | None = None
) -> Recording:
    """Return the flat graph of a function of tensors; see `pyro_vi.tracing.graph.trace`.

    Args:
        function: takes the tensors, and returns a tensor or a tuple of tensors.
        inputs: example inputs.
        state: number of first inputs that persist from call to call; those that the function only reads are constants.
        watch: called with the empty graph before the function runs.

    Raises:
        Exception: the function cannot be recorded; `pyro_vi.tracing.graph.reason` returns the message in one line.

    Example:
        >>> graph = record(lambda x: (x + 1).tanh(), torch.zeros(2)).module()
        >>> graph(torch.full((2,), -1.0))
        tensor([0., 0.])
    """
    recorder = Recorder()
    # A fresh view of each input, because one tensor may be two inputs.
    inputs = tuple(value.detach() for value in inputs)
    for value in inputs:
        recorder.input(value)
    if watch is not None:
        watch(recorder.graph)
    with without_items(), Opaque(recorder.varies), recorder.running():
        result = function(*inputs)
    if recorder.raised:
        raise NotImplementedError(f"{recorder.raised} has raised an error, which the programs caught")
    refuse_varying_shapes(recorder.graph, state)
    recorder.graph.output(fx.node.map_aggregate(result, recorder.node_of))
    return Recording(recorder.graph, recorder.constants)


def without_values(graph: fx.Graph) -> None:
    """Put a tensor without storage in the place of each node's tensor, so that the graph holds no memory."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def copied(graph: fx.Graph) -> fx.Graph:
    """Return a copy of a graph, with what its nodes know of their tensors."""
    other = fx.Graph()
    other.output(other.graph_copy(graph, {}))
    return other
