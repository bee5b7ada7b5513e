"""Matrix products in a compiled graph: small ones as loops, large ones by oneDNN.

* A library call takes two microseconds, longer than a small product. A loop is also fused with the operations after it.
* torch multiplies single-precision matrices on the CPU with MKL. oneDNN, which torch includes, takes half of the time on one
  processor (208 instead of 418 µs, 128×784 by 784×400) and about the same on another. Large products always use oneDNN. If
  each process measured both and chose the faster one, the choice could change from run to run, and with it the bits of a fit.

`product` replaces `torch.mm` in the graph. `multiplying` makes Inductor call oneDNN for the large products that remain.
"""

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from pyro_vi.support import inductor_internals
from pyro_vi.support.inductor_internals import Lowering, onednn_product

SMALL = 2**15
"""Most multiplications for which a loop replaces a call. At 2¹⁶ a call is as fast; at 2¹⁴ a loop saves 1 to 4 of 7 µs."""
LARGE = 2**22
"""Fewest multiplications for which oneDNN is used; for smaller products, the time that it takes to prepare is noticeable."""


def product(one: Tensor, two: Tensor, *, otherwise: Callable[[Tensor, Tensor], Any] | None = None) -> Any:
    """Return a small product as a loop, and any other product by ``otherwise``, or ``NotImplemented`` without it."""
    small = one.shape[0] * one.shape[1] * two.shape[1] <= SMALL
    if small and one.device.type == "cpu" and one.dtype == two.dtype and one.dtype in (torch.float32, torch.float64):
        # The innermost loop runs along rows of the second factor. If a row is not contiguous, it takes up to ten times as long.
        laid_out = None if two.is_contiguous() else inductor_internals.contiguous_rows()
        if laid_out is not None:
            two = laid_out(two, (two.shape[1], 1))
        if laid_out is not None or two.is_contiguous():
            return (one.unsqueeze(-1) * two.unsqueeze(0)).sum(1)
    return NotImplemented if otherwise is None else otherwise(one, two)


@cache
def has_onednn() -> bool:
    """True if this torch has oneDNN's matrix product and the processor is an x86-64."""
    known = platform.machine().lower() in ("x86_64", "amd64")
    return known and torch.backends.mkldnn.is_available() and inductor_internals.has_onednn_product()


def is_large(one: Tensor, two: Tensor) -> bool:
    """True if compiled code calls oneDNN for the product of these matrices."""
    single = one.dtype == two.dtype == torch.float32 and one.device.type == "cpu"
    return single and one.shape[0] * one.shape[1] * two.shape[1] >= LARGE and has_onednn()


def by_onednn(one: Tensor, two: Tensor) -> Tensor:
    """Compute a product as compiled code computes a large one, so that its time can be measured."""
    return onednn_product(one, two)


@contextmanager
def multiplying() -> Iterator[None]:
    """Within the block, make Inductor call oneDNN for large single-precision products.

    The graph does not contain oneDNN's own operation, because Inductor fuses that with the next operation and copies transposes
    for it.
    """
    lowering = inductor_internals.lowering() if has_onednn() else None
    if lowering is None:
        yield
        return
    operation, table = torch.ops.aten.mm.default, lowering.table
    before = table[operation]
    table[operation] = ours = partial(_lowered, lowering=lowering, otherwise=before)
    try:
        yield
    finally:
        # Restore this entry only: Inductor adds entries to its table while it compiles, and these must stay.
        if table.get(operation) is ours:
            table[operation] = before


def _lowered(one: Any, two: Any, *, lowering: Lowering, otherwise: Callable[..., Any], **options: Any) -> Any:
    """Return Inductor's node for a product; the factors may have any strides."""
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
    # No bias, no fused operation, and no arguments for one.
    return ir.TensorBox.create(lowering.product(layout, inputs, [None, "none", [-1], ""]))
