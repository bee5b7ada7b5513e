"""What a report page consists of, as plain values that the templates write out.

* `Section`: a heading with a verdict, sentences, tables and pictures; `Page`: all of them, with the judgement on top.
* `Table`, with `Column` and `Cell`; `Shown`, a picture; `Command`, lines to type.
"""

import math
from dataclasses import dataclass
from typing import Literal

from pyro_vi.reporting.cells import figure

Verdict = Literal["pass", "care", "fail", "none"]
"""What a diagnostic says: nothing is wrong; something asks for care; it is wrong; or nothing can be said."""


@dataclass(frozen=True)
class Cell:
    """What a table shows in one place.

    Attributes:
        text: as it is shown.
        order: the number by which the table sorts; None for text.
    """

    text: str
    order: float | None = None


def number(value: float, error: float = math.nan) -> Cell:
    """Return a cell with a number and its error, if it has one.

    Example:
        >>> number(-1.23456, 0.0123).text, number(3).text, number(math.nan).text
        ('-1.235 ± 0.012', '3', 'none')
    """
    if math.isnan(value):
        return Cell("none")
    if math.isinf(value):
        return Cell("∞" if value > 0 else "−∞", math.copysign(1e308, value))
    if math.isfinite(error) and error > 0:
        small = 0 < error < 1e-5  # beyond the digits of `figure`
        return Cell(f"{value:.6g} ± {error:.1g}" if small else figure(value, error), value)
    return Cell(f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}", value)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        term: name of its entry in the glossary; empty if it has none.
        numeric: its cells are numbers, and are set to the right.
    """

    title: str
    term: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table that a reader can sort by each column.

    Attributes:
        caption: what it shows, in a sentence.
        columns: its columns; the first one names the rows.
        rows: a cell for each column.
        terms: for each row the name of its entry in the glossary; empty, or as many as there are rows.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    terms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """A picture.

    Attributes:
        caption: its title, and how to read it.
        alt: what it shows, for those who do not see it.
        uri: the picture itself, as a data URI.
        width: its width in CSS pixels.
        height: its height in CSS pixels.
    """

    caption: str
    alt: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Command:
    """Something to type or to look at, in fixed width, with a label."""

    label: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: its name in links.
        title: its heading.
        verdict: what it says about the posterior; None if it describes, and judges nothing.
        sentences: what was found, in plain sentences.
        tables: its tables.
        pictures: its pictures.
        commands: what to type.
        notes: on what the numbers rest: rows, draws, seconds.
        absent: the reason why there are no numbers; empty if there are.
    """

    anchor: str
    title: str
    verdict: Verdict | None = None
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Shown, ...] = ()
    commands: tuple[Command, ...] = ()
    notes: tuple[str, ...] = ()
    absent: str = ""


@dataclass(frozen=True)
class Reason:
    """Why the whole is judged as it is: the section, what it means for the use of the posterior, and what to do."""

    anchor: str
    title: str
    level: Verdict
    sentence: str
    means: str
    do: str


@dataclass(frozen=True)
class Judgement:
    """One verdict on the posterior.

    Attributes:
        level: the verdict.
        headline: it in a sentence.
        reasons: why, the gravest first.
        notes: what was found that does not change it.
        do: what to do next, in order.
    """

    level: Verdict
    headline: str
    reasons: tuple[Reason, ...] = ()
    notes: tuple[Reason, ...] = ()
    do: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """All that a page shows.

    Attributes:
        title: of what it is.
        about: a line below it: data, rows, date of the versions.
        judgement: the verdict.
        sections: the parts, in reading order.
        made: how the page was made, for its foot.
    """

    title: str
    about: str
    judgement: Judgement
    sections: tuple[Section, ...] = ()
    made: str = ""
