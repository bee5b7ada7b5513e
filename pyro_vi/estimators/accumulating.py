"""Gradient accumulation: the mean loss of several batches, with the memory of one.

* `Parts` are the batches of one step.
* `accumulated` is their mean loss. The gradient of each batch is taken before the next batch is evaluated.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vi.data import Batch, length_of


class Parts(tuple[Batch, ...]):
    """Batches whose losses one step averages; each counts by its number of rows.

    Example:
        >>> Parts([(torch.zeros(3),), (torch.zeros(1),)]).shares
        (0.75, 0.25)
    """

    __slots__ = ()

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each batch in all rows."""
        lengths = [length_of(batch) for batch in self]
        return tuple(length / sum(lengths) for length in lengths)


def accumulated(loss_of: Callable[[Batch], Tensor], parts: Parts, wanted: Sequence[Tensor]) -> Tensor:
    """Return Σ_i s_i L(batch_i), s_i the share of a batch in all rows: a scalar whose gradient is known already.

    Args:
        loss_of: the loss of one batch, a mean over its rows.
        parts: the batches.
        wanted: the tensors with respect to which the gradient is taken; with respect to others there is none.

    Example:
        >>> w = torch.tensor(2.0, requires_grad=True)
        >>> parts = Parts([(torch.tensor([1.0, 2.0, 3.0]),), (torch.tensor([6.0]),)])
        >>> accumulated(lambda batch: w * batch[0].mean(), parts, [w]).backward()
        >>> w.grad
        tensor(3.)
    """
    total: Tensor | None = None
    sums: list[Tensor | None] = [None] * len(wanted)
    with torch.enable_grad():  # the draws of a step are also repeated where gradients are off
        for share, batch in zip(parts.shares, parts, strict=True):
            loss = loss_of(batch) * share
            found = torch.autograd.grad(loss, wanted, allow_unused=True)
            sums = [
                one if two is None else two if one is None else one + two for one, two in zip(sums, found, strict=True)
            ]
            total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    used = [(tensor, gradient) for tensor, gradient in zip(wanted, sums, strict=True) if gradient is not None]
    result: Tensor = _Known.apply(total, [gradient for _, gradient in used], *(tensor for tensor, _ in used))
    return result


class _Known(torch.autograd.Function):
    """A value with given gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        return (None, None, *(gradient * outer[0] for gradient in ctx.gradients))
