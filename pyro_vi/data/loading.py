"""From a name, a file, an array or columns of arrays to a `Data`: `load`; `available` lists the names."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.columns import SUPPORTS, default_heldout, draw, floats, survey
from pyro_vi.data.dataset import Batch, Data, DataSpec, Stored, check_dtype
from pyro_vi.data.files import FILES, Array, read_file
from pyro_vi.data.mapped import Mapped, first, mapped_file
from pyro_vi.data.registered import DATASETS, find
from pyro_vi.data.seeds import generator, split
from pyro_vi.errors import InputError, UsageError
from pyro_vi.support import parse, unknown


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
        check_dtype(dtype)
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
