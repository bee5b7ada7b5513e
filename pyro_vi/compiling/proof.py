"""Comparison of what a graph gives with what the programs give.

* `agree` and `near` compare two tensors up to rounding; `digits_of` is the tolerance of a dtype.
* `proving` turns an error of a graph into `NoGraph`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vi.errors import NoGraph, first_line

DIGITS = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Tolerance between compiled and eager tensors by dtype, as a fraction of the largest element; 0.02 for shorter dtypes."""


def agree(one: Tensor, two: Tensor) -> bool:
    """True if a compiled result equals the eager one up to rounding."""
    return near(one, two, digits_of(two))


def digits_of(value: Tensor) -> float:
    """Return the tolerance for the dtype of a tensor; see `DIGITS`."""
    return DIGITS.get(value.dtype, 0.02)


def near(one: Tensor, two: Tensor, digits: float, slack: float = 0.0) -> bool:
    """True if no element differs by more than ``digits`` times the largest of ``two``, plus ``slack``."""
    if one.shape != two.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, two)
    largest = float(two.detach().nan_to_num(0, 0, 0).abs().max()) if two.numel() else 0.0
    allowed = digits * largest + slack
    return torch.allclose(one.detach(), two.detach().to(one.dtype), rtol=0, atol=allowed, equal_nan=True)


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies without a history."""
    return [tensor.detach().clone() for tensor in tensors]


@contextmanager
def proving() -> Iterator[None]:
    """Within the block, an error is one of the graph."""
    try:
        yield
    except NoGraph:
        raise
    except Exception as error:
        raise NoGraph(f"the graph raises an error, which the programs may catch: {first_line(error)}") from error
