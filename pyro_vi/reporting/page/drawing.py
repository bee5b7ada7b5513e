"""Pictures of the page: figures as data URIs, and those that the page has of its own.

* `shown` turns a figure of matplotlib into a picture of the page: SVG, or PNG where that is smaller.
* `khat_by_datum`, `gap_bar`, `worst_images` and `rates` draw.
"""

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pyro_vi.comparing import Comparison
from pyro_vi.diagnostics import UNRELIABLE
from pyro_vi.reporting.look import LOOK
from pyro_vi.reporting.mosaics import draw_images
from pyro_vi.reporting.page.parts import Shown

LARGEST = 150_000
"""Most bytes of a picture as SVG; beyond them it is written as PNG."""

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.45"

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")


def shown(figure: Figure, caption: str, alt: str) -> Shown:
    """Return a figure as a picture of the page, on white ground, so that it can be read on light and on dark pages.

    Raises:
        Exception: whatever matplotlib raises where the figure cannot be drawn.
    """
    # A date or a random name in the file would make two pages of one fit differ.
    with matplotlib.rc_context({"svg.hashsalt": "pyro_vi"}):
        file = io.BytesIO()
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
        kind, content = "svg+xml", file.getvalue()
        if len(content) > LARGEST:
            file = io.BytesIO()
            figure.savefig(file, format="png", facecolor="white", dpi=110)
            kind, content = "png", file.getvalue()
    width, height = (round(96 * side) for side in figure.get_size_inches())
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Shown(caption, alt, uri, width, height)


@matplotlib.rc_context(LOOK)
def khat_by_datum(khat: np.ndarray, error: np.ndarray | None = None) -> Figure:
    """k-hat of each datum in falling order, with its error and the lines at 0.5 and 0.7."""
    known = np.flatnonzero(np.isfinite(khat))
    order = known[np.argsort(-khat[known])]
    values, places = khat[order], np.arange(len(order))
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    axes = figure.subplots()
    above = values > UNRELIABLE
    if error is not None:
        axes.vlines(places, values - error[order], values + error[order], color="0.8", linewidth=0.8, zorder=1)
    axes.scatter(places[~above], values[~above], s=9, color=BLUE, zorder=2, label=f"up to {UNRELIABLE}")
    axes.scatter(places[above], values[above], s=14, color=ORANGE, marker="^", zorder=2, label=f"above {UNRELIABLE}")
    for level, line in ((0.5, ":"), (UNRELIABLE, "--")):
        axes.axhline(level, color=GREY, linestyle=line, linewidth=1)
    axes.set(xlabel="data, in falling order of k-hat", ylabel="k-hat")
    if len(values):
        low, high = float(values.min()), float(values.max())
        axes.set_ylim(min(-0.1, low - 0.1), min(max(1.0, high + 0.1), 5.0))
    axes.legend(loc="upper right")
    return figure


@matplotlib.rc_context(LOOK)
def gap_bar(parts: Mapping[str, Mapping[str, tuple[float, float]]]) -> Figure:
    """The parts of the gap as stacked bars: a bar for each kind of data, with an error on the end of each part.

    Args:
        parts: by name of the data, the (value, standard error) of each part by its name.
    """
    figure = Figure(figsize=(6.4, 1.1 + 0.6 * len(parts)), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(part for bar in parts.values() for part in bar))
    for place, bar in enumerate(parts.values()):
        left = 0.0
        for part, (value, error) in bar.items():
            label = part if place == 0 else None
            colour = _COLOURS[names.index(part) % len(_COLOURS)]
            axes.barh(place, value, left=left, color=colour, height=0.55, label=label)
            left += value
            if np.isfinite(error):
                axes.errorbar(left, place, xerr=error, color="0.15", capsize=3, linewidth=1)
    axes.set_yticks(range(len(parts)), list(parts), parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel("nats per datum")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@matplotlib.rc_context(LOOK)
def worst_images(values: np.ndarray, labels: Sequence[str], comparison: Comparison) -> Figure:
    """Images of data side by side, each with its label."""
    columns = min(6, len(values))
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(6.4, 1.45 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, image, label in zip(panels, values, labels, strict=False):
        draw_images(axes, image.reshape(1, -1), (1, 1), comparison)
        axes.set_title(label, fontsize=8, parse_math=False)
    return figure


@matplotlib.rc_context(LOOK)
def rates(history: Sequence[Mapping[str, float]]) -> Figure | None:
    """Learning rate and gradient norm against the step; None if the records have neither."""
    panels = {"lr": "learning rate", "grad_norm": "gradient norm", "beta": "weight of the KL"}
    columns = {
        title: [(record["step"], record[name]) for record in history if _usable(record.get(name))]
        for name, title in panels.items()
    }
    constant = {
        title for title, pairs in columns.items() if title == "weight of the KL" and len({v for _, v in pairs}) < 2
    }
    kept = {title: pairs for title, pairs in columns.items() if len(pairs) > 1 and title not in constant}
    if not kept:
        return None
    figure = Figure(figsize=(3.2 * len(kept), 2.4), layout="constrained")
    for axes, (title, pairs) in zip(figure.subplots(1, len(kept), squeeze=False)[0], kept.items(), strict=True):
        steps, numbers = zip(*pairs, strict=True)
        axes.plot(steps, numbers, color=BLUE, linewidth=1.2)
        axes.set(title=title, xlabel="step")
        if title == "gradient norm" and min(numbers) > 0:
            axes.set_yscale("log")
    return figure


def _usable(value: object) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))
