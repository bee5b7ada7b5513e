"""New rows for programs that were fitted to other data: `rows_like` turns them into the arguments of these programs.

* `raw_of` gives all rows of a `Data`, in the units in which they were handed over.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.arguments import split
from pyro_vi.data.arrays import sequences_in, series_of
from pyro_vi.data.columns import survey
from pyro_vi.data.dataset import Batch, Data
from pyro_vi.data.files import FILES, Array, Table, read_file, table
from pyro_vi.data.loading import load
from pyro_vi.data.mapped import first
from pyro_vi.data.registered import DATASETS
from pyro_vi.data.sets.series import padded
from pyro_vi.data.spec import ColumnSpec
from pyro_vi.errors import InputError
from pyro_vi.support import shown


def rows_like(data: Data, new: object) -> Batch:
    """Return new rows as the programs that were fitted to ``data`` are called: all of them, standardised as the data were.

    Args:
        data: the data of the fit.
        new: an array or tensor, (rows, *event_shape); a tuple of the columns or a dictionary of keyword arguments; a DataFrame
            with the columns of the data, by name; a file, the name of a data set, or a `Data`. Numbers are in the units in
            which the data were handed over.

    Raises:
        InputError: other columns, shapes or values than the data have; the message says which.

    Example:
        >>> data = load(torch.arange(20.0).reshape(10, 2), standardize=True)
        >>> (rows,) = rows_like(data, np.array([[1.0, 2.0]]))
        >>> bool((rows == data.standardized(torch.tensor([[1.0, 2.0]]))).all())
        True
    """
    name = data.spec.name
    if not data.columns:
        raise InputError("the programs hold their data themselves, so that they take no new rows; leave x out")
    if data.numbered:
        raise InputError(
            "the guide has parameters for the rows that it was fitted to, and none for new ones; leave x out, or fit an "
            "amortized guide, such as diag_normal"
        )
    arguments = data.arguments
    if isinstance(new, (tuple, dict)):
        own, given = split(new)
        columns: list[Any] = list(given.values())
        if arguments is not None and len(own.values) == len(arguments.values):
            arguments = own.tensors(data.spec.dtype).to(dtype=data.spec.dtype)
        if not columns:
            raise InputError(f"{name}: there are no rows in {shown(new)}; give arrays with a row for each datum")
    else:
        columns = _columns(data, new)
    described = (None, *data.spec.others)
    wanted = len(data.columns)
    # Labels that are not given are not known.
    while len(columns) < wanted and len(columns) < len(described) and _may_lack(described[len(columns)]):
        columns.append(torch.full((len(columns[0]),), -1))
    if len(columns) != wanted:
        names = ", ".join(["x", *(one.name for one in data.spec.others)])
        raise InputError(
            f"{name}: the programs take {wanted} column{'s' * (wanted > 1)} ({names}), and {len(columns)} "
            f"{'is' if len(columns) == 1 else 'are'} given; give a tuple of {wanted}"
        )
    lengths = {len(column) for column in columns if column.ndim}
    if len(lengths) != 1:
        raise InputError(
            f"{name}: the columns have {', '.join(map(str, sorted(lengths)))} rows; give all of them the same"
        )
    if lengths == {0}:
        raise InputError(f"{name}: 0 rows cannot be scored; give at least one")
    made = [_first(data, columns[0], columns)]
    made += [_other(data, column, number) for number, column in enumerate(columns[1:], 1)]
    made = [column.to(data.columns[0].device) for column in made]
    return tuple(made) if arguments is None else arguments.fill(tuple(made))


def raw_of(data: Data) -> list[Tensor]:
    """Return the columns of all rows of a data set, training rows first, in the units in which they were handed over."""
    rows = data.spec.num_data
    stored = data.stored(0)
    train = [data._value(first(column, rows), number) for number, column in enumerate(stored)]
    parts = [train]
    if data.num_heldout:
        held = data.heldout if data.arguments is None else data.arguments.columns_of(data.heldout)
        parts.append([column.to(train[0].device) for column in held[: len(train)]])
    found = [torch.cat(columns) for columns in zip(*parts, strict=True)]
    found[0] = data.in_units(found[0])
    return found


def _may_lack(column: ColumnSpec | None) -> bool:
    return column is not None and column.name == "label" and column.support == "class"


def _columns(data: Data, new: Any) -> list[Any]:
    """The columns of what is no tuple: arrays or tensors with a row for each datum."""
    if isinstance(new, Data):
        return list(raw_of(new))
    if isinstance(new, (str, Path)):
        return _of_name(data, new)
    if type(new).__module__.split(".")[0] == "pandas" and hasattr(new, "to_numpy"):
        return _of_table(data, table(new)) if hasattr(new, "columns") else [new.to_numpy()]
    if isinstance(new, list):
        if "lengths" in [one.name for one in data.spec.others]:
            found = sequences_in(new) or [torch.as_tensor(one) for one in new]
            return _of_sequences(data, found)
        new = np.asarray(new)
    if isinstance(new, (Tensor, np.ndarray)):
        return [new]
    raise InputError(
        f"cannot take rows from a {type(new).__name__}; give an array, a tensor, a tuple of columns, a DataFrame, a file "
        "or Data"
    )


def _of_name(data: Data, new: str | Path) -> list[Any]:
    path = Path(os.path.expanduser(new))
    if isinstance(new, str) and (new.split("(")[0].strip() in DATASETS or path.suffix.lower() not in FILES):
        return list(raw_of(load(new, seed=data.seed, dtype=data.spec.dtype)))  # a name, or a file with options
    found = read_file(path)
    if isinstance(found, Table):
        return _of_table(data, found)
    arrays = dict(series_of(found.train) or found.train)
    label = data.roles.get("label")
    given = [array for name, array in arrays.items() if name.strip("'") != label]
    return [np.concatenate([given[0], found.test])] if found.test is not None else given


def _of_sequences(data: Data, sequences: Sequence[Tensor]) -> list[Any]:
    x, lengths = padded(list(sequences))
    steps = data.spec.event_shape[0]
    if x.shape[1] > steps:
        raise InputError(
            f"{data.spec.name}: a sequence has {x.shape[1]} steps, and those of the run at most {steps}; cut it"
        )
    more = x.new_zeros((len(x), steps - x.shape[1], *x.shape[2:]))
    return [torch.cat([x, more], 1), lengths]


def _of_table(data: Data, given: Table) -> list[Any]:
    """The columns of a table by the names that those of the run have: numbers, then target, group and labels."""
    spec, roles = data.spec, data.roles
    frame = given.frame.set_axis([str(name) for name in given.frame.columns], axis=1)
    apart = [roles[role] for role in ("target", "group", "label") if role in roles]
    kept = list(spec.features) or [name for name in frame.columns if name not in apart]
    others = [(one, roles[one.name]) for one in spec.others if one.name in roles]
    needed = [*kept, *(name for one, name in others if not _may_lack(one))]
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        listed = ", ".join(f"'{name}'" for name in missing[:5]) + ", …" * (len(missing) > 5)
        raise InputError(
            f"{spec.name}: the new table has no column {listed}; give the columns of the run: {', '.join(needed[:12])}"
        )
    try:
        found: list[Any] = [frame[kept].to_numpy(dtype=np.float64, na_value=np.nan)]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{spec.name}: a column of the new table is not numeric; give numbers, as in the run"
        ) from error
    for one, name in others:
        found.append(_coded(frame[name], one, f"{spec.name}: column '{name}'") if name in frame.columns else None)
    return [np.full(len(frame), -1) if column is None else column for column in found]


def _coded(column: Any, described: ColumnSpec, what: str) -> Array:
    """The values of a column, words as the whole numbers that they have in the run."""
    values: Array = column.to_numpy()
    if not described.classes:
        return values
    codes = {name: number for number, name in enumerate(described.classes)}
    found = [codes.get(str(int(v)) if isinstance(v, (float, np.floating)) and v == v // 1 else str(v)) for v in values]
    missing = [str(value) for value, code in zip(values, found, strict=True) if code is None]
    if missing and described.support == "class":  # a label that is not known
        return np.array([-1 if code is None else code for code in found])
    if missing:
        raise InputError(f"{what} holds {missing[0]!r}, which the data of the run do not have; leave those rows out")
    return np.array(found)


def _first(data: Data, column: Any, columns: Sequence[Any]) -> Tensor:
    """The first column, standardised and checked."""
    spec = data.spec
    if column.ndim and tuple(column.shape[1:]) != spec.event_shape:
        wanted = ", ".join(map(str, ("rows", *spec.event_shape)))
        rows = " (a single row has a first dimension of 1)" if tuple(column.shape) == spec.event_shape else ""
        raise InputError(
            f"{spec.name}: new rows have shape {tuple(column.shape)}, not ({wanted}){rows}; give rows like those of the run"
        )
    whole = data.integers and data.levels is None and not data.columns[0].dtype.is_floating_point
    values, _ = survey(column, spec.dtype, spec.name, integers=whole)
    found = first(values, len(values))
    if data.standard is not None:
        found = data.standardized(found)
        position = next((i for i, one in enumerate(spec.others, 1) if one.name == "lengths"), None)
        if position is not None:  # padded steps are 0
            lengths = torch.as_tensor(np.asarray(columns[position]))
            inside = torch.arange(found.shape[1]) < lengths.unsqueeze(1)
            found = found * inside.reshape(*inside.shape, *(1,) * (found.dim() - 2)).to(found)
    spec.check(found)
    return found


def _other(data: Data, column: Any, number: int) -> Tensor:
    """A further column, as those of the run are stored."""
    described = data.spec.others[number - 1] if number <= len(data.spec.others) else None
    what = f"{data.spec.name}: {described.name if described is not None else f'column {number + 1}'}"
    own = data.columns[number]
    if not column.ndim or tuple(column.shape[1:]) != tuple(own.shape[1:]):
        wanted = ", ".join(map(str, ("rows", *own.shape[1:])))
        raise InputError(
            f"{what}: new rows have shape {tuple(column.shape)}, not ({wanted}); give rows like those of the run"
        )
    found, _ = survey(column, data.spec.dtype, what, integers=True)
    values = first(found, len(found))
    if not own.dtype.is_floating_point:
        if values.is_floating_point() and bool((values != values.floor()).any()):
            raise InputError(f"{what}: the run has whole numbers there; give whole numbers")
        if described is not None and described.classes and int(values.max()) >= len(described.classes):
            raise InputError(
                f"{what}: {int(values.max())} is none of the {len(described.classes)} values of the run, from 0; give those"
            )
        values = values.to(own.dtype)
    elif not data.integers or values.is_floating_point():
        values = values.to(own.dtype)
    return data._value(values, number)
