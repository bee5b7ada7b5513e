"""The graph of a program whose control flow does not depend on the values of tensors.

* `trace` makes the graph or raises an error. `reason` says in one line why a program has no graph.
* `without_items` replaces the functions with which Pyro's estimators read values, by `stand_ins`, within a block.

A trace runs on real tensors, so a program could read values that the graph would then keep for every call: numbers (by
``tolist`` or NumPy), and shapes that depend on values (of ``x[mask]``, ``nonzero`` or packed sequences). Both are rejected.

The replacements give the same numbers as the originals, at any values:

* ``torch_item`` makes a number of the loss. The replacement returns the detached tensor, which is the same constant, even if
  the value of the surrogate is not the loss (score-function sites).
* ``warn_if_nan`` only warns. The replacement returns its argument.
* `Dice` drops the states of probability 0 from a sum, because their cost may be infinite. Their number depends on the values,
  so the replacement keeps them in the sum as zeros, which have no derivative either.
* ``table[k]`` reads a global ``k``, an integer without dimensions, as a number. The replacement ``table[[k]][0]`` does not.

All other decisions of the enumerating estimators depend on shapes, names, Python numbers and the identity of tensors. This
includes ``is_identically_zero`` and ``is_identically_one``: they read only integers without dimensions. A log-probability is
not an integer, and neither is a scale, because each scale is a product with 1.0.

The following have no graph, and the error says so: sites enumerated in the model under a scale that is computed from
parameters, draws or the batch; a Binomial whose size is computed from them; and programs that read values themselves.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial, wraps
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from pyro_vi.errors import NoGraph, first_line, kind_and_line
from pyro_vi.support.pyro_internals import looks_at_values
from pyro_vi.support.torch_internals import graph_in_the_making, make_fx, noting_little, varies
from pyro_vi.tracing.shapes import refuse_varying_shapes


def trace(function: Callable[..., Any], *inputs: Tensor, state: int = 0) -> fx.GraphModule:
    """Return the flat graph of a function of tensors.

    Args:
        function: takes the tensors; its control flow must not depend on their values.
        inputs: example inputs.
        state: number of first inputs that persist from call to call; those that the function only reads are constants.

    Raises:
        Exception: the function cannot be traced; `reason` returns the message in one line.
    """

    def checked(*inputs: Tensor) -> Any:
        result = function(*inputs)
        graph = graph_in_the_making()
        assert graph is not None
        refuse_varying_shapes(graph, state)  # here, because make_fx drops unused operations at its end
        return result

    with without_items(), noting_little(), Opaque(varies):
        return make_fx(checked)(*inputs)


@contextmanager
def without_items() -> Iterator[None]:
    """Within the block, Pyro's estimators read no values of tensors, or raise an error that says which value they need.

    Use it for tracing only, because it turns off Pyro's warnings of NaN.
    """
    with ExitStack() as stack:
        for owner, name, stand_in in stand_ins():
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.enter_context(_Lookup())
        yield


def reason(error: BaseException) -> str:
    """Return in one line why a trace failed.

    Example:
        >>> reason(RuntimeError("It appears that you're trying to get value out of a tracing tensor with ..."))[:60]
        'the programs decide by a value out of a tracing tensor (a br'
    """
    text = first_line(error)
    if isinstance(error, NoGraph):
        return text
    if text.startswith("It appears that you're trying to get value out of a tracing tensor"):
        return (
            "the programs decide by a value out of a tracing tensor (a branch in Python, .item(), a looped plate with a "
            "subsample), which would be the same for all draws and batches; use torch.where, or the plate as a context"
        )
    return kind_and_line(error)


class Opaque(TorchFunctionMode):
    """A mode that rejects ``tolist`` and NumPy on a traced tensor, because the graph would keep the values of one batch.

    Args:
        varies: true of a traced tensor.
    """

    def __init__(self, varies: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.varies = varies

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__) and self.varies(args[0]):
            raise NoGraph(
                f"the programs take values out of a tensor ({func.__name__}), which a graph would freeze; use tensor operations"
            )
        return func(*args, **(kwargs or {}))


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _same(value: Any, *_: Any, **__: Any) -> Any:
    return value


class _Lookup(TorchFunctionMode):
    """A mode in which ``table[k]`` keeps ``k`` a tensor. The row is a copy, not a view, so do not write to it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and _is_whole_number(args[1]):
            return args[0][args[1].reshape(1)].squeeze(0)
        return func(*args, **(kwargs or {}))


def _is_whole_number(index: Any) -> bool:
    # The other integer types are masks, or cannot be an index.
    return isinstance(index, Tensor) and index.dim() == 0 and index.dtype in (torch.int32, torch.int64)


class _All(TorchFunctionMode):
    """A mode in which ``mask.all()`` is true, so that `Dice` drops no state."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if func is Tensor.all else func(*args, **(kwargs or {}))


def _of_all(original: Callable[..., Any]) -> Callable[..., Any]:
    def expectation(dice: Any, costs: Any) -> Any:
        with _All():
            return original(dice, costs)

    return expectation


def _of_possible(original: Callable[..., Any]) -> Callable[..., Any]:
    def dot(prob: Tensor, cost: Tensor) -> Any:
        # Not prob == 0, because Pyro drops NaN too.
        impossible = ~(prob > 0)
        return original(prob.masked_fill(impossible, 0), cost.masked_fill(impossible, 0))

    return dot


def _explained(reason: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with an error that says why it reads the value of a traced tensor."""

    @wraps(original)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except RuntimeError as error:
            raise RuntimeError(f"{reason}: a value out of a tracing tensor") from error

    return stand_in


_SCALES = "sites are enumerated in the model under a scale that is computed, and Pyro compares scales by their values"
_SUPPORT = "a Binomial is enumerated, and the size of its support is the value of a tensor"

_MAKERS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "item": lambda original: _constant,
    "warning": lambda original: _same,
    "expectation": _of_all,
    "dot": _of_possible,
    "scale": partial(_explained, _SCALES),
    "support": partial(_explained, _SUPPORT),
}


@cache
def stand_ins() -> tuple[tuple[Any, str, Callable[..., Any]], ...]:
    """Return the owner, the name and the replacement of each function that is replaced during a trace.

    Raises:
        NoGraph: this Pyro lacks one of the functions.
    """
    return tuple((owner, name, _MAKERS[purpose](original)) for purpose, owner, name, original in looks_at_values())
