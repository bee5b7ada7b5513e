"""The input of an encoder: columns standardised by the moments of the data, with missing values at the mean."""

import math

import torch
from torch import Tensor, nn

from pyro_vi.amortized.columns import Column

AT_ONCE = 2**20
"""Most numbers of the example that are looked at together: the moments need little memory beside the data."""


class Standard(nn.Module):
    """Standardise a column: (x − mean) / sd of each feature over the rows, the elements and the steps of the example.

    A column of values from 0 to 1, such as pixels or answers, is only centred. In units of its sd, a pixel that is almost
    always 0 would be very large where it is 1, and many such pixels would make the steps of the first layer too large. A
    feature that is constant in the example is only centred too.

    Args:
        column: the column.
        value: its example, (rows, *elements, *shape).
        present: which values of the example count, (rows, *elements); None for all.
        dtype: floating dtype of the encoder.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, column: Column, value: Tensor, present: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.column = column
        rows = max(1, AT_ONCE // max(1, value[:1].numel()))
        seen = (
            [None] * len(value.split(rows))
            if present is None
            else present.expand(len(value), *present.shape[1:]).split(rows)
        )
        parts = [(part, _known(part, some)) for part, some in zip(value.split(rows), seen, strict=True)]
        self.gaps = not all(bool(known.all()) for _, known in parts)
        dims = list(range(len(column.plates) + column.steps))
        count = sum(known.sum(dims) for _, known in parts)
        total = sum(torch.where(known, part, 0).double().sum(dims) for part, known in parts)
        count = torch.as_tensor(count).clamp(min=1)
        mean = total / count
        squares = sum(torch.where(known, part.double() - mean, 0).square().sum(dims) for part, known in parts)
        variance = torch.as_tensor(squares / count).clamp(min=0)
        edges = [edge for part, known in parts if part.numel() for edge in _edges(part, known)]
        low, high = (min(edges), max(edges)) if edges else (0.0, 0.0)
        if low >= 0 and 0.5 <= high <= 1:
            variance = torch.ones_like(variance)
        digits = torch.finfo(value.dtype if value.is_floating_point() else torch.float64).eps
        constant = variance <= (4 * digits * mean).square()
        self.register_buffer("mean", mean.to(dtype).clone())
        self.register_buffer("scale", torch.where(constant, 1, variance).sqrt().to(dtype).clone())

    @property
    def channels(self) -> int:
        """Tensors that are returned: the values, and if values are missing in the example, which are there."""
        return 2 if self.gaps else 1

    def forward(self, value: Tensor, present: Tensor | None) -> list[Tensor]:
        """Return the standardised column, (rows, *elements, *shape); where the example lacks values, also 1 for those known."""
        # No gradient flows into the data, so that a missing value may be replaced last: with as few copies as can be.
        standard = (value.to(self.mean.dtype) - self.mean) / self.scale
        if present is None and not self.gaps:
            if not value.is_floating_point():
                return [standard]
            # As below, in a tenth of the time: x - x is 0, or NaN where x is not finite.
            return [(standard - (value - value).to(standard.dtype)).nan_to_num(0.0, math.inf, -math.inf)]
        known = _known(value, present)
        standard = torch.where(known, standard, 0)
        return [standard, known.to(standard.dtype)] if self.gaps else [standard]


def _edges(value: Tensor, known: Tensor) -> list[float]:
    """The least and the largest value; a missing one counts as 0."""
    some = torch.where(known, value, 0)
    return [float(some.min()), float(some.max())]


def _known(value: Tensor, present: Tensor | None) -> Tensor:
    known = value.isfinite() if value.is_floating_point() else torch.ones_like(value, dtype=torch.bool)
    if present is None:
        return known
    while present.dim() < value.dim():
        present = present.unsqueeze(-1)
    return known & present
