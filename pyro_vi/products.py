"""Products of matrices in a graph that is compiled: small ones as loops of the graph, large ones by the faster library.

* A call of a library takes two microseconds, and more than a small product does. As a loop it is fused with what comes next.
* torch multiplies single-precision matrices on the CPU with MKL, which on some processors takes twice the time of oneDNN (418
  to 208 µs for 128×784 by 784×400), and on others the same or less. `onednn_is_faster` measures it, once in a process.

`product` stands for `torch.mm`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

SMALL = 2**15
"""Multiplications up to which a loop is faster than any call: as fast at 2¹⁶, by 1 to 4 of some 7 µs at 2¹⁴."""
LARGE = 2**22
"""Multiplications from which the choice of the library matters: below, oneDNN's preparation shows."""
MARGIN = 1.3
"""How much faster oneDNN must be: far from the noise of a measurement, so that one machine always chooses the same."""


def product(
    one: Tensor, two: Tensor, *, onednn: bool = False, otherwise: Callable[[Tensor, Tensor], Any] | None = None
) -> Any:
    """A small product as a loop, with ``onednn`` a large one by it, and all else by ``otherwise``, or torch's own."""
    size = one.shape[0] * one.shape[1] * two.shape[1]
    if one.device.type == "cpu" and one.dtype == two.dtype:
        if size <= SMALL and one.dtype in (torch.float32, torch.float64):
            return _loop(one, two)
        if size >= LARGE and one.dtype == torch.float32 and onednn:
            return _onednn(one, two)
    return NotImplemented if otherwise is None else otherwise(one, two)


@contextmanager
def as_it_is() -> Iterator[None]:
    """Within the block Inductor calls oneDNN's product as torch does; its own way of it is for weights that never change."""
    from torch._inductor.lowering import fallback_handler, lowerings

    operation = torch.ops.mkldnn._linear_pointwise.default
    before, ours = lowerings.get(operation), fallback_handler(operation, add_to_fallback_set=False)
    lowerings[operation] = ours
    try:
        yield
    finally:
        # Only this entry: Inductor fills its table as it goes, and what it adds in the block has to stay.
        if lowerings.get(operation) is ours:
            del lowerings[operation]
            if before is not None:
                lowerings[operation] = before


def _loop(one: Tensor, two: Tensor) -> Tensor:
    if not two.is_contiguous():
        # The innermost loop runs along its rows: where these have gaps, it would take up to ten times as long.
        from torch._inductor import inductor_prims

        two = inductor_prims.force_stride_order(two, (two.shape[1], 1))
    return (one.unsqueeze(-1) * two.unsqueeze(0)).sum(1)


def _onednn(one: Tensor, two: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(one, two.t(), None, "none", [], "")
    return result


@cache
def onednn_is_faster(threads: int) -> bool:
    """Whether oneDNN is faster by `MARGIN` on this many threads: over the three products of a layer and its gradients."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    with torch.no_grad():
        x, w, y = torch.ones(128, 784), torch.ones(400, 784), torch.ones(128, 400)
        shapes = ((x, w.t()), (y, w), (y.t(), x))
        times: dict[Any, list[float]] = {torch.mm: [], _onednn: []}
        for _ in range(12):
            for multiply, found in times.items():
                start = time.perf_counter()
                for one, two in shapes:
                    multiply(one, two)
                found.append(time.perf_counter() - start)
    mkl, onednn = (min(found) for found in times.values())
    return mkl > MARGIN * onednn
