"""Data sets and batches.

* `DataSpec` says what one datum is (shape, support, dtype): models are built from it, and new values checked by it.
* `Data` holds the training columns as stored (tensors, or `pyro_vi.data.mapped.Mapped` ones, whose rows stay in their file)
  and the fixed held-out `Batch`, and deals training batches out by epoch.

A `Batch` is what a program is called with: `program(*batch)`. Everything random depends on (seed, epoch, purpose)
alone, through generators of its own: the same seed gives the same bits, and the global random state is not touched.
"""

import dataclasses
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vi.data.columns import check_finite, count_and_row, draw, floats
from pyro_vi.data.mapped import Mapped, ahead, first
from pyro_vi.data.seeds import generator
from pyro_vi.errors import InputError

Batch = tuple[Tensor, ...]


Stored = tuple[Tensor | Mapped, ...]


_ALLOWED = {
    "boolean": "only 0 and 1",
    "unit_interval": "0 to 1",
    "nonnegative_integer": "whole numbers from 0",
    "real": "any finite number",
}


@dataclass(frozen=True)
class DataSpec:
    """What one datum of the first column is.

    `event_shape` is without the rows; `image_shape` is (rows, columns) where a flat datum is a picture; `source` is one
    line with the origin and the terms; `num_data` counts the training data.

    >>> DataSpec("array", 100, (3,), "real", torch.float32, "an array").check(torch.zeros(5, 3))
    """

    name: str
    num_data: int
    event_shape: tuple[int, ...]
    support: str
    dtype: torch.dtype
    source: str
    image_shape: tuple[int, int] | None = None

    def check(self, values: Tensor) -> None:
        """Refuse values, (rows, *event_shape), that cannot be data of this kind.

        Raises InputError on another shape, on NaN and infinity, and on values outside the support.
        """
        if not values.ndim or tuple(values.shape[1:]) != self.event_shape:
            wanted = ("rows", *self.event_shape)
            raise InputError(
                f"{self.name}: values have shape {tuple(values.shape)}, not ({', '.join(map(str, wanted))}); "
                "give rows like those of the training data"
            )
        check_finite(values, self.name)
        if self.support == "real":
            return
        if self.support == "boolean":
            outside = (values != 0) & (values != 1)
        elif self.support == "unit_interval":
            outside = (values < 0) | (values > 1)
        else:
            outside = (values < 0) | (values != values.floor() if values.is_floating_point() else False)
        if outside.any():
            raise InputError(
                f"{self.name}: {count_and_row(outside)} outside the support {self.support!r} "
                f"({_ALLOWED[self.support]}); scale or code the values like the training data"
            )


@dataclass(frozen=True, eq=False)
class Data:
    """Training columns dealt out by epoch, and the held-out batch, which is fixed.

    `columns` are the training data as stored: uint8 with `levels` where a stored v stands for v / levels, which is the
    probability of a 1 where `binarize` is set. Those are redrawn every epoch (Burda et al. 2015, arXiv:1509.00519).

    >>> from pyro_vi.data import load
    >>> data = load("digits", seed=1)
    >>> [(len(index), x.shape[1]) for index, (x,) in data.batches(epoch=0, batch_size=1000)]
    [(1000, 64), (498, 64)]
    """

    spec: DataSpec
    seed: int
    heldout: Batch = field(repr=False)
    columns: Stored = field(repr=False)
    levels: int | None = None
    binarize: bool = False

    @property
    def mapped(self) -> bool:
        """Whether rows of a column are read from its file as they are wanted."""
        return any(isinstance(column, Mapped) for column in self.columns)

    def train(self, epoch: int = 0) -> Batch:
        """The training columns, each (num_data, ...), as seen in that epoch; all in memory, mapped ones too."""
        return self.values(tuple(first(column, self.spec.num_data) for column in self.stored(epoch)))

    def batches(self, epoch: int, batch_size: int) -> Generator[tuple[Tensor, Batch], None, None]:
        """Row numbers, (size,), and the rows of `train(epoch)` they name, shuffled by (seed, epoch).

        Every row comes once; the last batch may be smaller. Of mapped columns the next batches are read meanwhile, by a
        thread that ends with the generator. Raises InputError unless batch_size >= 1.
        """
        _check_positive("batch_size", batch_size)
        return (self._read_ahead if self.mapped else self._batches)(epoch, batch_size)

    def order(self, epoch: int) -> Tensor:
        """The row numbers of the training data, (num_data,), as shuffled in that epoch."""
        return self._order(epoch).to(self.columns[0].device)

    def stored(self, epoch: int) -> tuple[Any, ...]:
        """The training columns as stored and as seen in that epoch, redrawn where `binarize` is set.

        Tensors, unless the data are `mapped`: in a way that type checkers cannot follow.
        """
        return self._drawn(epoch, self.spec.num_data) if self.binarize else self.columns

    def values(self, rows: Batch) -> Batch:
        """Rows of the stored columns as floats: what a program is called with."""
        return tuple(floats(column, self.spec.dtype, None if self.binarize else self.levels) for column in rows)

    def gather(self, stored: Stored, index: Tensor) -> Batch:
        """The `values` of the indexed rows."""
        # Rows are gathered before they become floats: pictures stay at a byte per pixel.
        return self.values(tuple(column.index_select(0, index) for column in stored))

    def example(self, size: int = 2) -> Batch:
        """The first rows of `train(0)`, at most `size`; raises InputError unless size >= 1."""
        _check_positive("size", size)
        stored = self._drawn(0, size) if self.binarize else self.columns
        return self.values(tuple(first(column, size) for column in stored))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Data":
        """The same data on another device or as another floating dtype; draws do not depend on either.

        Rows of mapped columns are moved and cast as they are read.
        """
        dtype = check_dtype(dtype or self.spec.dtype)
        return dataclasses.replace(
            self,
            spec=dataclasses.replace(self.spec, dtype=dtype),
            heldout=tuple(column.to(device=device, dtype=dtype) for column in self.heldout),
            columns=tuple(
                c.to(device=device, dtype=dtype if c.dtype.is_floating_point else c.dtype) for c in self.columns
            ),
        )

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(self.spec.num_data, generator=generator(self.seed, epoch, "shuffle"))

    def _batches(self, epoch: int, batch_size: int) -> Generator[tuple[Tensor, Batch], None, None]:
        stored = self.stored(epoch)
        for index in torch.split(self.order(epoch), batch_size):
            yield index, self.gather(stored, index)

    def _read_ahead(self, epoch: int, batch_size: int) -> Generator[tuple[Tensor, Batch], None, None]:
        # The thread reads and casts; what touches the device (and what is there already) is left to the consumer.
        def read(index: Tensor) -> list[Tensor]:
            return [column.read(index) for column in self.columns if isinstance(column, Mapped)]

        with closing(ahead(read, torch.split(self._order(epoch), batch_size))) as batches:
            for index, found in batches:
                index, rest = index.to(self.columns[0].device), iter(found)
                stored = (
                    next(rest).to(column.device) if isinstance(column, Mapped) else column.index_select(0, index)
                    for column in self.columns
                )
                yield index, self.values(tuple(stored))

    def _drawn(self, epoch: int, rows: int) -> Batch:
        assert self.levels is not None
        blocks = generator(self.seed, epoch, "train")
        return tuple(draw(column, self.levels, blocks, rows) for column in self.columns if isinstance(column, Tensor))


def _check_positive(what: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{what}={value} is not possible; use a whole number from 1")


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """Give back a floating dtype; raise InputError for any other."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype={dtype} is not a floating dtype; use torch.float32 or torch.float64")
    return dtype
