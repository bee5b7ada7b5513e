"""Data sets and batches.

Roles, in the order data flow:

* `load` turns a name, a file, an array or columns of arrays into a `Data`; `available` lists the names.
* `DataSpec` says what one datum is (shape, support, dtype): models are built from it, and new values checked by it.
* `Data` holds the training columns as stored and the fixed held-out `Batch`, and deals training batches out by epoch.

A `Batch` is what a program is called with: `program(*batch)`. Everything random depends on (seed, epoch, purpose)
alone, through generators of its own: the same seed gives the same bits, and the global random state is not touched.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vi.datasets import DATASETS, FILES, Array, find, generator, read_file, split
from pyro_vi.errors import InputError, UsageError
from pyro_vi.specs import parse, unknown

Batch = tuple[Tensor, ...]

_ALLOWED = {
    "boolean": "only 0 and 1",
    "unit_interval": "0 to 1",
    "nonnegative_integer": "whole numbers from 0",
    "real": "any finite number",
}
_BLOCK = 4096  # rows drawn at a time: bounds memory, and lets the first rows be drawn without the others


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
        _check_finite(values, self.name)
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
                f"{self.name}: {_count_and_row(outside)} outside the support {self.support!r} "
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
    columns: Batch = field(repr=False)
    levels: int | None = None
    binarize: bool = False

    def train(self, epoch: int = 0) -> Batch:
        """The training columns, each (num_data, ...), as seen in that epoch."""
        return self._values(self._stored(epoch, self.spec.num_data))

    def batches(self, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Batch]]:
        """Row numbers, (size,), and the rows of `train(epoch)` they name, shuffled by (seed, epoch).

        Every row comes once; the last batch may be smaller. Raises InputError unless batch_size >= 1.
        """
        _check_positive("batch_size", batch_size)
        return self._batches(epoch, batch_size)

    def _batches(self, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Batch]]:
        # Rows are gathered before they become floats: pictures stay at a byte per pixel.
        stored = self._stored(epoch, self.spec.num_data)
        order = torch.randperm(self.spec.num_data, generator=generator(self.seed, epoch, "shuffle"))
        for index in torch.split(order.to(stored[0].device), batch_size):
            yield index, self._values(tuple(column.index_select(0, index) for column in stored))

    def example(self, size: int = 2) -> Batch:
        """The first rows of `train(0)`, at most `size`; raises InputError unless size >= 1."""
        _check_positive("size", size)
        return self._values(self._stored(0, size))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Data":
        """The same data on another device or as another floating dtype; draws do not depend on either."""
        dtype = _check_dtype(dtype or self.spec.dtype)
        return dataclasses.replace(
            self,
            spec=dataclasses.replace(self.spec, dtype=dtype),
            heldout=tuple(column.to(device=device, dtype=dtype) for column in self.heldout),
            columns=tuple(c.to(device=device, dtype=dtype if c.is_floating_point() else c.dtype) for c in self.columns),
        )

    def _stored(self, epoch: int, rows: int) -> Batch:
        if not self.binarize:
            return tuple(column[:rows] for column in self.columns) if rows < self.spec.num_data else self.columns
        assert self.levels is not None
        blocks = generator(self.seed, epoch, "train")
        return tuple(_draw(column, self.levels, blocks, rows) for column in self.columns)

    def _values(self, stored: Batch) -> Batch:
        return tuple(_floats(column, self.spec.dtype, None if self.binarize else self.levels) for column in stored)


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
            such as (x, y), or a Data, which is returned as it is.
        seed: what the split, the binarisation and the order of the batches depend on.
        heldout: held-out fraction of the rows, by default 1/10 (digits: 1/6); data with a split of their own take none.
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
        fixed = _draw(raw.heldout, raw.levels, generator(seed, 0, "heldout"), len(raw.heldout)).to(dtype)
    else:
        fixed = _floats(raw.heldout, dtype, raw.levels)
    stored = raw.train if raw.train.dtype == torch.uint8 else raw.train.to(dtype)
    return Data(spec, seed, (fixed,), (stored,), raw.levels, raw.binarize)


def _load_file(path: Path, seed: int, heldout: float | None, dtype: torch.dtype | None) -> Data:
    columns = read_file(path)
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
    tensors = {label: _tensor(values, f"{name}: {label}") for label, values in columns.items()}
    lengths = {label: len(values) for label, values in tensors.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{label} {length}" for label, length in lengths.items())
        raise InputError(f"{name}: columns differ in their number of rows ({listed}); give all of them the same rows")
    rows = next(iter(lengths.values()))
    if rows < 2:
        raise InputError(f"{name}: {rows} row{'s' * (rows != 1)} cannot be fitted; give at least 2 rows")
    whole = [_cast(values, dtype, f"{name}: {label}") for label, values in tensors.items()]
    first = next(iter(tensors.values()))
    seen = [first]
    if test is None:
        chosen, rest = split(rows, 0.1 if heldout is None else heldout, seed)
        train: Batch = tuple(column[chosen.to(column.device)] for column in whole)
        held: Batch = tuple(column[rest.to(column.device)] for column in whole)
    else:
        seen.append(other := _tensor(test, f"{name}: 'test'"))
        if not len(other) or other.shape[1:] != first.shape[1:]:
            raise InputError(
                f"{name}: 'test' has shape {tuple(other.shape)} and 'train' {tuple(first.shape)}; "
                "give both at least one row and rows of the same shape"
            )
        train, held = (whole[0],), (_cast(other, dtype, f"{name}: 'test'"),)
    # The narrowest support that holds both parts.
    support = next(s for s in ("boolean", "nonnegative_integer", "real") if all(_holds(s, v) for v in seen))
    return Data(DataSpec(name, len(train[0]), tuple(first.shape[1:]), support, dtype, source), seed, held, train)


def _tensor(values: Tensor | Array, what: str) -> Tensor:
    """A dense tensor of numbers, (rows, ...), finite."""
    if isinstance(values, np.ma.MaskedArray):
        raise InputError(f"{what} is a masked array; drop or fill the masked rows and give a plain array")
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "biuf":
            raise InputError(f"{what} holds {values.dtype}, not numbers; give whole or real numbers")
        # torch knows neither foreign byte orders nor long doubles, and hardly the wider unsigned integers
        kind = values.dtype.kind
        common = {"b": np.bool_, "u": np.uint8 if values.dtype.itemsize == 1 else np.int64, "i": np.int64}
        if kind == "u" and values.size and int(values.max()) > np.iinfo(np.int64).max:
            raise InputError(f"{what} holds numbers above 2**63; give smaller ones, or floats")
        wide = np.float64 if values.dtype.itemsize > 8 else values.dtype.newbyteorder("=")
        tensor = torch.tensor(np.ascontiguousarray(values, common.get(kind, wide)).reshape(values.shape))
    else:
        tensor = values.detach()
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise InputError(f"{what} is a sparse, quantised or complex tensor; give a dense one of real numbers")
    if not tensor.ndim:
        raise InputError(f"{what} is a single number; give an array with a row for each datum")
    _check_finite(tensor, what)
    return tensor


def _cast(values: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    cast = values.to(dtype, copy=True)
    if not (cast.isfinite().all() if values.is_floating_point() else (cast.to(values.dtype) == values).all()):
        raise InputError(f"{what} holds numbers that {dtype} cannot; load with dtype=torch.float64, or rescale them")
    return cast


def _holds(support: str, values: Tensor) -> bool:
    if support == "boolean":
        return bool(((values == 0) | (values == 1)).all())
    return support == "real" or (not values.is_floating_point() and bool((values >= 0).all()))


def _draw(stored: Tensor, levels: int, blocks: torch.Generator, rows: int) -> Tensor:
    """The first rows of 0/1 draws with probability v / levels, exactly: u < v with u uniform on 0, ..., levels - 1."""
    drawn = [
        torch.randint(levels, tuple(block.shape), dtype=torch.uint8, generator=blocks).to(block.device) < block
        for block in torch.split(stored[: -(-rows // _BLOCK) * _BLOCK], _BLOCK)
    ]
    return torch.cat(drawn)[:rows].to(torch.uint8)


def _floats(values: Tensor, dtype: torch.dtype, levels: int | None) -> Tensor:
    return values.to(dtype) if levels is None else values.to(dtype) / levels


def _check_finite(values: Tensor, what: str) -> None:
    bad = ~values.isfinite()
    if bad.any():
        raise InputError(f"{what}: {_count_and_row(bad)} NaN or infinite; drop or fill those rows")


def _count_and_row(bad: Tensor) -> str:
    first = int(bad.reshape(len(bad), -1).any(1).nonzero()[0])
    count = int(bad.sum())
    return f"{count} value{'s' * (count != 1)} (first in row {first}, counted from 0) {'are' if count != 1 else 'is'}"


def _check_positive(what: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{what}={value} is not possible; use a whole number from 1")


def _check_dtype(dtype: torch.dtype) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype={dtype} is not a floating dtype; use torch.float32 or torch.float64")
    return dtype
