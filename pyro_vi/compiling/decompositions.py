"""Replacements for some torch operations in a compiled graph: faster, and equal up to rounding.

`table` maps an operation to its replacement, which takes the same arguments. A replacement returns ``NotImplemented`` where it
does not apply.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vi.compiling.products import product


def table(known: dict[Any, Any]) -> dict[Any, Callable[..., Any]]:
    """Return Inductor's decompositions ``known``, with ours added."""
    aten = torch.ops.aten
    return {
        **known,
        aten.addmm.default: _addmm,
        aten.mm.default: partial(product, otherwise=known.get(aten.mm.default)),
        aten.pow.Scalar: _power,
        aten.bernoulli.default: _bernoulli,
        aten.normal_functional.default: _normal,
        aten.tanh.default: _tanh,
    }


def _addmm(bias: Tensor, one: Tensor, two: Tensor, *, beta: float | int = 1, alpha: float | int = 1) -> Any:
    # torch copies the bias into the result before the product. If it is added after the product instead, it is one more
    # operation in the next loop. The minus signs keep Inductor from turning the sum back into an addmm.
    return torch.mm(one, two) - -bias if beta == alpha == 1 else NotImplemented


def _power(base: float, exponent: Tensor) -> Any:
    # A power of the step count is the same for all elements of a parameter, but Inductor computes it again for every sixteen
    # elements. Inductor stores a result that contains an exponential and is used twice, so this form is computed once.
    if exponent.dim() or not exponent.is_floating_point() or base <= 0:
        return NotImplemented
    return torch.exp(exponent * math.log(base))


def _normal(like: Tensor, mean: float = 0.0, std: float = 1.0, generator: torch.Generator | None = None) -> Any:
    # The default decomposition copies ``like`` first, although every element is then overwritten.
    if mean != 0 or std != 1 or generator is not None or not like.is_contiguous():
        return NotImplemented
    return torch.randn(like.shape, dtype=like.dtype, device=like.device)


def _bernoulli(p: Tensor, *, generator: torch.Generator | None = None) -> Any:
    # Inductor compares p with draws in single precision, torch with draws in double precision. With Inductor's form, both the
    # draws and the generator's state would differ from the eager ones.
    if generator is not None:
        return NotImplemented
    return torch.ops.aten.bernoulli.Tensor(torch.empty_like(p, memory_format=torch.contiguous_format), p)


def _tanh(x: Tensor) -> Any:
    # The algorithm of the Cephes library (Moshier 1989): within 2 units in the last place, in less than half of the time.
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    square, size = x * x, x.abs()
    series = torch.full_like(x, -5.70498872745e-3)
    for coefficient in (2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        series = series * square + coefficient
    # Inductor stores a value that contains an exponential and is used twice. With this form it stores the result, not a part.
    large = x.sign() * (1 - 2 / (torch.exp(2 * size) + 1))
    return torch.where(size < 0.625, x + x * square * series, large)
