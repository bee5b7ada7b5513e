"""What stands for some operations of torch in a graph that is compiled: the same numbers to rounding, in fewer operations.

`table` has an entry for each operation, called as the operation is. An entry gives ``NotImplemented`` where it does not serve.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vi.compiling.products import product


def table(known: dict[Any, Any]) -> dict[Any, Callable[..., Any]]:
    """The decompositions ``known``, which are Inductor's, and ours."""
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
    # torch copies the bias into the result before it multiplies. Added afterwards, it is one more operation in the loop that
    # comes next. Subtracted, as Inductor would put a sum together again.
    return torch.mm(one, two) - -bias if beta == alpha == 1 else NotImplemented


def _power(base: float, exponent: Tensor) -> Any:
    # A power of a number that counts steps is the same for all elements of a parameter, but Inductor computes it again for
    # every sixteen of them. What has an exponential in it and is used twice, it keeps.
    if exponent.dim() or not exponent.is_floating_point() or base <= 0:
        return NotImplemented
    return torch.exp(exponent * math.log(base))


def _normal(like: Tensor, mean: float = 0.0, std: float = 1.0, generator: torch.Generator | None = None) -> Any:
    # What fills a new tensor need not copy it first.
    if mean != 0 or std != 1 or generator is not None or not like.is_contiguous():
        return NotImplemented
    return torch.randn(like.shape, dtype=like.dtype, device=like.device)


def _bernoulli(p: Tensor, *, generator: torch.Generator | None = None) -> Any:
    # Inductor compares single-precision draws with p, torch double-precision ones: neither the draws nor what they take from
    # the generator would be the same.
    if generator is not None:
        return NotImplemented
    return torch.ops.aten.bernoulli.Tensor(torch.empty_like(p, memory_format=torch.contiguous_format), p)


def _tanh(x: Tensor) -> Any:
    # As in the Cephes library (Moshier 1989): within 2 units in the last place, in less than half of the time.
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    square, size = x * x, x.abs()
    series = torch.full_like(x, -5.70498872745e-3)
    for coefficient in (2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        series = series * square + coefficient
    # Inductor stores what has an exponential in it and is used twice: that is to be the result, and no part of it.
    large = x.sign() * (1 - 2 / (torch.exp(2 * size) + 1))
    return torch.where(size < 0.625, x + x * square * series, large)
