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
from pyro_vi.data.arrays import from_columns
from pyro_vi.data.columns import draw, floats
from pyro_vi.data.dataset import Data, check_dtype
from pyro_vi.data.files import FILES, read_file
from pyro_vi.data.mapped import mapped_file
from pyro_vi.data.registered import DATASETS, find
from pyro_vi.data.seeds import generator
from pyro_vi.data.spec import DataSpec
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
        return from_columns("array", {"the array": data}, source, seed, heldout, dtype, integers=bool(integers))
    if data is None or isinstance(data, tuple | list | dict):
        given = (data,) if isinstance(data, list) else data
        arguments, columns = split_arguments(given if isinstance(given, dict) else given or ())
        source = "arguments given in Python"
        if not columns:
            return _without_columns(arguments, source, seed, dtype)
        found = from_columns("array", columns, source, seed, heldout, dtype, integers=integers in (None, True))
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
    others = tuple(column.spec for column in raw.others)
    levels = raw.levels if raw.support == "unit_interval" else None
    spec = DataSpec(
        label, len(raw.train), shape, raw.support, dtype, raw.source, raw.image_shape, raw.features, others, levels
    )
    if raw.binarize and raw.levels is not None:
        fixed = draw(raw.heldout, raw.levels, generator(seed, 0, "heldout"), len(raw.heldout)).to(dtype)
    else:
        fixed = floats(raw.heldout, dtype, raw.levels)
    stored = raw.train.to(dtype) if raw.train.is_floating_point() else raw.train  # whole numbers become floats by batch
    further = [tuple(_cast(part, dtype) for part in (c.train, c.heldout)) for c in raw.others]
    return Data(
        spec,
        seed,
        (fixed, *(held for _, held in further)),
        (stored, *(train for train, _ in further)),
        raw.levels,
        raw.binarize,
        labels=raw.labels,
        heldout_labels=raw.heldout_labels,
        classes=raw.classes,
    )


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if values.is_floating_point() else values.long()


def _load_file(path: Path, seed: int, heldout: float | None, dtype: torch.dtype | None) -> Data:
    columns = mapped_file(path) or read_file(path)
    if columns.test is not None and heldout is not None:
        raise UsageError(f"{path.name} has a test part of its own; leave heldout out")
    return from_columns(path.stem, columns.train, f"{path.name}{columns.note}", seed, heldout, dtype, columns.test)
