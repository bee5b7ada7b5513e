"""The graph of programs that decide nothing by the values of tensors.

* `trace` makes it, or raises an error; `reason` says in one line why there is none.
* `without_items` puts `stand_ins` in place for the time of a block, where Pyro's estimators themselves look at
  values.

A trace has no values to decide by, but it runs on real tensors, of which a program may ask what is then held for ever: numbers
(by ``tolist``, NumPy), and shapes that depend on values (of ``x[mask]``, ``nonzero``, packed sequences). Both are refused.

The stand-ins give the numbers of the originals at any values:

* the loss as a number (``torch_item``) is the same constant as a detached tensor, also where the surrogate's value is not the
  loss (score-function sites);
* ``warn_if_nan`` does nothing but warn;
* `Dice` leaves the states of probability 0 out of a sum, if there are any, as their cost may be infinite. How many there are
  depends on the values, so here they stay in the sum as zeros, with the same derivative: none;
* ``table[k]`` takes a global ``k``, an integer without dimensions, out as a number; ``table[[k]][0]`` does not.

All else in the enumerating estimators is decided by shapes, names, Python numbers and the identity of tensors. That holds for
``is_identically_zero`` and ``is_identically_one`` too: they look into integers without dimensions only, and neither
a log-probability nor a scale is one, as each scale is a product with 1.0.

What remains has no graph, and says so: sites enumerated in the model under a scale that is computed from parameters, draws or
batch, the support of a Binomial, and programs that look at values themselves.
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
from pyro_vi.support.torch_internals import graph_in_the_making, make_fx, varies
from pyro_vi.tracing.shapes import refuse_varying_shapes


def trace(function: Callable[..., Any], *inputs: Tensor, state: int = 0) -> fx.GraphModule:
    """The flat graph of a function of tensors, in which nothing was decided by their values.

    Args:
        state: how many of the first inputs are held from call to call; those that the function only reads are constants.

    Raises:
        Exception: it cannot be traced; `reason` gives the line.
    """

    def checked(*inputs: Tensor) -> Any:
        result = function(*inputs)
        graph = graph_in_the_making()
        assert graph is not None
        refuse_varying_shapes(graph, state)  # here, as what is not used any more is dropped at the end
        return result

    with without_items(), _Opaque():
        return make_fx(checked)(*inputs)


@contextmanager
def without_items() -> Iterator[None]:
    """Within the block, Pyro's estimators decide nothing by the value of a tensor, or raise an error that says what they do.

    It is for tracing only: warnings of nan are off.
    """
    with ExitStack() as stack:
        for owner, name, stand_in in stand_ins():
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.enter_context(_Lookup())
        yield


def reason(error: BaseException) -> str:
    """Why a trace failed, in one line.

    Example:
        >>> reason(RuntimeError("It appears that you're trying to get value out of a tracing tensor with ..."))[:60]
        'the programs decide by a value out of a tracing tensor (a br'
    """
    text = first_line(error)
    if isinstance(error, NoGraph):
        return text
    if text.startswith("It appears that you're trying to get value out of a tracing tensor"):
        return (
            "the programs decide by a value out of a tracing tensor (a branch in Python, .item(), a looped plate), "
            "which would be the same for all draws and batches; use torch.where, or the plate as a context"
        )
    return kind_and_line(error)


class _Opaque(TorchFunctionMode):
    """Values of a tracing tensor are not handed to Python, which would decide by those of one batch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__) and varies(args[0]):
            raise NoGraph(
                f"the programs take values out of a tensor ({func.__name__}), by which nothing in a graph can be decided"
            )
        return func(*args, **(kwargs or {}))


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _same(value: Any, *_: Any, **__: Any) -> Any:
    return value


class _Lookup(TorchFunctionMode):
    """A row of a table by an index that stays a tensor. It is a copy and no view: do not write into it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and _is_whole_number(args[1]):
            return args[0][args[1].reshape(1)].squeeze(0)
        return func(*args, **(kwargs or {}))


def _is_whole_number(index: Any) -> bool:
    # The other integer types are masks, or no index.
    return isinstance(index, Tensor) and index.dim() == 0 and index.dtype in (torch.int32, torch.int64)


class _All(TorchFunctionMode):
    """``mask.all()`` is true: nothing has to be left out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if func is Tensor.all else func(*args, **(kwargs or {}))


def _of_all(original: Callable[..., Any]) -> Callable[..., Any]:
    def expectation(dice: Any, costs: Any) -> Any:
        with _All():
            return original(dice, costs)

    return expectation


def _of_possible(original: Callable[..., Any]) -> Callable[..., Any]:
    def dot(prob: Tensor, cost: Tensor) -> Any:
        # Not prob == 0: Pyro leaves a nan out as well.
        impossible = ~(prob > 0)
        return original(prob.masked_fill(impossible, 0), cost.masked_fill(impossible, 0))

    return dot


def _explained(reason: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, but where it looks into a tensor that varies, the error says why and not only that it does."""

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
    """Where a name stands, the name, and what replaces it while a pair is traced.

    Raises:
        NoGraph: this Pyro lacks one of the names.
    """
    return tuple((owner, name, _MAKERS[purpose](original)) for purpose, owner, name, original in looks_at_values())
