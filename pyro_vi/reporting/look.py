"""The style of all figures: settings, colours and markers, titles and legends.

* `LOOK` holds the settings for every figure; `looks` gives each estimator its colour and marker; `heading` and `legend` add
  the title and the legend of a figure.

Figures are made without pyplot: no global state changes, and no window opens.
"""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from pyro_vi.comparing import Comparison

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
"""Matplotlib settings for every figure, independent of the caller's."""

# Okabe and Ito's palette, which is readable with any colour vision; the markers repeat the distinction.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Look:
    """Colour, marker and line width of an estimator, the same in every figure."""

    colour: str
    marker: str
    width: float


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return the look of each estimator, which depends on its position among the names.

    Example:
        >>> looks(["trace", "mean_field"])["trace"].colour
        '#0072B2'
    """
    listed = list(names)
    # Later lines are thinner and drawn over earlier ones, so that two coinciding lines are both visible.
    widths = np.linspace(2.6, 1.0, len(listed)) if len(listed) > 1 else [1.6]
    return {
        # Of more than eight, those of one colour have different markers.
        name: Look(_COLOURS[i % 8], _MARKERS[(i + i // 8) % 8], float(widths[i]))
        for i, name in enumerate(listed)
    }


def heading(
    figure: Figure, comparison: Comparison, what: str, drawn: Iterable[str] | None = None, *, all_seeds: bool = False
) -> None:
    """Title a figure with what it shows, and with the model, the guide (or the estimator, of several guides) and the data.

    Args:
        figure: the figure.
        comparison: the comparison that it shows.
        what: what it shows.
        drawn: the fits that it shows, if these may not be all.
        all_seeds: it shows the fits under all seeds, and not under the first alone.
    """
    absent = [name for name in comparison.results if drawn is not None and name not in drawn]
    if absent:
        what += f" (not applicable to {', '.join(absent)})"
    one = f"guide {comparison.guide}" if comparison.across == "estimators" else f"estimator {comparison.estimator}"
    of = f"model {comparison.model}, {one}, data {comparison.data.spec.name}"
    if comparison.repeats:
        of += f", seeds {comparison.seed} to {comparison.seeds[-1]}" if all_seeds else f", seed {comparison.seed}"
    width = int(13 * figure.get_figwidth())
    text = "\n".join([*textwrap.wrap(what, width), *textwrap.wrap(of, width)])
    # Names come from users: a dollar sign in one must not start mathematics.
    figure.suptitle(text, fontsize=10, parse_math=False)


def legend(figure: Figure, entries: Mapping[str, Artist] | None = None) -> None:
    """Add one legend below the panels, as wide as the figure allows; by default for everything labelled in the panels."""
    if entries is None:
        found = [panel.get_legend_handles_labels() for panel in figure.axes]
        entries = {text: handle for handles, texts in found for handle, text in zip(handles, texts, strict=True)}
    if entries:
        columns = int(13 * figure.get_figwidth() / (max(map(len, entries)) + 8))
        columns = max(1, min(columns, len(entries)))
        box = figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
        for text in box.get_texts():
            text.set_parse_math(False)
