"""The flat graph of a function, recorded on real tensors alone: in a fifth of the time of `pyro_vi.tracing.graph.trace`.

`trace` goes through torch's own tracer, which knows more kinds of tensors; `flat` falls back to it.

* `record` makes the graph, a `Recording`, with the same refusals as `trace`. `flat` traces what cannot be recorded.
* `without_values` frees its tensors, and `copied` copies it.
* `Recorder` is the recording while it is made.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vi.support.torch_internals import each_operation, schema
from pyro_vi.tracing.graph import Opaque, trace, without_items
from pyro_vi.tracing.shapes import refuse_varying_shapes

READING = "It appears that you're trying to get value out of a tracing tensor"
"""Start of the message of make_fx, which `pyro_vi.tracing.graph.reason` explains."""
MOST = 2**29
"""Bytes of the values of all operations, which a recording keeps, beyond which it fails: a trace keeps none of them."""
READ = "aten::_local_scalar_dense"
"""The operation by which Python reads a number from a tensor."""
SAME = (torch.ops.aten.detach.default, torch.ops.aten.lift_fresh.default, torch.ops.aten.alias.default)
"""Operations whose result is their argument: no gradients are left in a graph."""
LITERAL = torch.ops.aten.lift_fresh.default
"""The operation that makes a tensor of numbers written in a program. The node of such a constant has ``meta["literal"]``."""

KINDS = (
    torch.ops.aten.promote_types.default,
    torch.ops.aten.can_cast.default,
    torch.ops.aten.result_type.Tensor,
    torch.ops.aten.result_type.Scalar,
)
"""Operations whose result is a dtype, or follows from dtypes alone: it is the same in each call."""


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
        self._bytes = 0
        self._constant: set[int] = set()
        self._settled: set[int] = set()
        self._kept: list[Tensor] = []

    def input(self, value: Tensor) -> None:
        """Add an input of the graph."""
        node = self.graph.placeholder(f"input_{len(self._nodes)}")
        self._place(node, value)

    def varies(self, value: Any) -> bool:
        """True if a tensor is an input, is random, or depends on such a tensor; False for one made of constants alone."""
        return id(value) in self._nodes and _address(value) not in self._settled - {0}

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
            self._settled.add(_address(value))
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
        changed = _written(func, args, kwargs) if schema(func).is_mutable else []
        if any(map(self._outside, changed)):
            raise NotImplementedError("the programs write to a tensor from outside, or to a list of tensors")
        settled = self._settles(func, args, kwargs)
        if not settled:
            self._settled.difference_update(_address(value) for value in changed if isinstance(value, Tensor))
        try:
            result = func(*args, **kwargs)
        except Exception:
            self.raised = str(func)
            raise
        if func in SAME:
            if func is LITERAL and arguments[0].op == "get_attr":
                arguments[0].meta["literal"] = True
            self._nodes[id(result)] = arguments[0]
            self._kept.append(result)
            return result
        if func in KINDS:
            return result
        node = self.graph.call_function(func, arguments, named)
        if settled:
            self._settled.update(map(_address, _tensors(result)))
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

    def _settles(self, func: Any, args: Any, kwargs: Any) -> bool:
        """True if the results of an operation depend on constants alone."""
        random = torch.Tag.nondeterministic_seeded in func.tags
        return not random and not any(map(self.varies, _tensors((args, kwargs))))

    def _outside(self, value: Any) -> bool:
        return isinstance(value, list | tuple) or (isinstance(value, Tensor) and _address(value) in self._constant)

    def _place(self, node: fx.Node, value: Tensor) -> None:
        node.meta["val"] = value
        self._nodes[id(value)] = node
        if _address(value) not in self._memory:
            self._memory.add(_address(value))
            self._bytes += value.untyped_storage().nbytes() if _address(value) else 0
            if self._bytes > MOST:
                raise NotImplementedError("the values of all operations together take too much memory")


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the arguments that an operation writes to."""
    given = dict(zip((one.name for one in schema(func).arguments), args, strict=False)) | dict(kwargs)
    into = (one.name for one in schema(func).arguments if one.alias_info and one.alias_info.is_write)
    return [given[name] for name in into if name in given]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [one for part in parts for one in _tensors(part)]


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

    @classmethod
    def of(cls, module: fx.GraphModule) -> "Recording":
        """Return the graph of a module, such as one that `pyro_vi.tracing.graph.trace` has made."""
        return cls(module.graph, module)

    def constant(self, node: fx.Node) -> Any:
        """Return the constant that a node of kind ``get_attr`` names."""
        name = str(node.target)
        return self.root[name] if isinstance(self.root, dict) else operator.attrgetter(name)(self.root)

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


def flat(
    function: Callable[..., Any], *inputs: Tensor, state: int = 0, watch: Callable[[fx.Graph | None], Any] | None = None
) -> Recording:
    """Return the flat graph of a function of tensors: a recording, or where that fails a trace.

    A trace knows more kinds of tensors, knows which numbers are constants, and needs other parts of torch.

    Args:
        function: takes the tensors, and returns a tensor or a tuple of tensors; it runs twice if it cannot be recorded.
        inputs: example inputs.
        state: as in `record`.
        watch: as in `record`; called with None before a trace.

    Raises:
        Exception: the function cannot be traced; `pyro_vi.tracing.graph.reason` returns the message in one line.

    Example:
        >>> flat(lambda x: x + x.shape[0], torch.zeros(2)).module()(torch.ones(2))
        tensor([3., 3.])
    """
    try:
        return record(function, *inputs, state=state, watch=watch)
    except (NotImplementedError, RuntimeError):
        if watch is not None:
            watch(None)
        return Recording.of(trace(function, *inputs, state=state))


def without_values(graph: fx.Graph) -> None:
    """Put a tensor without storage in the place of each node's tensor, so that the graph holds no memory."""
    for node in graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = fx.node.map_aggregate(node.meta["val"], _bare)


def _bare(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def copied(graph: fx.Graph) -> fx.Graph:
    """Return a copy of a graph, with what its nodes know of their tensors."""
    other = fx.Graph()
    other.output(other.graph_copy(graph, {}))
    return other
