"""Loading of data: `load` turns a name, a file or arrays into a `Data`, and `available` lists the names."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.arguments import Arguments
from pyro_vi.data.arguments import split as split_arguments
from pyro_vi.data.columns import SUPPORTS, default_heldout, draw, floats, survey
from pyro_vi.data.dataset import Batch, Data, DataSpec, Stored, check_dtype
from pyro_vi.data.files import FILES, Array, read_file
from pyro_vi.data.mapped import Mapped, first, mapped_file
from pyro_vi.data.registered import DATASETS, find
from pyro_vi.data.seeds import generator, split
from pyro_vi.errors import InputError, UsageError
from pyro_vi.support import Real, Whole, parse, real, seed_from, unknown


def available() -> dict[str, str]:
    """Names of the registered data sets, each with a description of one line.

    >>> "digits" in available()
    True
    """
    return {name: entry.description for name, entry in DATASETS.items()}


def load(
    data: object,
    *,
    seed: Whole = 0,
    heldout: Real | None = None,
    dtype: torch.dtype | None = None,
    integers: bool | None = None,
) -> Data:
    """Load data from a registered name with options, a file, a tensor or array, or the arguments of a program.

    Args:
        data: a name with options ("digits", "mnist(binarize=False)"), the path of a .npy, .npz, .csv or .parquet file,
            values (rows, ...), a DataFrame of numbers, a tuple of positional arguments such as (x, y, None), a list as the
            one argument, a dictionary of keyword arguments, or a `Data`, which is returned unchanged. Of several arguments,
            those with as many rows as the first tensor or array are columns; the others are passed on as they are. Columns
            are copied, except an `np.memmap` and a .npy file of more than 256 MB: their training rows stay in the file, which
            must not change, and are read batch by batch. (Copy-on-write maps, foreign byte orders, and views that are not
            C-contiguous are copied too.)
        seed: seed of the split, the binarisation and the order of the batches.
        heldout: held-out fraction of the rows, by default 1/10 (digits: 1/6); not allowed for data with a split of their
            own. Held-out rows are kept in memory: if the training rows stay in a file, the default is at most 10,000
            rows and 256 MB.
        dtype: floating dtype of all columns; by default that of the given tensors, else torch's default.
        integers: whether whole numbers and truth values stay what they are, or become floats; by default they stay in a tuple
            or a dictionary, and become floats in a single array or file.

    Raises:
        UsageError: an unknown name or option.
        InputError: data that cannot be read or used; the message says what to do, in one line.

    >>> load((torch.arange(20), torch.ones(20, 3))).spec.num_data
    18
    """
    if dtype is not None:
        check_dtype(dtype)
    seed = seed_from(seed)
    heldout = None if heldout is None else real("heldout", heldout, least=0, below=1)
    if isinstance(data, Data):
        if heldout is not None:
            raise UsageError("the data are split already; leave heldout out, or load the arrays themselves")
        return data if dtype in (None, data.spec.dtype) else data.to(dtype=dtype)
    if isinstance(data, str | Path):
        return _load_named(data, seed, heldout, dtype)
    if type(data).__module__.split(".")[0] == "pandas" and hasattr(data, "to_numpy"):
        data = data.to_numpy()
    if isinstance(data, Tensor | np.ndarray):
        source = "an array given in Python"
        return _from_columns("array", {"the array": data}, source, seed, heldout, dtype, integers=bool(integers))
    if data is None or isinstance(data, tuple | list | dict):
        given = (data,) if isinstance(data, list) else data
        arguments, columns = split_arguments(given if isinstance(given, dict) else given or ())
        source = "arguments given in Python"
        if not columns:
            return _without_columns(arguments, source, seed, dtype)
        found = _from_columns("array", columns, source, seed, heldout, dtype, integers=integers in (None, True))
        # The held-out rows are stored as the programs are called.
        arguments = arguments.tensors(found.spec.dtype).to(dtype=dtype)
        return dataclasses.replace(found, arguments=arguments, heldout=arguments.fill(found.heldout))
    raise InputError(
        f"cannot take data from a {type(data).__name__}; "
        "give a name, a path, a tensor, an array, a DataFrame, a tuple of arguments or a dictionary of keyword arguments"
    )


def _without_columns(arguments: Arguments, source: str, seed: int, dtype: torch.dtype | None) -> Data:
    """Make a `Data` without columns, for programs that hold their data themselves; it counts as one row."""
    spec = DataSpec("arguments", 1, (), "real", dtype or torch.get_default_dtype(), source)
    arguments = arguments.to(dtype=dtype)
    return Data(spec, seed, arguments.fill(()), (), arguments=arguments)


def _load_named(data: str | Path, seed: int, heldout: float | None, dtype: torch.dtype | None) -> Data:
    path = Path(os.path.expanduser(data))
    is_name = isinstance(data, str) and data.split("(")[0].strip() in DATASETS
    if isinstance(data, Path) or path.suffix.lower() in FILES:
        return _load_file(path, seed, heldout, dtype)
    if not is_name and (os.path.exists(path) or path.parent != Path(".")) and "(" not in path.name:
        return _load_file(path, seed, heldout, dtype)  # raises with what is wrong with the file
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
    return _from_columns(path.stem, columns.train, f"{path.name}{columns.note}", seed, heldout, dtype, columns.test)


def _from_columns(
    name: str,
    columns: Mapping[str, Tensor | Array],
    source: str,
    seed: int,
    heldout: float | None,
    dtype: torch.dtype | None,
    test: Array | None = None,
    integers: bool = False,
) -> Data:
    """Make a `Data` from columns; `test`, if given, is the held-out part of a single column."""
    if dtype is None:
        # A tensor's dtype was chosen; NumPy's and pandas' float64 is only their default.
        dtypes = [v.dtype for v in columns.values() if isinstance(v, Tensor) and v.is_floating_point()]
        dtype = dtypes[0] if dtypes else torch.get_default_dtype()
        for other in dtypes:
            dtype = torch.promote_types(dtype, other)
    surveyed = {
        label: survey(values, dtype, f"{name}: {label}", integers=integers) for label, values in columns.items()
    }
    whole = [column for column, _ in surveyed.values()]
    if len({len(column) for column in whole}) > 1:
        listed = ", ".join(f"{label} {len(column)}" for label, (column, _) in surveyed.items())
        raise InputError(f"{name}: columns differ in their number of rows ({listed}); give all of them the same rows")
    rows, shape = len(whole[0]), tuple(whole[0].shape[1:])
    if not rows:
        raise InputError(f"{name}: 0 rows cannot be fitted; give at least 2 rows")
    if rows < 2 and heldout != 0 and test is None:
        raise InputError(f"{name}: 1 row cannot be split; give at least 2 rows, or heldout=0")
    supports = next(iter(surveyed.values()))[1]
    if test is None:
        kept, rest = split(rows, default_heldout(whole) if heldout is None else heldout, seed)
        train: Stored = tuple(c.part(kept) if isinstance(c, Mapped) else c[kept.to(c.device)] for c in whole)
        held: Batch = tuple(column.index_select(0, rest.to(column.device)) for column in whole)
    else:
        tested, test_supports = survey(test, dtype, f"{name}: 'test'")
        if not len(tested) or tuple(tested.shape[1:]) != shape:
            raise InputError(
                f"{name}: 'test' has shape {tuple(tested.shape)} and 'train' {tuple(whole[0].shape)}; "
                "give both at least one row and rows of the same shape"
            )
        train, held, supports = (whole[0],), (first(tested, len(tested)),), supports & test_supports
    support = next(support for support in SUPPORTS if support in supports)  # the narrowest that contains both parts
    spec, given = DataSpec(name, len(train[0]), shape, support, dtype, source), kept if test is None else None
    return Data(spec, seed, held, train, integers=integers, given=given)
