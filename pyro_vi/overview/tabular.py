"""Tables for a terminal, 80 columns wide or more, of names and of rows of any kind.

* `table` makes one, in which `folded` makes one row of many that differ by a number; `name_tables` shows all names.
* `text_of` prints such tables into a text.
"""

import io
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pyro_vi.errors import plain

ALIKE = 4
"""Fewest rows with numbered names that are shown as one row."""
LONG = 24
"""Longest name that is never broken."""

Row = tuple[str, ...]


def name_tables(names: Mapping[str, Mapping[str, str]]) -> Iterator[RenderableType]:
    """Yield a table of each kind of names."""
    for what, entries in names.items():
        yield table(what, ("name", "what it is"), list(entries.items()))
    yield Text(
        "pyro-vi list NAME shows the options of a name and what it goes with; --pairs tries each model with each guide."
    )


def text_of(parts: Iterable[RenderableType]) -> str:
    """Print parts into a text as wide as the terminal."""
    file = io.StringIO()
    console = Console(file=file, width=shutil.get_terminal_size((110, 24)).columns, highlight=False)
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))
    return file.getvalue().rstrip("\n")


def table(title: str, columns: Iterable[str], rows: Iterable[Row], right: tuple[int, ...] = ()) -> Table:
    """Return a table with a title; ``right`` are the numbers of the columns whose cells are aligned at the right."""
    shown = Table(title=title, title_justify="left", caption_justify="left")
    shorter = folded(rows)
    for i, column in enumerate(columns):
        # Names stay whole; columns of sentences take the rest of the width.
        whole = all(" " not in row[i] and len(row[i]) <= LONG for row in shorter)
        shown.add_column(column, justify="right" if i in right else "left", overflow="fold", no_wrap=whole)
    for row in shorter:
        # As texts, because rich reads what is in brackets as markup.
        shown.add_row(*(Text("\n".join(map(plain, cell.split("\n")))) for cell in row))
    return shown


def folded(rows: Iterable[Row]) -> list[Row]:
    """Make one row of several that differ by the numbers in their names alone: the sites ``z_0``, ``z_1``, …"""
    rows = list(rows)
    keys = [(_unnumbered(row[0]), *map(_quoted, row[1:])) for row in rows]
    groups: dict[Row, list[Row]] = {}
    for key, row in zip(keys, rows, strict=True):
        groups.setdefault(key, []).append(row)
    shown: list[Row] = []
    for key, row in zip(keys, rows, strict=True):
        group = groups[key]
        if len(group) < ALIKE:
            shown.append(row)
        elif row is group[0]:
            shown.append((f"{row[0]} … {group[-1][0]} ({len(group)})", *row[1:]))
    return shown


def _unnumbered(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _quoted(cell: str) -> str:
    """A cell without the numbers in the names that it quotes."""
    return re.sub(r"'[^']*'", lambda found: _unnumbered(found[0]), cell)
