"""Loading of data: `load` turns a name, a file or arrays into a `Data`, and `available` lists the names."""

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.arguments import Arguments
from pyro_vi.data.arguments import split as split_arguments
from pyro_vi.data.arrays import from_columns, sequences_in, series_of
from pyro_vi.data.chosen import Choice, labels_of, taken
from pyro_vi.data.columns import draw, floats
from pyro_vi.data.dataset import Data, check_dtype
from pyro_vi.data.files import FILES, Columns, Table, read_file, table
from pyro_vi.data.mapped import mapped_file
from pyro_vi.data.registered import DATASETS, find
from pyro_vi.data.seeds import generator
from pyro_vi.data.sets.series import padded
from pyro_vi.data.spec import DataSpec
from pyro_vi.errors import InputError, UsageError
from pyro_vi.support import Real, Whole, check_options, parse, real, seed_from, unknown


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
    **options: Any,
) -> Data:
    """Load data from a registered name with options, a file, a tensor or array, or the arguments of a program.

    Args:
        data: a name with options ("digits", "mnist(binarize=False)"), "none" or None for programs that hold their data, the
            path of a .npy, .npz, .csv or .parquet file, with options too ("wine.csv(label='kind')"), values (rows, ...), a
            DataFrame, a tuple of positional arguments such as (x, y, None), a list as the one argument, a dictionary of keyword
            arguments, or a `Data`, which is returned unchanged.
            Of several arguments, those with as many rows as the first tensor or array are columns; the others are
            passed on as they are. Columns are copied, except an `np.memmap` and a .npy file of more than 256 MB: their training
            rows stay in the file, which must not change, and are read batch by batch. (Copy-on-write maps, foreign byte orders,
            and views that are not C-contiguous are copied too.) A list of arrays that differ in their first dimension only, and
            an .npz file of an array and its ``lengths``, are sequences: they become padded columns (x, lengths).
        seed: seed of the split, the binarisation and the order of the batches.
        heldout: held-out fraction of the rows, by default 1/10 (digits, robot: 1/6); not allowed for data with a split of their
            own. Held-out rows are kept in memory: if the training rows stay in a file, the default is at most 10,000
            rows and 256 MB.
        dtype: floating dtype of all columns; by default that of the given tensors, else torch's default.
        integers: whether whole numbers and truth values stay what they are, or become floats; by default they stay in a tuple
            or a dictionary, and become floats in a single array or file.
        options: those of a registered name, or for own data:
            ``columns``: names of the columns of a table that a row consists of; by default those without another role.
            ``label``: the column of a table, or the array of an .npz file or a dictionary, of classes, as words or numbers;
            or the classes themselves, (rows,). They are kept apart, in `Data.labels`.
            ``labels``: True gives them to the model too, as the last column; a number says how many rows of each class.
            ``target``: a column of a table that depends on the others; it is the second column of the batch.
            ``group``: a column of a table that says to which group a row belongs; the batch has its number.
            ``standardize``: mean 0 and standard deviation 1 of the training rows: in each column of a table, each number of a
            step of a series, or in all numbers of other arrays. `Data.standardized` does the same to new values.

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
        if heldout is not None or options:
            said = "heldout" if heldout is not None else next(iter(options))
            raise UsageError(f"the data are split already; leave {said} out, or load the arrays themselves")
        return data if dtype in (None, data.spec.dtype) else data.to(dtype=dtype)
    if isinstance(data, str | Path):
        return _load_named(data, seed, heldout, dtype, options)
    choice = _choice("load", options)
    source = "an array given in Python"
    if type(data).__module__.split(".")[0] == "pandas" and hasattr(data, "to_numpy"):
        if hasattr(data, "columns"):
            given = taken(table(data), choice, "the table")
            return from_columns("array", given, source, seed, heldout, dtype, bool(integers), choice)
        data = data.to_numpy()
    if isinstance(data, Tensor | np.ndarray):
        given = _with_labels(Columns({"the array": data}), choice, "array")
        return from_columns("array", given, source, seed, heldout, dtype, bool(integers), choice)
    if isinstance(data, list) and (sequences := sequences_in(data)) is not None:
        x, lengths = padded(sequences)
        given = _with_labels(Columns({"the sequences": x, "lengths": lengths}, whole=("lengths",)), choice, "array")
        return from_columns("array", given, "sequences given in Python", seed, heldout, dtype, bool(integers), choice)
    if data is None or isinstance(data, tuple | list | dict):
        return _load_arguments(data, seed, heldout, dtype, integers, choice)
    raise InputError(
        f"cannot take data from a {type(data).__name__}; "
        "give a name, a path, a tensor, an array, a DataFrame, a tuple of arguments or a dictionary of keyword arguments"
    )


def _load_arguments(
    data: Any, seed: int, heldout: float | None, dtype: torch.dtype | None, integers: bool | None, choice: Choice
) -> Data:
    """Load the arguments of a program."""
    label = choice.label
    if isinstance(data, dict) and isinstance(label, str) and label in data:
        if choice.labels is not False:
            raise UsageError("a dictionary names the arguments of the program; leave labels out, or label")
        label = data[label]
        if len(data) == 1:
            raise _nothing_left("array", choice.label)
        data = {key: value for key, value in data.items() if key != choice.label}
    elif choice.labels is not False:
        raise UsageError("several arguments are what the program takes; leave labels out, and give them as an argument")
    given = (data,) if isinstance(data, list) else data
    arguments, columns = split_arguments(given if isinstance(given, dict) else given or ())
    source = "arguments given in Python"
    if not columns:
        if choice.given():
            raise UsageError(f"there are no columns; leave {next(iter(choice.given()))} out")
        return _without_columns(arguments, source, seed, dtype)
    labelled = _with_labels(Columns(columns), replace(choice, label=label), "array")
    found = from_columns("array", labelled, source, seed, heldout, dtype, integers in (None, True), choice)
    # The held-out rows are stored as the programs are called.
    arguments = arguments.tensors(found.spec.dtype).to(dtype=dtype)
    return replace(found, arguments=arguments, heldout=arguments.fill(found.heldout))


def _without_columns(arguments: Arguments, source: str, seed: int, dtype: torch.dtype | None) -> Data:
    """Make a `Data` without columns, for programs that hold their data themselves; it counts as one row."""
    spec = DataSpec(
        "arguments" if arguments.values else "none", 1, (), "real", dtype or torch.get_default_dtype(), source
    )
    arguments = arguments.to(dtype=dtype)
    return Data(spec, seed, arguments.fill(()), (), arguments=arguments)


def _load_named(
    data: str | Path, seed: int, heldout: float | None, dtype: torch.dtype | None, more: Mapping[str, object]
) -> Data:
    if data == "none":
        return _without_columns(split_arguments(())[0], "no data", seed, dtype)
    path = Path(os.path.expanduser(data))
    is_name = isinstance(data, str) and data.split("(")[0].strip() in DATASETS
    if isinstance(data, Path) or path.suffix.lower() in FILES:
        return _load_file(path, seed, heldout, dtype, more)
    if not is_name and (os.path.exists(path) or path.parent != Path(".")) and "(" not in path.name:
        return _load_file(path, seed, heldout, dtype, more)  # raises with what is wrong with the file
    name, options = parse(data)
    options = {**options, **more}
    if name not in DATASETS:
        if Path(name).suffix.lower() in FILES:
            return _load_file(Path(os.path.expanduser(name)), seed, heldout, dtype, options)
        raise UsageError(f"{unknown('data set', name, DATASETS)}; or a file: {', '.join(FILES)}")
    return _load_set(name, options, seed, heldout, dtype)


def with_data_options(data: str, options: Mapping[str, object]) -> str:
    """Return the name of data with more options: what `load` takes as one text, and a run's configuration keeps.

    Raises:
        UsageError: an option is given twice.

    Example:
        >>> with_data_options("wine.csv(label='kind')", {"standardize": True})
        "wine.csv(label='kind', standardize=True)"
    """
    if not options:
        return data
    path = Path(os.path.expanduser(data))
    name, given = (data, {}) if path.suffix.lower() in FILES or path.is_file() else parse(data)
    for option in options:
        if option in given:
            raise UsageError(f"{data!r}: the option {option!r} is given twice; give it once")
    # A name with blanks is read as a path only if it has a folder.
    name = name if "/" in name or " " not in name else f"./{name}"
    written = ", ".join(f"{key}={value!r}" for key, value in {**given, **options}.items())
    return f"{name}({written})"


def _choice(what: str, options: Mapping[str, Any]) -> Choice:
    check_options(what, options, [option.name for option in fields(Choice)])
    return Choice(**options)


def _with_labels(given: Columns, choice: Choice, what: str) -> Columns:
    """Arrays with the labels that were chosen; a name among the arrays is no column any more."""
    choice.refuse(f"{what}: an array", "columns", "target", "group")
    if choice.label is None:
        return given
    arrays = {key.strip("'"): value for key, value in given.train.items()}
    named = isinstance(choice.label, str)
    left = {key: v for key, v in given.train.items() if not (named and key.strip("'") == choice.label)}
    if given.test is not None:
        raise UsageError(f"{what} has a test part of its own, for which there are no labels; leave label out")
    if named and "the array" in given.train:
        choice.refuse(f"{what}: an array", "label")
    if not left:
        raise _nothing_left(what, choice.label)
    rows = len(next(iter(left.values())))
    labels, classes = labels_of(choice.label, arrays, rows, what)
    return replace(given, train=left, labels=labels, classes=classes)


def _load_set(
    name: str, options: Mapping[str, object], seed: int, heldout: float | None, dtype: torch.dtype | None
) -> Data:
    entry = find(name, options)
    if entry.whole and heldout:
        raise UsageError(f"data set {name!r} is fitted as a whole, and nothing of it is held out; leave heldout out")
    if entry.own_split and not entry.whole and heldout is not None:
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
        standard=raw.standard,
    )


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if values.is_floating_point() else values.long()


def _nothing_left(what: str, label: object) -> InputError:
    return InputError(f"{what}: {label!r} is the only array, so that nothing is left to be fitted; leave label out")


def _load_file(
    path: Path, seed: int, heldout: float | None, dtype: torch.dtype | None, options: Mapping[str, object]
) -> Data:
    choice = _choice(f"the file {path.name!r}", options)
    found = mapped_file(path) or read_file(path)
    if isinstance(found, Table):
        given = taken(found, choice, path.name)
    else:
        given = _with_labels(found, choice, path.name)
        if (series := series_of(given.train)) is not None:
            given = replace(given, train=series, whole=tuple(key for key in series if key.strip("'") == "lengths"))
    if given.test is not None and heldout is not None:
        raise UsageError(f"{path.name} has a test part of its own; leave heldout out")
    return from_columns(path.stem, given, f"{path.name}{given.note}", seed, heldout, dtype, False, choice)
