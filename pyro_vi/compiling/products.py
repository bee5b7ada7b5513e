"""Products of matrices in a graph that is compiled: small ones as loops of the graph, large ones by oneDNN.

* A call of a library takes two microseconds, and more than a small product does. As a loop it is fused with what comes next.
* torch multiplies single-precision matrices on the CPU with MKL. oneDNN, which torch has too, takes half of the time on one
  processor (208 for 418 µs, 128×784 by 784×400) and about the same on another: a measurement in each process would come out
  one way today and the other way tomorrow, and so would the bits of a fit. It is oneDNN always.

`product` stands for `torch.mm` in the graph; `multiplying` makes Inductor call oneDNN for what is left there, if it is large.
"""

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from pyro_vi.support import torch_internals
from pyro_vi.support.torch_internals import Lowering

SMALL = 2**15
"""Multiplications up to which a loop is faster than any call: as fast at 2¹⁶, by 1 to 4 of some 7 µs at 2¹⁴."""
LARGE = 2**22
"""Multiplications from which the library matters: below, oneDNN's preparation shows."""


def product(one: Tensor, two: Tensor, *, otherwise: Callable[[Tensor, Tensor], Any] | None = None) -> Any:
    """A small product as a loop, and all else by ``otherwise``, or as it is."""
    small = one.shape[0] * one.shape[1] * two.shape[1] <= SMALL
    if small and one.device.type == "cpu" and one.dtype == two.dtype and one.dtype in (torch.float32, torch.float64):
        # The innermost loop runs along rows of the second factor: where these have gaps, it would take up to ten times as long.
        laid_out = None if two.is_contiguous() else torch_internals.contiguous_rows()
        if laid_out is not None:
            two = laid_out(two, (two.shape[1], 1))
        if laid_out is not None or two.is_contiguous():
            return (one.unsqueeze(-1) * two.unsqueeze(0)).sum(1)
    return NotImplemented if otherwise is None else otherwise(one, two)


@cache
def has_onednn() -> bool:
    """Whether this torch can be asked for oneDNN's product."""
    known = platform.machine().lower() in ("x86_64", "amd64")
    return known and torch.backends.mkldnn.is_available() and torch_internals.has_onednn_product()


def is_large(one: Tensor, two: Tensor) -> bool:
    """Whether compiled code calls oneDNN for a product of these."""
    single = one.dtype == two.dtype == torch.float32 and one.device.type == "cpu"
    return single and one.shape[0] * one.shape[1] * two.shape[1] >= LARGE and has_onednn()


def by_onednn(one: Tensor, two: Tensor) -> Tensor:
    """The product as compiled code computes a large one, for those who want to know how long it takes."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(one, two.t(), None, "none", [-1], "")
    return result


@contextmanager
def multiplying() -> Iterator[None]:
    """Within the block Inductor calls oneDNN for large single-precision products.

    oneDNN's own operation in the graph would not do: Inductor fuses it with what comes next, for which it copies transposes.
    """
    lowering = torch_internals.lowering() if has_onednn() else None
    if lowering is None:
        yield
        return
    operation, table = torch.ops.aten.mm.default, lowering.table
    before = table[operation]
    table[operation] = ours = partial(_lowered, lowering=lowering, otherwise=before)
    try:
        yield
    finally:
        # Only this entry: Inductor fills its table as it goes, and what it adds in the block has to stay.
        if table.get(operation) is ours:
            table[operation] = before


def _lowered(one: Any, two: Any, *, lowering: Lowering, otherwise: Callable[..., Any], **options: Any) -> Any:
    """Inductor's node of a product, of factors with any strides."""
    ir = lowering.nodes
    sizes = [*one.get_size(), two.get_size()[1]]
    known = all(isinstance(size, int) or size.is_number for size in sizes)
    single = one.get_dtype() == two.get_dtype() == torch.float32 and one.get_device().type == "cpu"
    if not (known and single and math.prod(map(int, sizes)) >= LARGE):
        return otherwise(one, two, **options)
    inputs = [
        ir.ExternKernel.realize_input(one),
        ir.ExternKernel.realize_input(ir.PermuteView.create(two.data, [1, 0])),
    ]
    layout = ir.FixedLayout(torch.device("cpu"), torch.float32, [sizes[0], sizes[2]])
    # No bias, nothing fused, and no numbers for it.
    return ir.TensorBox.create(lowering.product(layout, inputs, [None, "none", [-1], ""]))
