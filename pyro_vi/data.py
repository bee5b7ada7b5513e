"""Data sets and batches.

Roles, in the order data flow:

* `load` turns a name, a file, an array or columns of arrays into a `Data`; `available` lists the names.
* `DataSpec` says what one datum is (shape, support, dtype): models are built from it, and new values checked by it.
* `Data` holds the training columns as stored (tensors, or `pyro_vi.columns.Mapped` ones, whose rows stay in their file)
  and the fixed held-out `Batch`, and deals training batches out by epoch.

A `Batch` is what a program is called with: `program(*batch)`. Everything random depends on (seed, epoch, purpose)
alone, through generators of its own: the same seed gives the same bits, and the global random state is not touched.
"""

import dataclasses
import os
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vi.columns import (
    SUPPORTS,
    Mapped,
    ahead,
    check_finite,
    count_and_row,
    default_heldout,
    draw,
    first,
    floats,
    mapped_file,
    survey,
)
from pyro_vi.datasets import DATASETS, FILES, Array, find, generator, read_file, split
from pyro_vi.errors import InputError, UsageError
from pyro_vi.specs import parse, unknown

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
        dtype = _check_dtype(dtype or self.spec.dtype)
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


def available() -> dict[str, str]:
    """The registered data sets: name and one line each.

    >>> "digits" in available()
    True
    """
    return {name: entry.description for name, entry in DATASETS.items()}


def load(data: object, *, seed: int = 0, heldout: float | None = None, dtype: torch.dtype | None = None) -> Data:
    """Data from a registered name with options, a file, a tensor or array, or a tuple of columns of equal length.

    Args:
        data: "digits", "mnist(binarize=False)", a path to .npy, .npz, .csv or .parquet, values (rows, ...), columns
            such as (x, y), or a Data, which is returned as it is. Columns are copied, but for an `np.memmap` and a .npy
            file of more than 256 MB: their training rows stay in the file, which must not change, and are read batch by
            batch (copied all the same: copy-on-write maps, other byte orders, and views that are not C-contiguous).
        seed: what the split, the binarisation and the order of the batches depend on.
        heldout: held-out fraction of the rows, by default 1/10 (digits: 1/6); data with a split of their own take none.
            They are kept in memory: where rows stay in a file, by default at most 10,000 and 256 MB of them.
        dtype: floating dtype of all columns; by default that of the tensors given, else torch's default.

    Raises:
        UsageError: a name or an option that there is not.
        InputError: data that cannot be read or used, in one line with the remedy.

    >>> load((torch.arange(20), torch.ones(20, 3))).spec.num_data
    18
    """
    if dtype is not None:
        _check_dtype(dtype)
    generator(seed, 0, "split")  # refuses an impossible seed before anything is read
    if isinstance(data, Data):
        if heldout is not None:
            raise UsageError("the data are split already; leave heldout out, or load the arrays themselves")
        return data if dtype in (None, data.spec.dtype) else data.to(dtype=dtype)
    if isinstance(data, str | Path):
        return _load_named(data, seed, heldout, dtype)
    if isinstance(data, Tensor | np.ndarray):
        return _own("array", {"the array": data}, "an array given in Python", seed, heldout, dtype)
    if isinstance(data, tuple | list) and data and all(isinstance(column, Tensor | np.ndarray) for column in data):
        columns = {f"column {number}": column for number, column in enumerate(data)}
        return _own("array", columns, "arrays given in Python", seed, heldout, dtype)
    raise InputError(
        f"cannot take data from a {type(data).__name__}; "
        "give a name, a path, a tensor, a NumPy array, or a tuple of tensors or arrays"
    )


def _load_named(data: str | Path, seed: int, heldout: float | None, dtype: torch.dtype | None) -> Data:
    path = Path(os.path.expanduser(data))
    is_name = isinstance(data, str) and data.split("(")[0].strip() in DATASETS
    if isinstance(data, Path) or path.suffix.lower() in FILES:
        return _load_file(path, seed, heldout, dtype)
    if not is_name and (os.path.exists(path) or path.parent != Path(".")) and "(" not in path.name:
        return _load_file(path, seed, heldout, dtype)  # says what is wrong with it
    name, options = parse(data)
    if name not in DATASETS:
        if Path(name).suffix.lower() in FILES:
            raise UsageError(f"the file {name!r} has no options; leave out what is in parentheses")
        raise UsageError(f"{unknown('data set', name, DATASETS)}; or a file: {', '.join(FILES)}")
    return _load_set(name, options, seed, heldout, dtype)


def _load_set(
    name: str, options: Mapping[str, object], seed: int, heldout: float | None, dtype: torch.dtype | None
) -> Data:
    entry = find(name, options)
    if entry.own_split and heldout is not None:
        raise UsageError(f"data set {name!r} has a held-out part of its own; leave heldout out")
    raw = entry.read(seed, heldout, **options)
    dtype = dtype or torch.get_default_dtype()
    shape = tuple(raw.train.shape[1:])
    written = ", ".join(f"{key}={value!r}" for key, value in options.items())
    label = f"{name}({written})" if options else name
    spec = DataSpec(label, len(raw.train), shape, raw.support, dtype, raw.source, raw.image_shape)
    if raw.binarize and raw.levels is not None:
        fixed = draw(raw.heldout, raw.levels, generator(seed, 0, "heldout"), len(raw.heldout)).to(dtype)
    else:
        fixed = floats(raw.heldout, dtype, raw.levels)
    stored = raw.train if raw.train.dtype == torch.uint8 else raw.train.to(dtype)
    return Data(spec, seed, (fixed,), (stored,), raw.levels, raw.binarize)


def _load_file(path: Path, seed: int, heldout: float | None, dtype: torch.dtype | None) -> Data:
    columns = mapped_file(path) or read_file(path)
    if columns.test is not None and heldout is not None:
        raise UsageError(f"{path.name} has a test part of its own; leave heldout out")
    return _own(path.stem, columns.train, f"{path.name}{columns.note}", seed, heldout, dtype, columns.test)


def _own(
    name: str,
    columns: Mapping[str, Tensor | Array],
    source: str,
    seed: int,
    heldout: float | None,
    dtype: torch.dtype | None,
    test: Array | None = None,
) -> Data:
    """People's own columns; `test` is the held-out part of a single column where it is given."""
    if dtype is None:
        # A tensor's dtype was chosen; NumPy's and pandas' float64 is only their default.
        floats = [v.dtype for v in columns.values() if isinstance(v, Tensor) and v.is_floating_point()]
        dtype = floats[0] if floats else torch.get_default_dtype()
        for wider in floats:
            dtype = torch.promote_types(dtype, wider)
    found = {label: survey(values, dtype, f"{name}: {label}") for label, values in columns.items()}
    whole = [column for column, _ in found.values()]
    if len({len(column) for column in whole}) > 1:
        listed = ", ".join(f"{label} {len(column)}" for label, (column, _) in found.items())
        raise InputError(f"{name}: columns differ in their number of rows ({listed}); give all of them the same rows")
    rows, shape = len(whole[0]), tuple(whole[0].shape[1:])
    if rows < 2:
        raise InputError(f"{name}: {rows} row{'s' * (rows != 1)} cannot be fitted; give at least 2 rows")
    supports = next(iter(found.values()))[1]
    if test is None:
        chosen, rest = split(rows, default_heldout(whole) if heldout is None else heldout, seed)
        train: Stored = tuple(c.part(chosen) if isinstance(c, Mapped) else c[chosen.to(c.device)] for c in whole)
        held: Batch = tuple(column.index_select(0, rest.to(column.device)) for column in whole)
    else:
        other, others = survey(test, dtype, f"{name}: 'test'")
        if not len(other) or tuple(other.shape[1:]) != shape:
            raise InputError(
                f"{name}: 'test' has shape {tuple(other.shape)} and 'train' {tuple(whole[0].shape)}; "
                "give both at least one row and rows of the same shape"
            )
        train, held, supports = (whole[0],), (first(other, len(other)),), supports & others
    support = next(support for support in SUPPORTS if support in supports)  # the narrowest that holds both parts
    return Data(DataSpec(name, len(train[0]), shape, support, dtype, source), seed, held, train)


def _check_positive(what: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{what}={value} is not possible; use a whole number from 1")


def _check_dtype(dtype: torch.dtype) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype={dtype} is not a floating dtype; use torch.float32 or torch.float64")
    return dtype
