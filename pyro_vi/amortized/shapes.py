"""The numbers of a latent site as a vector for each row, and back.

Plates may stand at any dimension, and plates of particles come to the left of all. A guide computes with vectors: `Shape` puts
the dimensions of the rows last but one, and gathers all other dimensions of the site in the last.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """How the numbers of a site lie: rows first, and a vector of the others for each row.

    Attributes:
        nesting: number of batch dimensions that the plates of the model use.
        rows: dimensions (negative) of the plates whose rows the guide tells apart, such as the data plate.
        batch: the site's batch shape.
        event: its event shape on the unconstrained scale.

    Example:
        >>> import torch
        >>> shape = Shape(nesting=2, rows=(-2,), batch=(5, 3), event=(2,))  # 5 data, a plate of 3 in each, vectors of 2
        >>> shape.numel, shape.to_vector(torch.zeros(5, 3, 2)).shape, shape.to_site(torch.zeros(7, 5, 6)).shape
        (6, torch.Size([5, 6]), torch.Size([7, 5, 3, 2]))
    """

    nesting: int
    rows: tuple[int, ...]
    batch: tuple[int, ...]
    event: tuple[int, ...]

    @property
    def others(self) -> tuple[int, ...]:
        """Lengths of the batch dimensions that hold no rows, from the left; 1 where the site has none."""
        padded = (1,) * (self.nesting - len(self.batch)) + self.batch
        return tuple(n for i, n in enumerate(padded) if i - self.nesting not in self.rows)

    @property
    def numel(self) -> int:
        """Length D of the vector of one row."""
        return math.prod(self.others) * math.prod(self.event)

    @property
    def along_plates(self) -> int:
        """Number of elements of the vector that belong to different batch dimensions."""
        return math.prod(self.others)

    def batch_of(self, vectors: Sequence[int]) -> tuple[int, ...]:
        """Return the batch shape of values of the site for vectors of batch shape (*particles, *rows)."""
        extra = len(vectors) - len(self.rows)
        rows, others = dict(zip(self.rows, vectors[extra:], strict=True)), iter(self.others)
        dims = range(-self.nesting, 0)
        wide = (*vectors[:extra], *(rows[dim] if dim in rows else next(others) for dim in dims))
        return wide[0 if extra else self.nesting - len(self.batch) :]

    def to_vector(self, value: Tensor) -> Tensor:
        """Return a value of the site, (*particles, *batch, *event), as (*particles, *rows, D)."""
        flat = value.flatten(value.dim() - len(self.event)) if self.event else value.unsqueeze(-1)
        while flat.dim() < self.nesting + 1:
            flat = flat.unsqueeze(0)
        extra = flat.dim() - 1 - self.nesting
        order = [*range(extra), *self._rows(extra), *self._rest(extra), flat.dim() - 1]
        return flat.permute(order).flatten(extra + len(self.rows))

    def to_site(self, vector: Tensor) -> Tensor:
        """Return vectors, (*particles, *rows, D), as a value of the site."""
        extra = vector.dim() - 1 - len(self.rows)
        spread = vector.unflatten(-1, (*self.others, math.prod(self.event)))
        return self._back(spread, extra, len(self.others), 1).unflatten(-1, self.event or (1,))[
            (..., *(() if self.event else (0,)))
        ]

    def place(self, value: Tensor, last: int = 0) -> Tensor:
        """Return numbers of each row, (*particles, *rows, *last), with the rows where the site has them.

        Args:
            value: the numbers.
            last: how many dimensions on the right belong to a row.
        """
        extra = value.dim() - last - len(self.rows)
        shape = value.shape[: extra + len(self.rows)]
        ones = value.reshape((*shape, *(1 for _ in self.others), *value.shape[value.dim() - last :]))
        return self._back(ones, extra, len(self.others), last)

    def _rows(self, extra: int) -> list[int]:
        return [extra + self.nesting + dim for dim in self.rows]

    def _rest(self, extra: int) -> list[int]:
        return [extra + i for i in range(self.nesting) if i - self.nesting not in self.rows]

    def _back(self, value: Tensor, extra: int, others: int, last: int) -> Tensor:
        """Move rows and other dimensions, (*particles, *rows, *others, *last), to the places of the site."""
        places: Sequence[int] = [*range(extra), *self._rows(extra), *self._rest(extra)]
        inverse = sorted(range(len(places)), key=lambda i: places[i])
        moved = value.permute((*inverse, *range(len(places), len(places) + last)))
        drop = 0 if extra else self.nesting - len(self.batch)
        return moved.reshape(moved.shape[drop:])
