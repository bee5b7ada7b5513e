"""The gap between log p(x) and the ELBO: a figure of its parts, and a table.

* `plot_gaps` and `gap_table` take the results of `pyro_vi.gaps` by the name of the data, such as training and held-out.
"""

import math
from collections.abc import Mapping

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.table import Table

from pyro_vi.reporting.look import LOOK, legend

_AMORTIZATION, _APPROXIMATION, _OTHER, _WHOLE = "#D55E00", "#0072B2", "#56B4E9", "#999999"
WORDS = {
    "diag_normal": "diagonal normal",
    "block_normal": "normal in blocks",
    "low_rank_normal": "low-rank normal",
    "full_normal": "full normal",
    "flow": "flow",
}
"""Families in the words of figures."""


@matplotlib.rc_context(LOOK)
def plot_gaps(datasets: Mapping[str, xr.Dataset]) -> Figure:
    """Bars of the mean gap log p(x) − ELBO, split into amortization and approximation, for each set of data.

    The first bar of a set is the guide's own: what its family cannot reach, and on top what the encoder (or, of a whole data
    set, the fit) loses. The bars below it are what other families could not reach either. Whiskers are one standard error of
    the mean over data, of the gap and of its approximation part.

    Args:
        datasets: results of `pyro_vi.gaps`, by the name of the data.

    Returns:
        The figure; its height grows with the number of bars.
    """
    bars = [(name, found, family) for name, found in datasets.items() for family in _families(found)]
    figure = Figure(figsize=(7.5, 1.3 + 0.38 * len(bars) + 0.2 * len(datasets)), layout="constrained")
    axes = figure.subplots()
    places, labels, ends, place = [], [], [0.0], 0.0
    last = ""
    for name, found, family in bars:
        place += 0.5 if name != last and last else 0.0
        own = family in (found.attrs["own"], "")
        where = f"{name}: " if name != last else ""
        last = name
        approximation, error = _mean(found, "approximation", family) if family else (0.0, np.nan)
        gap, gap_error = _mean(found, "gap")
        shown = max(approximation, 0.0)
        if family:
            colour = _APPROXIMATION if own else _OTHER
            axes.barh(place, shown, height=0.7, color=colour)
            axes.errorbar(shown, place, xerr=error, color="black", capsize=3, linewidth=1)
        end = shown + error if error == error else shown
        text = _cell(approximation, error)
        if own:
            rest = gap - approximation if family else gap
            colour = _AMORTIZATION if family else _WHOLE
            axes.barh(place, max(rest, 0.0), left=shown, height=0.7, color=colour)
            axes.errorbar(shown + max(rest, 0.0), place, xerr=gap_error, color="black", capsize=3, linewidth=1)
            end = shown + max(rest, 0.0) + (gap_error if gap_error == gap_error else 0)
            text = _cell(gap, gap_error)
        axes.annotate(text, (end, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
        label = f"the guide ({WORDS[family]})" if own and family else "the guide" if own else f"best {WORDS[family]}"
        places.append(place)
        ends.append(end)
        labels.append(where + label)
        place += 0.85
    axes.set_yticks(places, labels, parse_math=False)
    axes.invert_yaxis()
    whole = all(found.attrs["per"] == "data set" for found in datasets.values())
    axes.set_xlabel("log p(x) − ELBO, in nats" + ("" if whole else " per datum"))
    axes.set_xlim(0, 1.5 * max(*ends, 1e-6))  # the numbers stand right of the bars
    split = any(found.attrs["own"] for found in datasets.values())
    kinds = {
        "amortization": (_AMORTIZATION, split),
        "approximation of the guide's family": (_APPROXIMATION, split),
        "approximation of another family": (_OTHER, any(f not in (found.attrs["own"], "") for _, found, f in bars)),
        "gap that is not split": (_WHOLE, any(not found.attrs["own"] for found in datasets.values())),
    }
    legend(figure, {text: Patch(color=colour) for text, (colour, drawn) in kinds.items() if drawn})
    return figure


def gap_table(datasets: Mapping[str, xr.Dataset], title: str) -> Table:
    """A table of the mean gap and its parts in nats, a column for each set of data."""
    table = Table(title=title, title_justify="left")
    table.add_column("number")
    for name, found in datasets.items():
        table.add_column(f"{name}, {found.attrs['rows']} rows", justify="right")
    lines = {"log p(x)": "log_evidence", "ELBO": "elbo", "gap": "gap", "amortization": "amortization"}
    for head, key in lines.items():
        table.add_row(head, *(_cell(*_mean(found, key)) for found in datasets.values()))
    own = {found.attrs["own"] for found in datasets.values()}
    for family in dict.fromkeys(str(f) for found in datasets.values() for f in found.family.values):
        head = f"approximation, {WORDS[family]}" + (" (the guide's)" if family in own else "")
        cells = (
            _cell(*_mean(found, "approximation", family)) if family in found.family.values else "-"
            for found in datasets.values()
        )
        table.add_row(head, *cells)
    return table


def _families(found: xr.Dataset) -> list[str]:
    """The guide's own family first; "" where it is not known."""
    own = str(found.attrs["own"])
    return [own, *(str(f) for f in found.family.values if f != own)]


def _mean(found: xr.Dataset, name: str, family: str = "") -> tuple[float, float]:
    pair = found[f"mean_{name}"], found[f"mean_{name}_se"]
    mean, error = (float(part.sel(family=family)) if family else float(part) for part in pair)
    return mean, error


def _cell(mean: float, error: float) -> str:
    """A mean and its error, with as many decimals as the first two digits of the error."""
    if mean != mean:
        return "-"
    if abs(mean) < 1e-6 and error < 1e-6:
        return "0"
    if not error > 1e-9 * abs(mean):
        return f"{mean:.4f}"
    decimals = min(6, max(0, 1 - math.floor(math.log10(error))))
    return f"{mean:.{decimals}f} ± {error:.{decimals}f}"
