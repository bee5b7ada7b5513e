"""Series of real numbers over time: posterior bands around the observations, and paths in the plane."""

import math
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pyro_vi.comparing import Comparison
from pyro_vi.data import Batch
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair
from pyro_vi.reporting.look import LOOK, heading, legend, looks
from pyro_vi.reporting.of_pairs import draws_of, of_each_pair, rows_of
from pyro_vi.reporting.pictures.facts import Facts, facts_of

DRAWS, SHOWN, MOST, PATHS = 200, 3, 4, 6
"""Draws of each guide, series that are shown, columns of each, and paths."""
LEAST = 8
"""Fewest steps of what is taken for a series."""


@dataclass(frozen=True)
class Seen:
    """Draws of a series: of its mean E[x_t | z] and of x_t, each ``(draws, rows, T, D)``, NaN where nothing is observed."""

    mean: np.ndarray
    drawn: np.ndarray


@matplotlib.rc_context(LOOK)
def bands(comparison: Comparison, *, seed: int = 0) -> Figure:
    """Series over time: observations as points, bands with 50 % and 90 % of E[x_t | z], z ~ q, and lines around 90 % of x_t.

    Args:
        comparison: fitted pairs and their data.
        seed: seed of the draws.

    Raises:
        InputError: the data are no series of real numbers, or the model does not observe each step.
    """
    facts = facts_of(comparison)
    if not is_series(facts):
        raise InputError("the data are no series of real numbers, so that there are no bands over time")
    args, rows = _chosen(facts, SHOWN)
    x, lengths = _values(facts, args)
    columns = min(MOST, x.shape[2])
    found = of_each_pair(comparison, seed, lambda pair: _seen(pair, args, x.shape, lengths))
    lines = [(fit, row) for fit in found for row in range(len(rows))]
    width = max(6.4, 3.2 * columns) if columns > 1 else 7.2
    figure = Figure(figsize=(width, (2.9 if len(lines) == 1 else 1.75) * len(lines) + 1.2), layout="constrained")
    panels = figure.subplots(len(lines), columns, squeeze=False, sharex=True, sharey="col")
    styles, names = looks(found), _names(facts, x.shape[2])
    for k, (fit, row) in enumerate(lines):
        colour, seen = styles[fit].colour, found[fit]
        for d, axes in enumerate(panels[k]):
            at = 1 + np.flatnonzero(~np.isnan(seen.mean[0, row, :, d]))
            low, lower, middle, upper, high = np.quantile(
                seen.mean[:, row, at - 1, d], (0.05, 0.25, 0.5, 0.75, 0.95), axis=0
            )
            axes.fill_between(at, low, high, color=colour, alpha=0.22, linewidth=0)
            axes.fill_between(at, lower, upper, color=colour, alpha=0.4, linewidth=0)
            axes.plot(at, middle, color=colour, linewidth=1.2)
            for edge in np.quantile(seen.drawn[:, row, at - 1, d], (0.05, 0.95), axis=0):
                axes.plot(at, edge, color=colour, linewidth=0.8, linestyle=":")
            steps = lengths[row]
            axes.plot(1 + np.arange(steps), x[row, :steps, d], ".", color="0.15", markersize=3.5)
            axes.locator_params(axis="x", integer=True)
            if k == 0 and columns > 1:
                axes.set_title(names[d], parse_math=False)
            if k == len(lines) - 1:
                axes.set_xlabel("step")
        own = fit if len(found) > 1 else ""
        number = f"{facts.on} series {rows[row] + 1}" if facts.rows > 1 and len(rows) > 1 else ""
        label = "\n".join(filter(None, (own, number, names[0] if columns == 1 else "")))
        panels[k][0].set_ylabel(label, color=colour if own else "black", parse_math=False)
    shade = styles[next(iter(found))].colour if len(found) == 1 else "0.4"
    entries = {
        "observed": Line2D([], [], color="0.15", marker=".", linestyle=""),
        "50 % of E[x | z]": Patch(color=shade, alpha=0.5),
        "90 % of E[x | z]": Patch(color=shade, alpha=0.22),
        "90 % of x": Line2D([], [], color=shade, linestyle=":", linewidth=1),
    }
    legend(figure, entries)
    heading(figure, comparison, "Series and their posterior bands", found)
    return figure


@matplotlib.rc_context(LOOK)
def paths(comparison: Comparison, *, seed: int = 0) -> Figure:
    """Paths in the plane of columns whose names end with x and y: observed points, and E[x_t | z] at draws z ~ q(z | x).

    Args:
        comparison: fitted pairs and their data.
        seed: seed of the draws.

    Raises:
        InputError: the data are no sequences with such columns.
    """
    facts = facts_of(comparison)
    plane = in_plane_of_series(facts)
    if plane is None:
        raise InputError("the data are no sequences with columns named x and y, so that there are no paths to draw")
    args, rows = _chosen(facts, PATHS)
    x, lengths = _values(facts, args)
    found = of_each_pair(comparison, seed, lambda pair: _seen(pair, args, x.shape, lengths).mean[..., plane])
    across = min(3, len(rows))
    down = math.ceil(len(rows) / across)
    figure = Figure(figsize=(max(5.4, 2.9 * across), 2.9 * down + 1.1), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    styles, names = looks(found), _names(facts, x.shape[2])
    for k, axes in enumerate(panels[: len(rows)]):
        steps = lengths[k]
        for fit, means in found.items():
            for draw in means[:10, k, :steps]:
                axes.plot(draw[:, 0], draw[:, 1], color=styles[fit].colour, linewidth=0.7, alpha=0.35)
        axes.plot(x[k, :steps, plane[0]], x[k, :steps, plane[1]], ".", color="0.15", markersize=4)
        axes.plot(*x[k, 0, plane], "o", color="0.15", markersize=6, markerfacecolor="white")
        axes.set_title(f"{facts.on} sequence {rows[k] + 1}", fontsize=9)
        axes.set_aspect("equal", adjustable="box")
        if k % across == 0:
            axes.set_ylabel(names[plane[1]], parse_math=False)
        if k + across >= len(rows):
            axes.set_xlabel(names[plane[0]], parse_math=False)
            axes.tick_params(labelbottom=True)
    for axes in panels[len(rows) :]:
        axes.remove()
    entries = {
        "observed": Line2D([], [], color="0.15", marker=".", linestyle=""),
        "start": Line2D([], [], color="0.15", marker="o", markerfacecolor="white", linestyle=""),
        **{name: Line2D([], [], color=look.colour) for name, look in styles.items()},
    }
    legend(figure, entries)
    heading(figure, comparison, "Paths: observed, and E[x | z] at ten draws z ~ q(z | x)", found)
    return figure


def is_series(facts: Facts) -> bool:
    """True if a datum is a series of real numbers, or all data are one, and the latents go along with its steps.

    A datum of two dimensions, (T, D), is one if it is no image. Numbers in a row, (T,), are one if the model observes them step
    by step. All rows are one series if they are in no plate and there are as many latents as rows; so is a single row.
    """
    if not facts.args or facts.image is not None or facts.spec.support in ("boolean", "unit_interval"):
        return False
    x, shape = facts.args[0], facts.spec.event_shape
    if facts.layout.data is None:
        numbers = sum(site.numel for site in facts.layout.latents.values())
        steps = shape[0] if _one_row(facts) else len(x) if len(shape) < 2 else 0
        return steps >= LEAST and numbers >= 0.8 * steps
    if len(shape) == 2:
        return shape[0] >= LEAST
    return len(shape) == 1 and len(facts.layout.observed) >= LEAST


def in_plane_of_series(facts: Facts) -> list[int] | None:
    """The columns of a position in the plane, whose names end with x and y."""
    names = [name.lower() for name in facts.features]
    if not is_series(facts) or len(facts.spec.event_shape) != 2:
        return None
    found = [
        (i, names.index(f"{name[:-1]}y"))
        for i, name in enumerate(names)
        if name[-1:] == "x" and f"{name[:-1]}y" in names
    ]
    return list(found[0]) if found else None


def _one_row(facts: Facts) -> bool:
    """True if the only row is a series, (1, T, D)."""
    return len(facts.args[0]) == 1 and len(facts.spec.event_shape) == 2


def _chosen(facts: Facts, most: int) -> tuple[Batch, list[int]]:
    """Some rows, and their numbers; all of them where rows cannot be taken by themselves, or are one series."""
    if facts.layout.data is None:
        return facts.args, [0]
    if facts.rows <= most or not facts.pair.separable(facts.args, most):
        return facts.args, list(range(min(most, facts.rows)))
    return rows_of(facts.args, range(most)), list(range(most))


def _values(facts: Facts, args: Batch) -> tuple[np.ndarray, list[int]]:
    """The series as ``(rows, T, D)``, and the number of steps of each."""
    values = args[0].double().cpu().numpy()
    if facts.layout.data is None and not _one_row(facts):
        values = values[None]
    values = values.reshape(*values.shape[:2], -1)
    lengths = Facts(facts.pair, facts.data, facts.on, args).columns.get("lengths")
    return values, [values.shape[1]] * len(values) if lengths is None else [int(n) for n in lengths]


def _seen(pair: Pair, args: Batch, shape: tuple[int, ...], lengths: list[int]) -> Seen:
    rows, steps, columns = shape
    plate = pair.layouts(args)[0].data_plate
    draws = draws_of(pair, args, DRAWS)
    found = []
    for values in (draws.means, draws.drawn):
        parts = []
        for name, value in values.items():
            # The draws come first; then the rows are where the data plate is.
            axis = None if plate is None else 1 + draws.sites[name].rank + plate.dim
            moved = value[:, None] if axis is None else np.moveaxis(value, axis, 1)
            parts.append(moved.reshape(DRAWS, rows, -1))
        joined = np.concatenate(parts, -1).astype(float)
        if joined.shape[-1] % columns or joined.shape[-1] > steps * columns:
            raise InputError(f"the model observes {joined.shape[-1]} numbers of a series of {steps} x {columns}")
        # What starts a series may not be scored: the steps that are, are its last ones.
        whole = np.full((DRAWS, rows, steps, columns), np.nan)
        scored = joined.reshape(DRAWS, rows, -1, columns)
        whole[:, :, steps - scored.shape[2] :] = scored
        for row, length in enumerate(lengths):
            whole[:, row, length:] = np.nan
        found.append(whole)
    return Seen(*found)


def _names(facts: Facts, count: int) -> list[str]:
    if len(facts.features) == count:
        return list(facts.features)
    return ["x"] if count == 1 else [f"x_{d + 1}" for d in range(count)]
