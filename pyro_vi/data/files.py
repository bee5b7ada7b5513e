"""Readers of data files: one function for each kind of file, and `FILES`, the table of them."""

import importlib.util
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vi.data.bounded import Array, check_lines, check_parquet, read_archive, read_array
from pyro_vi.errors import InputError, first_line

UNREADABLE = (
    *(ValueError, OSError, EOFError, LookupError, ArithmeticError, RuntimeError, MemoryError),
    *(zlib.error, zipfile.BadZipFile),
)
"""Exceptions raised when a damaged file is read."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Arrays by their label in messages, each (rows, ...), and what belongs to them.

    Attributes:
        train: the columns.
        test: the test part of a single column, if the file has one.
        note: what was left out, for the source line.
        features: names of the numbers of a row of the first column.
        labels: labels kept apart, whole numbers that ``classes`` names; −1 where they are not known.
        classes: names of the labels.
        groups: names of the groups, if there is a column ``"group"``.
        targets: names of the values of a column ``"target"`` of words.
        whole: labels of columns of whole numbers that stay what they are: groups and lengths.
    """

    train: Mapping[str, Any]
    test: Array | None = None
    note: str = ""
    features: tuple[str, ...] = ()
    labels: Array | None = None
    classes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Table:
    """A DataFrame; ``named`` is False if its columns have numbers for names."""

    frame: Any
    named: bool


def read_file(path: Path) -> Columns | Table:
    """Read a .npy, .npz, .csv or .parquet file; pickled objects are rejected.

    Raises InputError if the file is missing, a folder, of another kind, unreadable, or not numeric.
    """
    suffix = path.suffix.lower()
    if os.path.isdir(path):
        raise InputError(f"{str(path)!r} is a folder; name one file in it: {', '.join(FILES)}")
    if suffix not in FILES:
        raise InputError(f"cannot read {str(path)!r}: unknown kind of file {suffix!r}; use one of {', '.join(FILES)}")
    if not os.path.isfile(path):
        raise InputError(f"there is no file {str(path)!r}; check the path (relative paths start at {Path.cwd()})")
    try:
        return FILES[suffix](path)
    except InputError:
        raise
    except Exception as error:  # of any kind: what is in the file decides
        raise InputError(f"cannot read {path.name} ({first_line(error)}); save it again as {suffix}") from error


def _npy_file(path: Path) -> Columns:
    return Columns({"the array": read_array(path)})


def _npz_file(path: Path) -> Columns:
    arrays = read_archive(path)
    if not arrays:
        raise InputError(f"{path.name} holds no array; save at least one with numpy.savez")
    if not {"train", "test"} <= set(arrays):
        return Columns({repr(name): array for name, array in arrays.items()})
    others = ", ".join(name for name in arrays if name not in ("train", "test"))
    note = f" (arrays 'train' and 'test'; left out: {others})" if others else ""
    return Columns({"'train'": arrays["train"]}, arrays["test"], note)


def _csv_file(path: Path) -> Table:
    import pandas as pd

    kind: dict[str, Any] = {"encoding": "utf-8-sig", "skipinitialspace": True}
    line = check_lines(path)
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if separator in line and "," not in line:
            raise InputError(
                f"{path.name}: the cells of the first line have {name} between them; save the table with commas between "
                "cells, and decimal points"
            )
    # Two rows, so that pandas rejects a second row longer than the first; with a header it would take a cell as an index.
    first = pd.read_csv(path, header=None, nrows=2, dtype=str, **kind).iloc[0]
    is_name = pd.to_numeric(first, errors="coerce").isna() & first.notna() & ~first.str.lower().isin(["true", "false"])
    # pandas heads a table without column names by 0,1,2,...: that row is not a datum.
    is_count = len(first) > 2 and first.tolist() == [str(number) for number in range(len(first))]
    has_header = is_count or bool(is_name.any())
    if has_header and bool(first.isna().any()):
        # By default pandas writes its row numbers as a column without a name; they would be fitted as data.
        raise InputError(f"{path.name}: a column has no name (row numbers?); name it, or save with index=False")
    if has_header and bool(first.duplicated().any()):  # pandas would give them new names
        twice = first[first.duplicated()].iloc[0]
        raise InputError(f"{path.name}: two columns have the name {twice!r}; give each a name of its own")
    frame = pd.read_csv(path, header=0 if has_header else None, low_memory=False, **kind)
    return Table(frame, has_header and not is_count)


def _parquet_file(path: Path) -> Table:
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"reading {path.name} needs pyarrow; install it with: pip install 'pyro-vi[parquet]'")
    import pandas as pd
    import pyarrow

    try:
        check_parquet(path)
        frame = pd.read_parquet(path, engine="pyarrow")
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error
    return table(frame)


def table(frame: Any) -> Table:
    """Return a DataFrame as a table; its columns have names if those are no numbers."""
    return Table(frame, all(isinstance(name, str) and not name.isdecimal() for name in frame.columns))


FILES: dict[str, Callable[[Path], Columns | Table]] = {
    ".npy": _npy_file,
    ".npz": _npz_file,
    ".csv": _csv_file,
    ".parquet": _parquet_file,
}
