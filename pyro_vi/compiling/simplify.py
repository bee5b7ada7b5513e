"""A flat graph with less to do: `simplify` drops, merges and folds operations, and leaves every number as it was.

A graph from a trace holds much that only autograd and Pyro's handlers needed: views of views, copies that nobody changes,
densities whose value is not used, and numbers that are the same in every step. What is done, in this order:

* a view with the size and strides of an earlier view of the same memory is that view; a copy of memory that is never changed is
  the memory itself;
* an operation on constants alone is carried out once; a constant whose elements are all equal becomes a number;
* products with 1, quotients by 1, differences from 0 and powers of 1 are their other operand;
* equal operations on equal operands are one;
* an operation whose result is not used is left out, unless it draws random numbers, changes memory or checks a value.

The memory of every value is known from one run on the real inputs, so no rule rests on what an operation is said to return.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vi.compiling.looking import OPERATION, Seen, is_random, look, memory, name_of, tensors, writes
from pyro_vi.errors import NoGraph
from pyro_vi.support.torch_internals import schema
from pyro_vi.tracing import Recording

FOLDED = 2**26
"""Most bytes of constants that are computed once and kept."""

aten = torch.ops.aten
_MAKERS = {"zeros", "ones", "full", "arange", "scalar_tensor", "eye", "linspace"}
_LIKE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
_COPIES = {"clone", "lift_fresh_copy", "lift_fresh", "contiguous"}
_NEUTRAL = {"mul": (1.0, True), "div": (1.0, False), "add": (-0.0, True), "sub": (0.0, False), "pow": (1.0, False)}
"""The second operand that leaves the first unchanged, and whether the two may change places; −0 + 0 is 0, and no longer −0."""


def simplify(recording: Recording, inputs: Sequence[Tensor], free: Sequence[int] = ()) -> tuple[Recording, Seen]:
    """Return a graph with the same results, and what a run of it shows.

    Args:
        recording: the flat graph; it returns tensors.
        inputs: real inputs, on which it runs twice.
        free: positions of inputs that it may change.

    Raises:
        NoGraph: it would change another input, or a tensor of the programs.
    """
    rewriter = _Rewriter(look(_with_views(recording), inputs, free))
    small = rewriter.written()
    return small, look(small, inputs, free)


class _Rewriter:
    """The rules, applied to one node after the other."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.graph = fx.Graph()
        self.held: dict[str, Tensor] = {}
        self.at: dict[fx.Node, fx.Node] = {}  # the new node of an old one
        self.value: dict[fx.Node, Any] = {}  # the value of a new node
        self.constant: dict[fx.Node, bool] = {}
        self.views: dict[Any, fx.Node] = {}
        self.equal: dict[Any, fx.Node] = {}
        self.place: dict[int, int] = {}  # the memory in which the values of an old memory lie, if that is another
        self.folded = 0

    def written(self) -> Recording:
        """Return the new graph."""
        for node in self.seen.graph.nodes:
            if node.op == "output":
                self.graph.output(self._own(fx.node.map_arg(node.args[0], self.at.__getitem__)))
                continue
            new = self._of(node)
            self.at[node] = new
            self.value.setdefault(new, self.seen.values[node])
            for old, now in zip(tensors(self.seen.values[node]), tensors(self.value[new]), strict=True):
                if memory(old) != memory(now):
                    self.place.setdefault(memory(old), self._memory(now))
            self._remember(new)
        _drop(self.graph)
        return Recording(self.graph, self.held)

    def _own(self, results: Any) -> tuple[Any, ...]:
        """Return the results, each in memory of its own, as a caller may change them."""
        taken = {self._memory(self.value[new]) for new in self.graph.nodes if new.op in ("placeholder", "get_attr")}
        found = []
        for new in results:
            if self._memory(self.value[new]) in taken:
                new = self.graph.call_function(aten.clone.default, (new,))
            else:
                taken.add(self._memory(self.value[new]))
            found.append(new)
        return tuple(found)

    def _memory(self, value: Tensor) -> int:
        """Return the memory of a value in the new graph, which lacks the copy of which it may be a view."""
        return self.place.get(memory(value), memory(value))

    def _remember(self, new: fx.Node) -> None:
        value = self.value[new]
        if isinstance(value, Tensor):
            self.views.setdefault(_view(value), new)

    def _of(self, node: fx.Node) -> fx.Node:
        value = self.seen.values[node]
        if node.op == "placeholder":
            return self.graph.placeholder(str(node.target))
        if node.op == "get_attr":
            # A number written in a program is lifted at once. Any other tensor may be changed between two steps.
            literal = all(name_of(user).startswith("lift_fresh") for user in node.users)
            literal = literal or bool(node.meta.get("literal"))
            return self._keep(value, constant=literal)
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self.at.__getitem__)
        same = self._same(node, args, value)
        if same is not None:
            return same
        sources = _nodes((args, kwargs))
        pure = self._pure(node, value, sources)
        if pure and self._is_constant(node, sources) and isinstance(value, Tensor):
            size = value.untyped_storage().nbytes()
            if self.folded + size <= FOLDED:
                self.folded += size
                return self._keep(value)
        key = _key(node.target, args, kwargs) if pure else None
        if key is not None and key in self.equal:
            return self.equal[key]
        args = self._with_numbers(node, args, value)
        new = self.graph.create_node("call_function", node.target, args, kwargs)
        if key is not None:
            self.equal[key] = new
        return new

    def _same(self, node: fx.Node, args: Any, value: Any) -> fx.Node | None:
        """Return the new node whose value this one has, if there is one."""
        if not isinstance(value, Tensor):
            return None
        if not writes(node) and (earlier := self.views.get(_view(value))) is not None:
            return earlier
        name, first = name_of(node), args[0] if args else None
        if not isinstance(first, fx.Node) or not isinstance(self.value[first], Tensor):
            return self._neutral(node, args, value)
        old = self.value[first]
        copies = name in _COPIES or (name == "_to_copy" and old.dtype == value.dtype and old.device == value.device)
        if copies and self._calm(old) and self._calm(value) and _layout(old) == _layout(value):
            return first
        return self._neutral(node, args, value)

    def _neutral(self, node: fx.Node, args: Any, value: Tensor) -> fx.Node | None:
        name = name_of(node)
        if name not in _NEUTRAL or len(args) != 2 or node.kwargs or not self._calm(value):
            return None  # a keyword scales or rounds
        number, both = _NEUTRAL[name]
        for kept, other in ((0, 1), (1, 0)) if both else ((0, 1),):
            operand = args[kept]
            found = self._number(args[other])
            if found == number and math.copysign(1, found) == math.copysign(1, number) and isinstance(operand, fx.Node):
                old = self.value[operand]
                if self._calm(old) and old.dtype == value.dtype and _layout(old) == _layout(value):
                    return operand
        return None

    def _number(self, operand: Any) -> float | None:
        """Return the number that an operand is, or that all its elements are; None if there is none."""
        if isinstance(operand, (int, float)) and not isinstance(operand, bool):
            return float(operand)
        if isinstance(operand, fx.Node) and self.constant.get(operand):
            found = self.value[operand]
            if found.is_floating_point() and found.numel() and self._calm(found):
                first = found.reshape(-1)[0]
                if bool(((found == first) & (found.signbit() == first.signbit())).all()):
                    return float(first)
        return None

    def _with_numbers(self, node: fx.Node, args: Any, value: Any) -> Any:
        """Return the operands, with constants of one number in place of whole tensors of it."""
        if name_of(node) not in ("mul", "div", "add", "sub") or len(args) != 2 or not isinstance(value, Tensor):
            return args
        both = [isinstance(one, fx.Node) for one in args]
        if not all(both):
            return args
        for kept, other in ((0, 1), (1, 0)):
            old, now = self.value[args[kept]], self.value[args[other]]
            alike = old.shape == value.shape and old.dtype == value.dtype == now.dtype
            if alike and old.dim() and now.dim() and self._number(args[other]) is not None:
                number = now.reshape(-1)[:1].reshape(()).clone()
                return (args[0], self._keep(number)) if other == 1 else (self._keep(number), args[1])
        return args

    def _keep(self, value: Tensor, *, constant: bool = True) -> fx.Node:
        name = f"held_{len(self.held)}"
        self.held[name] = value
        new = self.graph.get_attr(name)
        self.value[new] = value
        self.constant[new] = constant and self._calm(value)
        return new

    def _pure(self, node: fx.Node, value: Any, sources: list[fx.Node]) -> bool:
        """True if an operation depends on its operands alone, changes nothing, and none of its memory is ever changed."""
        if is_random(node) or writes(node) or name_of(node).startswith(("empty", "new_empty", "_assert", "sym_")):
            return False
        parts = [*tensors(value), *(one for source in sources for one in tensors(self.value[source]))]
        return bool(tensors(value)) and all(map(self._calm, parts))

    def _is_constant(self, node: fx.Node, sources: list[fx.Node]) -> bool:
        name = name_of(node)
        if name in _MAKERS:
            return not sources
        return name in _LIKE or (bool(sources) and all(self.constant.get(source, False) for source in sources))

    def _calm(self, value: Tensor) -> bool:
        return memory(value) not in self.seen.changed


_TURNED = ("transpose_", "t_", "squeeze_", "unsqueeze_", "as_strided_", "swapaxes_", "swapdims_", "detach_")
"""Operations that give a tensor another shape in place; without the last sign they make a view instead."""


def _with_views(recording: Recording) -> Recording:
    """Return the graph with views in place of operations that give a tensor another shape in place.

    A trace lets all later operations use their result, and not the tensor that was changed.
    """
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in recording.graph.nodes:
        new = copied[node] = graph.node_copy(node, copied.__getitem__)
        if torch.Tag.inplace_view in getattr(node.target, "tags", ()):
            new.target = _viewing(node)
            assert isinstance(node.args[0], fx.Node)
            copied[node.args[0]] = new
    return Recording(graph, recording.root)


def _viewing(node: fx.Node) -> Any:
    """Return the operation that gives a view with the shape that an operation gives its operand."""
    name, wanted = name_of(node), [(a.name, str(a.type)) for a in schema(node.target).arguments]
    packet = getattr(aten, name[:-1]) if name in _TURNED else None
    for overload in () if packet is None else packet.overloads():
        other = getattr(packet, overload)
        if [(a.name, str(a.type)) for a in schema(other).arguments] == wanted:
            return other
    raise NoGraph(f"the programs change the shape of a tensor in place ({name}); make a new tensor instead")


def _drop(graph: fx.Graph) -> None:
    """Remove operations whose result is not used."""
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output"):
            continue
        if node.op == "call_function":
            operation = isinstance(node.target, OPERATION)
            acts = writes(node) or (operation and not schema(node.target).returns)
            if acts or is_random(node) or "_assert" in name_of(node):
                continue
        graph.erase_node(node)


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []

    def note(node: fx.Node) -> fx.Node:
        found.append(node)
        return node

    fx.node.map_arg(value, note)
    return found


def _view(value: Tensor) -> tuple[Any, ...]:
    return (memory(value), value.dtype, value.storage_offset(), _layout(value))


def _layout(value: Tensor) -> tuple[Any, ...]:
    # The stride of a dimension of length one is never used.
    strides = tuple(0 if size == 1 else step for size, step in zip(value.shape, value.stride(), strict=True))
    return (tuple(value.shape), strides, value.is_conj(), value.is_neg())


def _key(target: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple(plain(one) for one in value)
        return value if isinstance(value, fx.Node) else (type(value).__name__, repr(value))

    return (target, plain(args), tuple(sorted((key, plain(value)) for key, value in kwargs.items())))
