"""A flat graph carried out operation by operation on fixed memory, without a compiler.

* `Replay` simplifies a graph, gives each of its values a place in memory, and writes it as a list of calls of torch's own
  operations. A call of it runs the list. Views are made once, results are written into their places, and a place is used again
  when its value is no longer needed. So nothing is allocated in a call, and Python does no more than go through the list.

Each call of the list is chosen at the start by trial: the public function of torch with ``out=``, the operation's own variant
with outputs, or the operation itself with a copy into its place. The first that gives the operation's numbers is taken.
"""

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vi.compiling.looking import OPERATION, Seen, is_random, memory, name_of, tensors, written
from pyro_vi.compiling.simplify import simplify
from pyro_vi.compiling.ways import IN_PLACE, Way, method, plain, then_copied, ways_of
from pyro_vi.support import generators, kept_generators, set_generators
from pyro_vi.support.torch_internals import schema
from pyro_vi.tracing import Recording

Call = Callable[[], Any]
ALIGNED = 64
"""Bytes to a multiple of which results that lie side by side begin; the bytes between them are zero."""


class Replay:
    """A graph as a list of calls.

    Args:
        graph: the flat graph; it returns tensors, and changes none of its inputs.
        inputs: example inputs. The first ``kept`` are read where they lie, in every call.
        kept: number of first inputs that are the same tensors in every call; their values may change.
        copied: positions, among the others, of inputs that are copied to a place of their own in each call. The others are read
            where they lie: for another tensor, the calls that read it are made anew.
        beside: positions of results that are wanted as one vector.

    Attributes:
        calls: the calls, in order.
        results: the tensors in which the results are after a call.
        beside: the elements of the results that ``beside`` names, side by side, as one vector; None if they cannot lie so.

    Example:
        >>> from pyro_vi.tracing import record
        >>> weight, x = torch.ones(2), torch.tensor([1.0, 2.0])
        >>> graph = record(lambda weight, x: [(weight * x).sum()], weight, x)
        >>> replay = Replay(graph, [weight, x], kept=1, copied=(0,))
        >>> float(replay([x])[0]), float(replay([2 * x])[0])
        (3.0, 6.0)
    """

    def __init__(
        self,
        graph: Recording,
        inputs: Sequence[Tensor],
        kept: int,
        copied: Sequence[int],
        beside: Sequence[int] = (),
    ) -> None:
        self.recorded: Any = None
        self.kept = [value.detach() for value in inputs[:kept]]
        given = list(inputs[kept:])
        # One tensor that is given twice may be two in a later call.
        where = [memory(value) for value in given]
        twice = {i for i, one in enumerate(where) if where.count(one) > 1}
        copied = sorted({*copied, *twice})
        self._places = {i: given[i].clone() for i in copied}
        self._last: list[Any] = list(given)
        given = [self._places.get(i, value) for i, value in enumerate(given)]
        with kept_generators(), torch.no_grad():
            self.graph, seen = simplify(graph, [*self.kept, *given], [kept + i for i in copied])
            self._changing = [i for i, place in self._places.items() if memory(place) in seen.changed]
            self._plan = _Plan(self.graph, seen, beside)
            self._plan.bind([*self.kept, *given])
        self.calls, self.results = self._plan.calls, self._plan.results
        self.beside = self._plan.vector
        self._plan.forget()
        self.refresh()

    def __call__(self, source: Sequence[Tensor]) -> list[Tensor]:
        """Run the list; return its results, whose memory the next call uses again."""
        last, moved = self._last, dict[int, Tensor]()
        for i, value in enumerate(source):
            if value is not last[i]:
                if i in self._places:
                    self._places[i].copy_(value)
                    last[i] = value
                else:
                    moved[len(self.kept) + i] = value
        if moved:
            with torch.no_grad():
                self._plan.rebind(moved)
            self.calls = self._plan.calls
            self._last = list(source)
        for i in self._changing:  # by the calls
            self._last[i] = None
        for call in self.calls:
            call()
        return self.results

    def refresh(self) -> None:
        """Copy the copied inputs anew in the next call, also if they are the same tensors with other values."""
        for i in self._places:
            self._last[i] = None


class _Plan:
    """The places of a graph's values, and the functions of its calls."""

    def __init__(self, graph: Recording, seen: Seen, beside: Sequence[int]) -> None:
        self.graph, self.seen = graph, seen
        self.vector: Tensor | None = None
        self.nodes = list(graph.graph.nodes)
        self.output = self.nodes[-1]
        own = {memory(seen.values[n]) for n in self.nodes if n.op in ("placeholder", "get_attr")}
        self.own = own
        # Whose memory a value is, and where in it.
        self.of: dict[fx.Node, list[tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...], int]]] = {}
        for node in self.nodes[:-1]:
            self.of[node] = [_where(value) for value in tensors(seen.values[node])]
        self.form = {node: _form(value) for node, value in seen.values.items()}
        self.makers: dict[fx.Node, Callable[..., Any]] = {}
        self.at: dict[fx.Node, Any] = {}
        self.numbers: dict[fx.Node, int] = {}  # of a node's call
        self.calls: list[Call] = []
        self.results: list[Tensor] = []
        self.pools = self._side_by_side(beside)
        self.pools |= self._pools(self.pools)

    def _side_by_side(self, positions: Sequence[int]) -> dict[int, Tensor]:
        """Return blocks for results that lie side by side, and keep them as one vector; empty if they cannot lie so."""
        results = self.output.args[0]
        found = [self.of[results[i]][0] for i in positions if isinstance(results[i], fx.Node)]
        sizes = [self.seen.values[results[i]].untyped_storage().nbytes() for i in positions]
        alike = len({one[1] for one in found}) == 1 and len({one[0] for one in found}) == len(found)
        whole = [s == math.prod(one[2]) * one[1].itemsize for s, one in zip(sizes, found, strict=True)]
        if not alike or not all(whole) or any(one[0] in self.own for one in found):
            return {}
        starts = [0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes)]
        device = self.seen.values[results[positions[0]]].device
        block = torch.zeros(starts[-1], dtype=torch.uint8, device=device)
        self.vector = block.view(found[0][1])
        return {one[0]: block[s : s + size] for one, s, size in zip(found, starts, sizes, strict=False)}

    def _pools(self, given: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return, for each memory that the graph makes, the block of bytes in which it lies."""
        last: dict[int, int] = {}
        for position, node in enumerate(self.nodes):
            for used in [*node.all_input_nodes, node]:
                for one in self.of.get(used, ()):
                    last[one[0]] = position
        results = {one[0] for node in self.output.all_input_nodes for one in self.of[node]}
        ends = defaultdict(list)
        for key, position in last.items():
            if key not in self.own and key not in results:
                ends[position].append(key)
        blocks: dict[int, Tensor] = {}
        free: list[tuple[int, Tensor]] = []  # by size
        using: dict[int, int] = defaultdict(int)  # number of memories in a block that are still needed
        for position, node in enumerate(self.nodes[:-1]):
            ending = [key for key in ends[position] if key in blocks]
            for value in tensors(self.seen.values[node]):
                key = memory(value)
                if key in self.own or key in blocks or key in given:
                    continue
                size = value.untyped_storage().nbytes()
                heir = next((k for k in ending if self._may_take_over(node, k, value)), None)
                at = bisect_left(free, size, key=itemgetter(0))
                if heir is not None:
                    ending.remove(heir)
                    blocks[key] = blocks[heir]
                elif at < len(free) and free[at][0] <= 2 * size + 256:
                    blocks[key] = free.pop(at)[1]
                else:
                    blocks[key] = torch.empty(max(size, 1), dtype=torch.uint8, device=value.device)
                using[id(blocks[key])] += 1
            for key in ends[position]:
                if key not in blocks:
                    continue
                using[id(blocks[key])] -= 1
                if not using[id(blocks[key])]:
                    insort(free, (len(blocks[key]), blocks[key]), key=itemgetter(0))
        return blocks

    def _may_take_over(self, node: fx.Node, key: int, value: Tensor) -> bool:
        """True if the result of an element-wise operation may lie where its operand does, which is not used afterwards."""
        if torch.Tag.pointwise not in getattr(node.target, "tags", ()) or is_random(node):
            return False
        operands = [one for used in node.all_input_nodes for one in self.of[used] if one[0] == key]
        return (
            bool(operands)
            and all(one[1:] == _where(value)[1:] and one[4] == 0 for one in operands)
            and (operands[0][0] not in self.seen.changed)
        )

    def bind(self, inputs: Sequence[Tensor]) -> None:
        """Make the calls on these inputs, and find the tensors in which their results are."""
        given, at = iter(inputs), self.at
        for node in self.nodes[:-1]:
            if node.op == "placeholder":
                at[node] = next(given)
                continue
            if node.op == "get_attr":
                at[node] = self.graph.constant(node).detach()
                continue
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), at.__getitem__)
            if self._makes_no_call(node):
                at[node] = node.target(*args, **kwargs)
                continue
            at[node] = self._place(node, args, kwargs)  # with None where the operation gives none
            call = self._call(node, args, kwargs, at[node])
            if call is not None:
                self.numbers[node] = len(self.calls)
                self.calls.append(call)
        self.results[:] = fx.node.map_arg(self.output.args[0], at.__getitem__)

    def rebind(self, moved: Mapping[int, Tensor]) -> None:
        """Make the calls anew that read some inputs, which are other tensors now. If that raises an error, nothing changes."""
        places = [node for node in self.nodes if node.op == "placeholder"]
        found: dict[fx.Node, Any] = {places[i]: value for i, value in moved.items()}
        made: dict[int, Call] = {}

        def now(node: fx.Node) -> Any:
            return found[node] if node in found else self.at[node]

        for node in self.nodes[:-1]:
            if found.keys().isdisjoint(node.all_input_nodes):
                continue
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), now)
            if self._makes_no_call(node):
                found[node] = node.target(*args, **kwargs)
            elif node in self.numbers:
                made[self.numbers[node]] = self.makers[node](args, kwargs, self.at[node])
        self.at.update(found)
        for number, call in made.items():
            self.calls[number] = call
        self.results[:] = fx.node.map_arg(self.output.args[0], self.at.__getitem__)

    def _makes_no_call(self, node: fx.Node) -> bool:
        """True for an item of several results, and for a view."""
        return not isinstance(node.target, OPERATION) or self._is_view(node)

    def _is_view(self, node: fx.Node) -> bool:
        sources = {one[0] for used in node.all_input_nodes for one in self.of[used]}
        own = {one[0] for one in self.of[node]}
        return bool(own) and own <= sources and not schema(node.target).is_mutable

    def _place(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Return the tensors that the result is written to; they are the changed operands of an operation in place."""
        if self._in_place(node):
            found = written(node, args, kwargs)
            return found[0] if len(found) == 1 and schema(node.target).returns else found
        places = iter([_placed(self.pools[where[0]], where) for where in self.of[node]])
        return _filled(self.form[node], places)

    def _in_place(self, node: fx.Node) -> bool:
        """True if the results of an operation are operands that it changes."""
        found = schema(node.target)
        return bool(found.is_mutable) and all(one.alias_info is not None for one in found.returns)

    def _call(self, node: fx.Node, args: Any, kwargs: Any, place: Any) -> Call | None:
        if node not in self.makers:
            self.makers[node] = self._chosen(node, args, kwargs, place)
        made: Call | None = self.makers[node](args, kwargs, place)
        return made

    def _chosen(self, node: fx.Node, args: Any, kwargs: Any, place: Any) -> Callable[..., Any]:
        """Return what makes the call: the first way that gives the numbers of the operation. Leaves the result in its place."""
        name = name_of(node)
        if name.startswith("empty"):
            return lambda args, kwargs, place: None
        if self._in_place(node):
            way: Way = partial(method, name) if name in IN_PLACE else partial(plain, node.target)
            way(args, kwargs, place)()
            return way
        if schema(node.target).is_mutable:  # a trial would change its operands once more
            way = partial(then_copied, node.target)
            way(args, kwargs, place)()
            return way
        start = generators() if is_random(node) else None
        before = [(one, one.clone()) for one in tensors(place)]  # which may be an operand that is not needed afterwards
        operation: Any = node.target
        expected = tensors(operation(*args, **kwargs))
        *ways, last = ways_of(node)
        for make in ways:
            if start is not None:
                set_generators(start)
            with suppress(Exception):  # this way does not take these operands
                make(args, kwargs, place)()
                if all(map(_equal, tensors(place), expected)):
                    return make
            for one, value in before:
                one.copy_(value)
        if start is not None:
            set_generators(start)
        last(args, kwargs, place)()
        return last

    def forget(self) -> None:
        """Let go of the values of the run that was looked at."""
        self.seen.values.clear()


def _form(value: Any) -> Any:
    """Return what a value is made of: True for a tensor, a list for several, None for none."""
    return [_form(one) for one in value] if isinstance(value, (tuple, list)) else isinstance(value, Tensor) or None


def _filled(form: Any, places: Iterator[Tensor]) -> Any:
    return [_filled(one, places) for one in form] if isinstance(form, list) else next(places) if form else None


def _where(value: Tensor) -> tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...], int]:
    return memory(value), value.dtype, tuple(value.shape), tuple(value.stride()), int(value.storage_offset())


def _placed(block: Tensor, where: tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...], int]) -> Tensor:
    _, dtype, shape, stride, offset = where
    whole = block[: len(block) // dtype.itemsize * dtype.itemsize].view(dtype)
    return whole.as_strided(shape, stride, whole.storage_offset() + offset)


def _equal(one: Tensor, two: Tensor) -> bool:
    same = (one == two) | ((one != one) & (two != two))  # NaN is not equal to itself
    return one.shape == two.shape and one.dtype == two.dtype and bool(same.all())
