"""Tables of the page from datasets: each number with its error beside it.

* `by_dimension` makes a table of the variables along one dimension, `of_numbers` one of those without dimensions.
* `plain` makes all tables of any dataset.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from pyro_vi.reporting.page.glossary import term_of, title_of
from pyro_vi.reporting.page.parts import Cell, Column, Shown, Table, number
from pyro_vi.reporting.page.subject import Subject

MOST = 40
"""Most rows of a table."""
WORST = 12
"""Most data that are shown one by one, the worst first."""

Found = Mapping[str, xr.Dataset]
"""Datasets of a diagnostic by name of their rows."""


def by_dimension(
    found: xr.Dataset,
    dimension: str,
    caption: str,
    *,
    order: Sequence[int] | None = None,
    labels: Sequence[Any] | None = None,
    most: int = MOST,
    columns: Sequence[str] = (),
) -> Table | None:
    """Return a table with a row for each entry of a dimension, or None if no variable with a number has it alone.

    A variable ``x_se`` is the error of ``x`` and has no column of its own.

    Args:
        found: the dataset.
        dimension: its dimension.
        caption: what the table shows.
        order: places along the dimension, in the order of the rows; by default all, as they are.
        labels: names of the places; by default the coordinate, or the numbers from 0.
        most: most rows.
        columns: variables to show; by default all.
    """
    names = [
        str(name)
        for name, values in found.data_vars.items()
        if values.dims == (dimension,) and not _is_error(str(name), found) and (not columns or name in columns)
        if not (values.dtype.kind == "f" and bool(np.isnan(values).all()))
    ]
    if not names:
        return None
    names = [name for name in columns if name in names] or names
    length = found.sizes[dimension]
    if labels is None:
        labels = found[dimension].values.tolist() if dimension in found.coords else range(length)
    places = list(range(length)) if order is None else [int(place) for place in order]
    shown = places[:most]
    if len(places) > most:
        caption = f"{caption} (the first {most} of {len(places)})"
    rows = []
    for place in shown:
        cells = [_label(labels[place])]
        for name in names:
            values, errors = found[name].values[place], math.nan
            if f"{name}_se" in found and found[f"{name}_se"].dims == (dimension,):
                errors = float(found[f"{name}_se"].values[place])
            cells.append(_cell(values, errors))
        rows.append(tuple(cells))
    first = "row" if dimension == "datum" else dimension.replace("_", " ")
    heads = [Column(first, term_of(first) if first == "row" else "", first == "row")]
    heads += [Column(title_of(name), term_of(name), found[name].dtype.kind in "fiu") for name in names]
    return Table(caption, tuple(heads), tuple(rows))


def of_numbers(rows: Mapping[str, tuple[str, float, float]], caption: str, *, unit: str = "nats per datum") -> Table:
    """Return a table of single numbers: name in the glossary, (label, number, error)."""
    columns = (Column("number", numeric=False), Column(unit))
    cells = tuple((Cell(label), number(value, error)) for label, value, error in rows.values())
    return Table(caption, columns, cells, tuple(term_of(name) for name in rows))


def scalars(found: xr.Dataset) -> dict[str, tuple[str, float, float]]:
    """Return the variables without dimensions as rows of `of_numbers`."""
    rows = {}
    for name, values in found.data_vars.items():
        if values.dims or values.dtype.kind not in "fiub" or _is_error(str(name), found):
            continue
        error = found.get(f"{name}_se")
        rows[str(name)] = title_of(str(name)), float(values), math.nan if error is None or error.dims else float(error)
    return rows


def _is_error(name: str, found: xr.Dataset) -> bool:
    return name.endswith("_se") and name[:-3] in found


def _label(value: Any) -> Cell:
    numeric = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return Cell(str(value), float(value)) if numeric else Cell(str(value))


def _cell(value: Any, error: float) -> Cell:
    if isinstance(value, (bool, np.bool_)):
        return Cell("yes" if value else "no", float(value))
    if isinstance(value, (int, float, np.integer, np.floating)):
        return number(float(value), error)
    return Cell(str(value))


@dataclass
class Shows:
    """Tables and pictures of a section, as they are made."""

    tables: list[Table] = field(default_factory=list)
    pictures: list[Shown] = field(default_factory=list)

    def add(self, table: Table | None) -> None:
        """Take a table, unless it is empty."""
        if table is not None and table.rows:
            self.tables.append(table)

    def both(self) -> tuple[list[Table], list[Shown]]:
        """Return all of them."""
        return self.tables, self.pictures


def plain(found: Found, subject: Subject) -> tuple[list[Table], list[Shown]]:
    """The tables of any dataset: its single numbers, and its variables along each dimension."""
    shows = Shows()
    for rows, one in found.items():
        of = f" of the {rows} rows" if rows else ""
        numbers = scalars(one)
        shows.add(of_numbers(numbers, f"Numbers{of}", unit="value") if numbers else None)
        for dimension in map(str, one.dims):
            if dimension in ("simulation", "chain", "draw", "sample"):
                continue
            labels, order = None, None
            if dimension == "datum":
                order = _worst_first(one)
                places = one["datum"].values if "datum" in one.coords else np.arange(one.sizes["datum"])
                labels = subject.numbers_of(rows, places)
            caption = f"By {'row' if dimension == 'datum' else dimension.replace('_', ' ')}{of}"
            most = WORST if dimension == "datum" else 60
            shows.add(by_dimension(one, dimension, caption, order=order, labels=labels, most=most))
    return shows.both()


def _worst_first(found: xr.Dataset) -> list[int] | None:
    """Places of the data from the worst on; None if no variable says which these are."""
    name = next((name for name in ("gap", "khat") if name in found and found[name].dims == ("datum",)), None)
    if name is None:
        return None
    return np.argsort(-np.nan_to_num(found[name].values.astype(float), nan=-np.inf), kind="stable").tolist()
