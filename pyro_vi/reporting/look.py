"""The look that all plots share: settings, colours and markers, titles and legends.

* `LOOK` are the settings within which figures are made; `looks` gives each estimator its colour and marker; `heading` and
  `legend` title a figure and explain it.

Figures are made without pyplot: nothing global is changed, and no window opens.
"""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from pyro_vi.comparison import Comparison

LOOK: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
"""Settings within which figures are made, whatever the caller's are."""

# Okabe and Ito's palette, told apart with any colour vision; the markers say it once more.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Look:
    """An estimator's colour and marker, the same in every picture, and the width of its lines."""

    colour: str
    marker: str
    width: float


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each estimator, by its place among the names.

    Example:
        >>> looks(["trace", "mean_field"])["trace"].colour
        '#0072B2'
    """
    listed = list(names)
    # Later lines are thinner and drawn over the others: of two that coincide, both are seen.
    widths = np.linspace(2.6, 1.0, len(listed)) if len(listed) > 1 else [1.6]
    return {
        name: Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], float(widths[i]))
        for i, name in enumerate(listed)
    }


def heading(figure: Figure, comparison: Comparison, what: str) -> None:
    """Title a figure: what it shows, and of which model, guide and data."""
    of = f"model {comparison.model}, guide {comparison.guide}, data {comparison.data.spec.name}"
    width = int(13 * figure.get_figwidth())
    text = "\n".join([*textwrap.wrap(what, width), *textwrap.wrap(of, width)])
    # Names are people's own: a dollar sign in one is no mathematics.
    figure.suptitle(text, fontsize=10, parse_math=False)


def legend(figure: Figure, entries: Mapping[str, Artist] | None = None) -> None:
    """One legend below the panels, as wide as the figure allows: by default of what the panels name."""
    if entries is None:
        found = [panel.get_legend_handles_labels() for panel in figure.axes]
        entries = {text: handle for handles, texts in found for handle, text in zip(handles, texts, strict=True)}
    if entries:
        columns = int(13 * figure.get_figwidth() / (max(map(len, entries)) + 8))
        columns = max(1, min(columns, len(entries)))
        box = figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
        for text in box.get_texts():
            text.set_parse_math(False)
