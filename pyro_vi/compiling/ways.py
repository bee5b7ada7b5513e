"""The ways to call one operation of a graph so that its result is written into given memory.

* `ways_of` gives them in the order in which they are tried: the public function of torch with ``out=``, the operation's own
  variant with outputs, and the operation itself with a copy into its place (`then_copied`).
* `method` and `plain` call an operation that changes its operands.

Each takes the operands and the place of the result, and returns the call.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vi.compiling.looking import name_of, tensors
from pyro_vi.support.torch_internals import schema

Call = Callable[[], Any]
Way = Callable[..., Any]
IN_PLACE = {"normal_", "uniform_", "exponential_", "cauchy_", "log_normal_", "copy_", "add_", "mul_", "zero_", "fill_"}
"""Operations that are called as methods of the tensor that they change."""
COPIES = {"clone", "_to_copy", "lift_fresh_copy", "contiguous", "_unsafe_view"}
"""Operations whose result is a copy of their operand."""


def ways_of(node: fx.Node) -> Iterator[Callable[..., Any]]:
    """Return the ways to call an operation that changes nothing, the fastest first; the last one always works."""
    name = name_of(node)
    if name in COPIES:
        yield _copied
    public = getattr(torch, name, None)
    if public is not None and not name.startswith("_"):
        yield partial(_public, public)
    variant = _variant(node.target)
    if variant is not None:
        yield partial(_with_outputs, *variant)
    yield partial(then_copied, node.target)


def _copied(args: Any, kwargs: Any, place: Tensor) -> Call:
    return partial(place.copy_, args[0])


def _public(function: Callable[..., Any], args: Any, kwargs: Any, place: Any) -> Call:
    kept = {key: value for key, value in kwargs.items() if key not in ("pin_memory", "layout", "device", "dtype")}
    return partial(function, *args, **kept, out=place if isinstance(place, Tensor) else tuple(place))


def _with_outputs(operation: Any, names: Sequence[str], args: Any, kwargs: Any, place: Any) -> Call:
    kept = {key: value for key, value in kwargs.items() if key not in ("pin_memory", "layout", "device", "dtype")}
    return partial(operation, *args, **kept, **dict(zip(names, tensors(place), strict=True)))


def then_copied(operation: Any, args: Any, kwargs: Any, place: Any) -> Call:
    """Return a call that copies the results of an operation to their places."""
    places = tensors(place)

    def call() -> None:
        for one, value in zip(places, tensors(operation(*args, **kwargs)), strict=True):
            one.copy_(value)

    return call


def method(name: str, args: Any, kwargs: Any, place: Any) -> Call:
    """Return a call of a method of the tensor that it changes."""
    return partial(getattr(args[0], name), *args[1:], **kwargs)


def plain(operation: Any, args: Any, kwargs: Any, place: Any) -> Call:
    """Return a call of an operation that changes its operands."""
    return partial(operation, *args, **kwargs)


def _variant(operation: Any) -> tuple[Any, tuple[str, ...]] | None:
    """Return the variant of an operation that writes into given tensors, and the names of these; None if there is none."""
    wanted = [(a.name, str(a.type)) for a in schema(operation).arguments if a.name not in _MADE]
    packet = operation.overloadpacket
    for name in packet.overloads():
        other = getattr(packet, name)
        arguments = schema(other).arguments
        outs = [a for a in arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in arguments if not a.is_out and a.name not in _MADE]
        if outs and rest == wanted and len(outs) == len(schema(operation).returns):
            return other, tuple(a.name for a in outs)
    return None


_MADE = ("dtype", "layout", "device", "pin_memory")
"""Arguments that say what the result is like; its place says so already."""
