"""The printing of all commands: a table, the console, one JSON document, and lines on stderr."""

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from pyro_vi.support import finite


def table_of(title: str, *columns: str) -> Table:
    """Return an empty table with a title and columns."""
    shown = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="right" if i and column != "what it is" else "left")
    return shown


def console() -> Console:
    """Return the console of stdout."""
    # A file or a pipe has no width of its own; the tables need about 100.
    return Console(width=None if sys.stdout.isatty() else 110, highlight=False)


def print_parts(parts: Iterable[Any]) -> None:
    """Print tables and lines of text."""
    shown = console()
    for part in parts:
        shown.print(part, markup=False, soft_wrap=isinstance(part, str))


def say(remarks: Iterable[str]) -> None:
    """Print lines on stderr."""
    for remark in remarks:
        print(remark, file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a value as one JSON document, with null for numbers that are not finite."""
    print(json.dumps(finite(value), indent=2, allow_nan=False, default=str))
