"""Sequences of varying length: piano rolls of truth values, and paths and lines of real numbers."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vi.comparing import Comparison
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair
from pyro_vi.reporting.look import LOOK, heading, looks
from pyro_vi.reporting.of_pairs import observed, of_each_pair, posterior_of, prior_of, rows_of
from pyro_vi.reporting.pictures.facts import Facts, facts_of

SHOWN, STEPS, LINES = 2, 96, 6
"""Sequences in a piano roll, most steps of each, and sequences as lines or paths."""
BEYOND = 6
"""Lines that are shown above the highest and below the lowest one of the observed sequences."""
LOWEST = 21
"""MIDI number of the first of 88 keys."""


@matplotlib.rc_context(LOOK)
def piano_roll(comparison: Comparison, *, seed: int = 0) -> Figure:
    """Sequences of truth values: as observed, as E[x | z] at one draw z ~ q(z | x), and as drawn from the model.

    Time goes to the right, and a column of the data is a line; 88 columns are the keys of a piano, from A0 up. Lines far from
    those that are observed are left out.

    Args:
        comparison: fitted pairs and their data.
        seed: seed of the draws.

    Raises:
        InputError: the data are no sequences of truth values.
    """
    facts = facts_of(comparison)
    if not rolls(facts):
        raise InputError("the data are no sequences of truth values with their lengths, so that there is no piano roll")
    longest = sorted(range(facts.rows), key=lambda k: -int(facts.columns["lengths"][k]))
    index = sorted(longest[max(0, min(len(longest) // 2, len(longest) - SHOWN)) :][:SHOWN])  # of medium length
    args = rows_of(facts.args, index)
    lengths = [int(n) for n in facts.columns["lengths"][index]]
    shape = tuple(args[0].shape)
    found = of_each_pair(comparison, seed, lambda pair: _rolls(pair, args, shape))
    data = args[0].double().cpu().numpy()
    rows = {f"observed ({facts.on})": (data, "black")}
    styles = looks(found)
    for name, (mean, drawn) in found.items():
        own = f"{name}: " if len(found) > 1 else ""
        rows[f"{own}E[x | z]"] = (mean, styles[name].colour)
        rows[f"{own}sample"] = (drawn, styles[name].colour)
    steps = min(STEPS, max(lengths))
    used = np.flatnonzero(data.reshape(-1, shape[2]).max(0))
    low, high = max(0, int(used.min(initial=shape[2])) - BEYOND), min(shape[2], int(used.max(initial=0)) + 1 + BEYOND)
    low = min(low, high - 1)
    size = (4.6 * len(index) + 0.8, (0.5 + 0.022 * (high - low)) * len(rows) + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(rows), len(index), squeeze=False, sharex=True, sharey=True)
    for line, (title, (values, colour)) in zip(panels, rows.items(), strict=True):
        shades = matplotlib.colors.LinearSegmentedColormap.from_list("shades", ["white", colour])
        for k, axes in enumerate(line):
            cut = min(lengths[k], steps)
            axes.imshow(
                values[k, :cut].T,
                origin="lower",
                aspect="auto",
                interpolation="none",
                cmap=shades,
                vmin=0,
                vmax=1,
                extent=(0.5, cut + 0.5, -0.5, shape[2] - 0.5),
            )
            axes.axvspan(cut + 0.5, steps + 0.5, color="0.93", linewidth=0)
            axes.set(xlim=(0.5, steps + 0.5), ylim=(low - 0.5, high - 0.5))
            axes.set_title(f"{title}, sequence {index[k] + 1}", color=colour, fontsize=9, parse_math=False)
            _keys(axes, low, high, shape[2])
    for axes in panels[-1]:
        axes.set_xlabel("step")
    drawing = "observed, E[x | z] at one draw z ~ q(z | x), and a sample of the model"
    heading(figure, comparison, f"Sequences: {drawing}", found)
    return figure


def rolls(facts: Facts) -> bool:
    """True if the data are sequences of several truth values a step."""
    return (
        facts.sequences and facts.spec.support == "boolean" and facts.args[0].dim() == 3 and facts.args[0].shape[2] > 3
    )


def _rolls(pair: Pair, args: tuple, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    mean = observed(pair, args, posterior_of(pair, args))[1]
    drawn = observed(pair, args, prior_of(pair, args), drawn=True)[1]
    return mean.reshape(shape), drawn.reshape(shape)


def _keys(axes: Axes, low: int, high: int, count: int) -> None:
    """Label the octaves of a piano, or the numbers of the columns."""
    if count != 88:
        axes.locator_params(axis="y", integer=True, nbins=4)
        return
    octaves = [k for k in range(low, high) if (k + LOWEST) % 12 == 0]
    axes.set_yticks(octaves, [f"C{(k + LOWEST) // 12 - 1}" for k in octaves])
    axes.grid(axis="y", color="0.88", linewidth=0.5)
    axes.set_axisbelow(True)
