"""What a notebook shows: a title, a table and lines of text, and small pictures. All text is escaped."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

MOST, LARGEST, WIDTH = 8, 400_000, 160
"""Most pictures of a folder, most bytes of one of them, and the width of one on the page in pixels."""


def html_block(
    title: str,
    table: Sequence[Sequence[str]] = (),
    lines: Iterable[str] = (),
    pictures: Iterable[bytes] = (),
    width: int = WIDTH,
) -> str:
    """Return a block of HTML; the first row of the table holds the names of its columns.

    Example:
        >>> html_block("a < b", [["x"], ["1"]])
        '<div><b>a &lt; b</b><table><tr><th>x</th></tr><tr><td>1</td></tr></table></div>'
    """
    rows = []
    for number, row in enumerate(table):
        cell = "td" if number else "th"
        rows.append(f"<tr>{''.join(f'<{cell}>{escape(str(text))}</{cell}>' for text in row)}</tr>")
    text = "\n".join(escape(line.strip()) for line in lines)
    parts = [f"<b>{escape(title)}</b>", f"<table>{''.join(rows)}</table>" if rows else ""]
    parts += [f"<pre>{text}</pre>"] if text else []
    parts += [
        f'<img width="{width}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        for picture in pictures
    ]
    return f"<div>{''.join(parts)}</div>"


def pictures_in(folder: Path | None) -> list[bytes]:
    """Return the PNG files in a folder, at most `MOST` of them that are not too large; none if there is no folder."""
    if folder is None or not folder.is_dir():
        return []
    small = [path for path in sorted(folder.glob("*.png")) if path.is_file() and path.stat().st_size <= LARGEST]
    return [path.read_bytes() for path in small[:MOST]]
