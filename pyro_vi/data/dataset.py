"""Data sets and batches.

* `Data` holds the training columns as stored (tensors, or `pyro_vi.data.mapped.Mapped` columns, whose rows stay in their
  file) and the fixed held-out `Batch`. It splits the training rows of each epoch into batches.

A program is called with a `Batch`: `program(*batch)`. All random numbers come from generators that depend on
(seed, epoch, purpose) alone: the same seed gives the same bits, and the global random state is not touched.
"""

import dataclasses
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vi.data.columns import draw, floats
from pyro_vi.data.mapped import Mapped, ahead, first
from pyro_vi.data.rows import Every, parts, shuffled
from pyro_vi.data.seeds import generator
from pyro_vi.data.spec import DataSpec
from pyro_vi.errors import InputError

Batch = tuple[Any, ...]
"""The positional arguments of a program: columns with a row for each datum, and what else the program takes."""


Stored = tuple[Tensor | Mapped, ...]


def length_of(args: Batch) -> int:
    """Return the number of rows of a batch: the length of its first column, or 1 without one."""
    return next((len(a) for a in tensors_in(args) if a.dim()), 1)


def device_of(args: Batch) -> torch.device:
    """Return the device of a batch: that of its first tensor."""
    return next((a.device for a in tensors_in(args)), torch.device("cpu"))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of arguments, also those in lists, tuples and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


@dataclass(frozen=True, eq=False)
class Data:
    """Training columns, split into batches anew in each epoch, and a fixed held-out batch.

    `columns` are the training data as stored. If `levels` is set the first one is uint8, and a stored v means v / levels. If
    `binarize` is set too, v / levels is the probability of a 1, and the 0/1 values are redrawn in every epoch
    (Burda et al. 2015, arXiv:1509.00519).

    `labels`, (num_data,), and `heldout_labels` are labels kept apart, for the colours of pictures: whole numbers that `classes`
    names, −1 where they are not known. Programs do not see them. `standard` holds the mean and the standard deviation by
    which the first column was standardised; `standardized` does the same to new values.

    `arguments` says what a program is called with (`pyro_vi.data.arguments.Arguments`): by default the columns alone. With
    `integers`, whole numbers and truth values stay what they are; otherwise programs get floats. Without `shuffle`, batches
    keep the order of the rows; with `drop_last`, a shorter last batch of an epoch is left out. `given` holds the number of each
    training row in the data as they were handed over, if others of those rows are held out. With `numbered`, the last argument
    of each batch is the row numbers, (size,): see `pyro_vi.data.arguments.numbered`.

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
    arguments: Any = None
    integers: bool = False
    shuffle: bool = True
    drop_last: bool = False
    given: Tensor | Every | None = field(default=None, repr=False)
    numbered: bool = False
    labels: Tensor | None = field(default=None, repr=False)
    heldout_labels: Tensor | None = field(default=None, repr=False)
    classes: tuple[str, ...] = ()
    standard: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    roles: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_heldout(self) -> int:
        """Number of held-out rows."""
        return length_of(self.heldout) if self.columns else 0

    @property
    def mapped(self) -> bool:
        """True if the rows of any column are read from its file on demand."""
        return any(isinstance(column, Mapped) for column in self.columns)

    def train(self, epoch: int = 0) -> Batch:
        """The training columns of an epoch, each (num_data, ...); mapped columns are read into memory as a whole."""
        rows = self.spec.num_data
        return self.values(tuple(first(column, rows) for column in self.stored(epoch)), self._first(rows))

    def per_epoch(self, batch_size: int) -> int:
        """Number of rows that come in the batches of an epoch."""
        rows = self.spec.num_data
        return rows - rows % batch_size if self.drop_last and batch_size < rows else rows

    def batches(self, epoch: int, batch_size: int) -> Generator[tuple[Tensor, Batch], None, None]:
        """Yield row numbers, (size,), and those rows of `train(epoch)`, in the order of the epoch.

        Every row comes once; the last batch may be smaller, unless `drop_last` is set. For mapped columns a thread reads the
        next batches ahead; it ends with the generator. Raises InputError if batch_size < 1.
        """
        _check_positive("batch_size", batch_size)
        return (self._read_ahead if self.mapped else self._batches)(epoch, batch_size)

    def order(self, epoch: int) -> Tensor:
        """Row numbers of the training data, (num_data,), in the order of an epoch."""
        return self._order(epoch)[:].to(self.columns[0].device if self.columns else None)

    def numbers(self, rows: Tensor) -> Tensor:
        """Return the numbers that training rows have in the data as they were handed over."""
        return rows if self.given is None else self.given[rows.cpu()]

    def stored(self, epoch: int) -> tuple[Any, ...]:
        """The training columns of an epoch as stored, or as redrawn if `binarize` is set.

        They are tensors unless the data are `mapped`. Type checkers cannot follow this, hence the return type Any.
        """
        return self._drawn(epoch, self.spec.num_data) if self.binarize else self.columns

    def values(self, rows: Batch, index: Tensor | None = None) -> Batch:
        """Return the arguments that a program is called with, from rows of the stored columns and the numbers of these rows."""
        columns = tuple(self._value(column, position) for position, column in enumerate(rows))
        filled: Batch = columns if self.arguments is None else self.arguments.fill(columns)
        return filled if index is None or not self.numbered else (*filled, index)

    def gather(self, stored: Stored, index: Tensor) -> Batch:
        """Return the `values` of the indexed rows."""
        # Gather before converting to floats: images then take one byte per pixel.
        return self.values(tuple(column.index_select(0, index) for column in stored), index)

    def standardized(self, values: Tensor) -> Tensor:
        """Return new values of the first column, (rows, *event_shape), as the training data were standardised, if they were."""
        if self.standard is None:
            return values.to(self.spec.dtype)
        loc, scale = (part.to(values.device) for part in self.standard)
        return ((values.double() - loc) / scale).to(self.spec.dtype)

    def in_units(self, values: Tensor) -> Tensor:
        """Return values of the first column, (..., *event_shape), in the units in which the data were handed over."""
        if self.standard is None:
            return values
        loc, scale = (part.to(values.device) for part in self.standard)
        return (values.double() * scale + loc).to(values.dtype)

    def fixed(self) -> "Data":
        """Return the same data with the 0/1 values of epoch 0 in every epoch; the same data if nothing is redrawn."""
        if not self.binarize:
            return self
        return dataclasses.replace(self, columns=self.stored(0), levels=None, binarize=False)

    def example(self, size: int = 2) -> Batch:
        """The first rows of `train(0)`, at most `size` of them. Raises InputError if size < 1."""
        _check_positive("size", size)
        stored = self._drawn(0, size) if self.binarize else self.columns
        return self.values(tuple(first(column, size) for column in stored), self._first(size))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Data":
        """Return the same data on another device or with another floating dtype; random draws depend on neither.

        Rows of mapped columns are moved and cast when they are read.
        """
        dtype = check_dtype(dtype or self.spec.dtype)
        return dataclasses.replace(
            self,
            spec=dataclasses.replace(self.spec, dtype=dtype),
            arguments=None if self.arguments is None else self.arguments.to(device, dtype),
            heldout=tuple(_to(value, device, dtype) for value in self.heldout),
            columns=tuple(
                c.to(device=device, dtype=dtype if c.dtype.is_floating_point else c.dtype) for c in self.columns
            ),
            labels=None if self.labels is None else self.labels.to(device),
            heldout_labels=None if self.heldout_labels is None else self.heldout_labels.to(device),
        )

    def _first(self, size: int) -> Tensor:
        """The numbers of the first rows."""
        device = self.columns[0].device if self.columns else None
        return torch.arange(min(size, self.spec.num_data), device=device)

    def _value(self, column: Tensor, position: int) -> Tensor:
        levels = self.levels if position == 0 else None
        whole = self.integers or (position > 0 and bool(self.spec.others))  # labels and lengths are no floats
        if whole and levels is None and not column.is_floating_point():
            return column
        return floats(column, self.spec.dtype, None if self.binarize else levels)

    def _order(self, epoch: int) -> Tensor | Every:
        if not self.shuffle:
            return Every(self.spec.num_data)
        return shuffled(self.spec.num_data, generator(self.seed, epoch, "shuffle"), many=self.mapped)

    def _batches(self, epoch: int, batch_size: int) -> Generator[tuple[Tensor, Batch], None, None]:
        stored = self.stored(epoch)
        for index in torch.split(self.order(epoch)[: self.per_epoch(batch_size)], batch_size):
            yield index, self.gather(stored, index)

    def _read_ahead(self, epoch: int, batch_size: int) -> Generator[tuple[Tensor, Batch], None, None]:
        # The thread only reads and casts. Work on the device, and columns that are tensors, are left to the consumer.
        def read(index: Tensor) -> list[Tensor]:
            return [column.read(index) for column in self.columns if isinstance(column, Mapped)]

        with closing(ahead(read, parts(self._order(epoch), self.per_epoch(batch_size), batch_size))) as batches:
            for index, found in batches:
                index, rest = index.to(self.columns[0].device), iter(found)
                stored = (
                    next(rest).to(column.device) if isinstance(column, Mapped) else column.index_select(0, index)
                    for column in self.columns
                )
                yield index, self.values(tuple(stored), index)

    def _drawn(self, epoch: int, rows: int) -> Batch:
        assert self.levels is not None
        assert isinstance(self.columns[0], Tensor)
        drawn = draw(self.columns[0], self.levels, generator(self.seed, epoch, "train"), rows)
        return (drawn, *(first(column, rows) for column in self.columns[1:]))


def _to(value: Any, device: torch.device | str | None, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, dict):
        return {key: _to(item, device, dtype) for key, item in value.items()}
    return type(value)(_to(item, device, dtype) for item in value) if type(value) in (list, tuple) else value


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype if it is floating; raise InputError otherwise."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype={dtype} is not a floating dtype; use torch.float32 or torch.float64")
    return dtype


def _check_positive(what: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{what} must be a whole number of at least 1, not {value}")
