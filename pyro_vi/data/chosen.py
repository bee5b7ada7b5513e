"""Choices for a person's own data: columns of a table, labels, a target, groups, and whether to standardise.

* `Choice` holds the options of `load`.
* `taken` makes the columns of a batch from a table; `coded` makes whole numbers and names of a column of classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.files import Array, Columns, Table
from pyro_vi.errors import InputError, UsageError
from pyro_vi.support import unknown

CLASSES = 256
"""Most classes of a label."""


@dataclass(frozen=True)
class Choice:
    """The options of `load` for data of a person's own; see there.

    Raises:
        UsageError: a value of another kind, or one that needs another option.
    """

    columns: Any = None
    label: Any = None
    labels: Any = False
    target: Any = None
    group: Any = None
    standardize: Any = False

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            object.__setattr__(self, "columns", tuple(name.strip() for name in self.columns.split(",")))
        elif self.columns is not None:
            given = self.columns
            named = isinstance(given, tuple | list) and all(isinstance(name, str) for name in given)
            if not named or not given:
                raise UsageError(f"columns={given!r} is not allowed; give names, such as columns=('a', 'b')")
            object.__setattr__(self, "columns", tuple(given))
        for name in ("target", "group"):
            if not isinstance(getattr(self, name), str | None):
                raise UsageError(f"{name}={getattr(self, name)!r} is not allowed; give the name of a column")
        if not isinstance(self.standardize, bool):
            raise UsageError(f"standardize={self.standardize!r} is not allowed; use True or False")
        if not isinstance(self.labels, int) or self.labels < 0 or (self.labels == 0 and self.labels is not False):
            raise UsageError(f"labels={self.labels!r} is not allowed; use True, False or a whole number of at least 1")
        if self.labels is not False and self.label is None:
            raise UsageError("labels needs to know which column holds them; give label too")
        taken = [name for name in (self.label, self.target, self.group) if isinstance(name, str)]
        twice = [name for name in taken if taken.count(name) > 1 or name in (self.columns or ())]
        if twice:
            raise UsageError(f"column {twice[0]!r} is asked for twice; give each column one role")

    def given(self) -> dict[str, object]:
        """The options that are not left at their defaults."""
        found = {option.name: (getattr(self, option.name), option.default) for option in fields(self)}
        return {name: value for name, (value, default) in found.items() if value is not default}

    def refuse(self, what: str, *options: str) -> None:
        """Raise UsageError for options that need a table, and that this source of data does not have."""
        for name in options:
            if name in self.given():
                raise UsageError(
                    f"{what} has no named columns, so {name} cannot be chosen; give a table, or leave it out"
                )


def taken(table: Table, choice: Choice, what: str) -> Columns:
    """Return the columns of a batch: the numbers of a row, then target and group, with the labels apart.

    Args:
        table: the table; a column that is not chosen as label, target or group is a number of the row, unless ``columns`` names
            those.
        choice: the choice.
        what: name of the table in messages.

    Raises:
        InputError: a name that the table does not have, or a column that holds no numbers.
    """
    frame = table.frame
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    names = list(frame.columns)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{what}: two columns have the name {twice!r}; give each a name of its own")
    label = choice.label if isinstance(choice.label, str) else None
    apart = [name for name in (label, choice.target, choice.group) if name is not None]
    for name in (*(choice.columns or ()), *apart):
        if name not in names:
            raise UsageError(f"{what}: {unknown('column', name, names)}")
    kept = list(choice.columns or (name for name in names if name not in apart))
    if not kept or not frame.size:
        raise InputError(f"{what} holds no numbers; save at least 2 rows of them")
    columns = {"the table": _numbers(frame[kept], what)}
    groups: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    labels, classes = None, groups
    if choice.target is not None:
        columns["target"], targets = _target(frame[choice.target], f"{what}: column {choice.target!r}")
    if choice.group is not None:
        codes, groups = coded(frame[choice.group], f"{what}: column {choice.group!r}", CLASSES**2, dense=True)
        if (codes < 0).any():
            row = int(np.flatnonzero(codes < 0)[0])
            raise InputError(
                f"{what}: the group is missing in row {row}, counted from 0; drop those rows, or give them a group"
            )
        columns["group"] = codes
    if label is not None:
        labels, classes = coded(frame[label], f"{what}: column {label!r}")
    elif choice.label is not None:
        labels, classes = labels_of(choice.label, {}, len(frame), what)
    features = tuple(kept) if table.named else ()
    whole = ("group", "target") if targets else ("group",)
    return Columns(
        columns, features=features, labels=labels, classes=classes, groups=groups, targets=targets, whole=whole
    )


def coded(values: Any, what: str, most: int = CLASSES, *, dense: bool = False) -> tuple[Array, tuple[str, ...]]:
    """Return whole numbers from 0 for the values of a column, −1 where one is missing, and the names of the values, sorted.

    Whole numbers from −1 to ``most`` − 1 are kept; −1 is missing. With ``dense``, they are kept only if every number from 0 to
    the largest occurs; otherwise they are numbered anew, without gaps.

    Raises:
        InputError: more than ``most`` values.

    Example:
        >>> coded(np.array(["b", "a", "b"]), "kind")
        (array([1, 0, 1]), ('a', 'b'))
        >>> coded(np.array([2, 0, -1]), "kind")
        (array([ 2,  0, -1]), ('0', '1', '2'))
    """
    import pandas as pd

    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    series = pd.Series(values)
    if pd.api.types.is_integer_dtype(series.dtype) and not series.isna().any() and len(series):
        numbers = series.to_numpy(np.int64)
        known = np.unique(numbers[numbers >= 0])
        if numbers.min() >= -1 and 0 <= numbers.max() < most and (not dense or len(known) == numbers.max() + 1):
            return numbers, tuple(map(str, range(int(numbers.max()) + 1)))
    codes, found = pd.factorize(series, sort=True)
    if len(found) > most:
        raise InputError(f"{what} has {len(found)} different values, too many for classes; choose another column")
    if not len(found):
        raise InputError(f"{what} has no value; choose another column")
    return codes.astype(np.int64), tuple(map(str, found))


def _target(column: Any, what: str) -> tuple[Array, tuple[str, ...]]:
    """The values of a target; those of words as whole numbers, with the words."""
    from pandas.api import types

    if types.is_numeric_dtype(column.dtype) or types.is_datetime64_any_dtype(column.dtype):
        return _numbers(column.to_frame(), what.split(": column ")[0])[:, 0], ()
    codes, words = coded(column, what)
    if (codes < 0).any():
        row = int(np.flatnonzero(codes < 0)[0])
        raise InputError(f"{what}: the target is missing in row {row}, counted from 0; drop those rows")
    return codes, words


def _numbers(frame: Any, what: str) -> Array:
    """The values of a frame, whole numbers if all of them are."""
    from pandas.api import types

    for name, column in frame.items():
        if not types.is_numeric_dtype(column.dtype) or types.is_complex_dtype(column.dtype):
            raise InputError(
                f"{what}: column {str(name)!r} is not numeric; leave it out or code it as numbers: say which columns are data "
                "by columns, or give it another role, as the label, the target or the group"
            )
    values: Array = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    whole = all(types.is_integer_dtype(dtype) or types.is_bool_dtype(dtype) for dtype in frame.dtypes)
    return values.astype(np.int64) if whole and np.isfinite(values).all() else values


def labels_of(label: Any, columns: Mapping[str, Any], rows: int, what: str) -> tuple[Array, tuple[str, ...]]:
    """Return labels that are given beside arrays: their codes and names, one for each of ``rows``.

    Raises:
        InputError: they are no column of that length.
    """
    values = label
    if isinstance(label, str):
        if label not in columns:
            raise UsageError(f"{what}: {unknown('array', label, columns)}")
        values = columns[label]
    found = values if isinstance(values, Tensor) else np.asarray(values)
    if len(found.shape) != 1 or len(found) != rows:
        raise InputError(f"{what}: the labels have shape {tuple(found.shape)}, not ({rows},); give one for each row")
    return coded(found, f"{what}: the label")


def tensor_of(codes: Array | None) -> Tensor | None:
    """Labels as a tensor of whole numbers."""
    return None if codes is None else torch.from_numpy(np.array(codes, np.int64))
