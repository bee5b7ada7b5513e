"""The figure of differences between fits: how far each one is behind the best, with intervals."""

import math
from collections.abc import Callable, Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import special

from pyro_vi.comparing import Comparison, Difference, Result, Standing, spread_of, standings
from pyro_vi.errors import InputError
from pyro_vi.reporting.look import LOOK, Look, heading, legend, looks

TITLES = {
    "elbo": "ELBO, behind the best",
    "evidence": "evidence, behind the best",
    "gap": "gap, above the smallest",
    "lpd": "log predictive density,\nbehind the best",
}


@matplotlib.rc_context(LOOK)
def behind_the_best(comparison: Comparison) -> Figure:
    """Distance of each fit to the best one in ELBO, evidence and gap, with its 95 % interval; and the seconds of the fits.

    Filled markers differ from the best beyond error, after the adjustment for all pairs. With several seeds, small dots are
    the seeds, and intervals are over seeds.

    Raises:
        InputError: fewer than two fits have an ELBO or an evidence.
    """
    found = {key: one for key, one in standings(comparison).items() if len(one.means) > 1}
    if not found:
        raise InputError("fewer than two fits have numbers that can be compared; compare several guides or estimators")
    if "evidence" in found and all(one.p == 1 for one in found["evidence"].differences.values()):
        found = {key: one for key, one in found.items() if key not in ("evidence", "gap")}  # as the ELBO, for one model
    first = next(iter(found.values()))
    order = [*first.means, *(name for name in comparison.names if name not in first.means)]
    styles, places = looks(comparison.names), {name: -k for k, name in enumerate(order)}
    longest = max(map(len, order))
    size = (2.6 * (len(found) + 1) + 0.07 * min(longest, 40), 1.7 + 0.3 * len(order))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(found) + 1, squeeze=False, sharey=True).ravel()
    for axes, (key, standing) in zip(panels, found.items(), strict=False):
        _draw_differences(axes, standing, places, styles)
        axes.set(title=TITLES[key], xlabel="nats per datum")
    _draw_numbers(panels[-1], comparison, places, styles, lambda result: result.run.seconds)
    panels[-1].set(title="time of the steps", xlabel="seconds")
    panels[0].set_yticks(list(places.values()), [_short(name) for name in places], parse_math=False)
    panels[0].set_ylim(-len(order) + 0.4, 0.6)
    entries = {
        "beyond error": Line2D([], [], color="0.3", marker="o", linestyle=""),
        "not beyond error": Line2D([], [], color="0.3", marker="o", linestyle="", markerfacecolor="white"),
        "best": Line2D([], [], color="0.3", marker="|", linestyle="", markersize=11, markeredgewidth=2),
    }
    if comparison.repeats:
        entries["one seed"] = Line2D([], [], color="0.6", marker=".", linestyle="")
    legend(figure, entries)
    bars = f"95 % intervals over {len(comparison.seeds)} seeds" if comparison.repeats else "paired 95 % intervals"
    heading(figure, comparison, f"Distance to the best fit on {comparison.on} data (bars: {bars})", all_seeds=True)
    return figure


def _draw_differences(axes: Axes, standing: Standing, places: Mapping[str, int], styles: Mapping[str, Look]) -> None:
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    colour = styles[standing.best].colour
    axes.plot(0, places[standing.best], color=colour, marker="|", markersize=11, markeredgewidth=2)
    for name, one in standing.differences.items():
        low, high = _interval(one)
        look = styles[name]
        axes.errorbar(
            one.value,
            places[name],
            xerr=[[max(0.0, one.value - low)], [max(0.0, high - one.value)]],
            color=look.colour,
            marker="o",
            markersize=5,
            markerfacecolor=look.colour if one.apart else "white",
            capsize=2,
            linewidth=1.0,
        )
        if one.seeds is not None:
            values = one.seeds.values
            axes.plot(
                values, np.full(len(values), places[name] - 0.22), ".", color=look.colour, alpha=0.6, markersize=4
            )
    axes.margins(x=0.08)
    distances = [one.value for one in standing.differences.values() if one.value > 0]
    if distances and max(distances) > 20 * min(distances):  # one fit far behind would hide the others' distances
        axes.set_xscale("symlog", linthresh=min(distances))
        powers = range(math.ceil(math.log10(min(distances))), math.ceil(math.log10(max(distances))) + 1)
        axes.set_xticks([0, *(10.0**k for k in powers)], ["0", *(f"{10.0**k:g}" for k in powers)])
    else:
        axes.locator_params(axis="x", nbins=4)


def _interval(one: Difference) -> tuple[float, float]:
    """The 95 % interval: over seeds if there are several, else over data or draws; the value itself without an error."""
    if one.seeds is not None:
        count = len(one.seeds.values)
        width = one.seeds.se * float(special.stdtrit(count - 1, 0.975)) if count > 1 else math.nan
        low, high = one.seeds.mean - width, one.seeds.mean + width
    else:
        low, high = one.low, one.high
    return (one.value, one.value) if math.isnan(low) else (low, high)


def _draw_numbers(
    axes: Axes,
    comparison: Comparison,
    places: Mapping[str, int],
    styles: Mapping[str, Look],
    read: Callable[[Result], float],
) -> None:
    for name, place in places.items():
        spread = spread_of(comparison, name, read)
        if spread is None:
            continue
        axes.barh(place, spread.mean, height=0.5, color=styles[name].colour, alpha=0.75)
        if len(spread.values) > 1:
            axes.plot(
                spread.values, np.full(len(spread.values), place - 0.32), ".", color=styles[name].colour, markersize=4
            )
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=4)


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:37]}..."
