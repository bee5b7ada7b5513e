"""Products of matrices in a graph that is compiled: small ones as loops of the graph, large ones by oneDNN.

* A call of a library takes two microseconds, and more than a small product does. As a loop it is fused with what comes next.
* torch multiplies single-precision matrices on the CPU with MKL. oneDNN, which torch has too, takes half of the time on one
  processor (208 for 418 µs, 128×784 by 784×400) and about the same on another: a measurement in each process would come out
  one way today and the other way tomorrow, and so would the bits of a fit. It is oneDNN always.

`product` stands for `torch.mm`; `as_it_is` makes Inductor call oneDNN as it is called here.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

SMALL = 2**15
"""Multiplications up to which a loop is faster than any call: as fast at 2¹⁶, by 1 to 4 of some 7 µs at 2¹⁴."""
LARGE = 2**22
"""Multiplications from which the library matters: below, oneDNN's preparation shows."""


def product(one: Tensor, two: Tensor, *, otherwise: Callable[[Tensor, Tensor], Any] | None = None) -> Any:
    """A small product as a loop, a large one by oneDNN, and all else by ``otherwise``, or torch's own."""
    size = one.shape[0] * one.shape[1] * two.shape[1]
    if one.device.type == "cpu" and one.dtype == two.dtype:
        if size <= SMALL and one.dtype in (torch.float32, torch.float64):
            return _loop(one, two)
        if size >= LARGE and one.dtype == torch.float32 and has_onednn():
            result: Tensor = torch.ops.mkldnn._linear_pointwise(one, two.t(), None, "none", [], "")
            return result
    return NotImplemented if otherwise is None else otherwise(one, two)


@cache
def has_onednn() -> bool:
    """Whether this torch can be asked for oneDNN's product."""
    known = platform.machine().lower() in ("x86_64", "amd64")
    return known and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@contextmanager
def as_it_is() -> Iterator[None]:
    """Within the block Inductor calls oneDNN's product as torch does; its own way of it would first copy a transpose."""
    if not has_onednn():
        yield
        return
    from torch._inductor.lowering import lowerings

    operation, ours = torch.ops.mkldnn._linear_pointwise.default, _lowered
    before = lowerings.get(operation)
    lowerings[operation] = ours
    try:
        yield
    finally:
        # Only this entry: Inductor fills its table as it goes, and what it adds in the block has to stay.
        if lowerings.get(operation) is ours:
            del lowerings[operation]
            if before is not None:
                lowerings[operation] = before


def _lowered(one: Any, two: Any, *rest: Any) -> Any:
    """Inductor's node for the call in `product`, of factors with any strides."""
    from torch._inductor import ir, mkldnn_ir

    inputs = [ir.ExternKernel.realize_input(factor) for factor in (one, two)]
    size = [factor.get_size()[0] for factor in inputs]
    layout = ir.FixedLayout(torch.device("cpu"), inputs[0].get_dtype(), size)
    # [-1]: no scalars.
    return ir.TensorBox.create(mkldnn_ir.LinearUnary(layout, inputs, [None, "none", [-1], ""]))


def _loop(one: Tensor, two: Tensor) -> Tensor:
    if not two.is_contiguous():
        # The innermost loop runs along its rows: where these have gaps, it would take up to ten times as long.
        from torch._inductor import inductor_prims

        two = inductor_prims.force_stride_order(two, (two.shape[1], 1))
    return (one.unsqueeze(-1) * two.unsqueeze(0)).sum(1)
