"""Posterior means of local latents in the plane, coloured by the labels of the data."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from torch import Tensor

from pyro_vi.comparing import Comparison
from pyro_vi.errors import InputError
from pyro_vi.reporting.look import LOOK, heading, legend
from pyro_vi.reporting.of_pairs import moment, of_each_pair, trace_of
from pyro_vi.reporting.pictures.facts import Facts, facts_of

CLASSES = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#832db6",
    "#92dadd",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#94a4a2",
)
"""Ten colours that stay apart with any colour vision: Petroff 2021, arXiv:2107.02270."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
SITES, DRAWS = 3, 16
"""Most sites that are shown, and the number of draws of a site's parents over which its mean is averaged."""


@matplotlib.rc_context(LOOK)
def latent_means(comparison: Comparison, *, seed: int = 0) -> Figure:
    """E_q[z | x] of each datum, a point coloured by its label: two dimensions as they are, more by their principal components.

    Axes of principal components give the share of the variance of the means. A site with one dimension is shown over its
    classes. The names stand at the medians of the ten most frequent classes; further classes are grey.

    Args:
        comparison: fitted pairs and their data.
        seed: seed of the draws over which the means of sites with parents are averaged.

    Raises:
        InputError: no latent site is a real vector for each datum.
    """
    facts = facts_of(comparison)
    names = list(facts.vectors)[:SITES]
    if not names:
        raise InputError("no latent site is a real vector for each datum, so that there are no points to draw")
    found = of_each_pair(comparison, seed, lambda pair: means_of(Facts(pair, facts.data, facts.on, facts.args), names))
    places = [(fit, site) for fit in found for site in names]
    across = len(names) if len(names) > 1 else min(3, len(places))
    down = math.ceil(len(places) / across)
    figure = Figure(figsize=(max(5.4, 3.9 * across), 3.7 * down + 1.0), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    colours = Colours(facts)
    for axes, (fit, site) in zip(panels, places, strict=False):
        _scatter(axes, found[fit][site], colours)
        title = [fit] * (len(found) > 1) + [site] * (len(names) > 1)
        axes.set_title(", ".join(title), parse_math=False)
    for axes in panels[len(places) :]:
        axes.remove()
    legend(figure, colours.entries)
    heading(figure, comparison, f"Posterior means E[z | x] of {facts.rows} {facts.on} data{colours.said}", found)
    return figure


def means_of(facts: Facts, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return E_q[z | x] by site, of shape ``(rows, D)``; of several sites, averaged over draws of those before them."""
    sums: dict[str, Tensor] = {}
    draws = 1 if len(facts.layout.latents) == 1 else DRAWS
    for _ in range(draws):
        nodes = trace_of(facts.pair.guide, facts.args).nodes
        for name in names:
            mean = moment(nodes[name]["fn"], "mean", 200).expand(nodes[name]["fn"].shape())
            sums[name] = sums.get(name, 0) + mean.double().cpu() / draws
    return {name: value.reshape(facts.rows, -1).numpy() for name, value in sums.items()}


def in_the_plane(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return points of shape ``(n, 2)`` and the names of their axes: the values themselves, or two principal components.

    The largest weight of each component is positive, so that equal values give equal pictures.

    Example:
        >>> points, names = in_the_plane(np.array([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]]))
        >>> points[0], names
        (array([3., 0.]), ('PC 1 (90 % of the variance)', 'PC 2 (10 %)'))
    """
    if values.shape[1] == 2:
        return values, ("$z_1$", "$z_2$")
    centred = values - values.mean(0)
    _, lengths, weights = np.linalg.svd(centred, full_matrices=False)
    weights = weights[:2] * np.sign(weights[[0, 1], np.abs(weights[:2]).argmax(1)])[:, None]
    shares = 100 * lengths[:2] ** 2 / max(float((lengths**2).sum()), np.finfo(float).tiny)
    names = f"PC 1 ({shares[0]:.0f} % of the variance)", f"PC 2 ({shares[1]:.0f} %)"
    return np.asarray(centred @ weights.T), names


class Colours:
    """Colour, marker and name of each class that is shown: the ten most frequent ones; others are grey.

    Attributes:
        of: class of each row, −1 for those without one and those that are not shown; None without labels.
        entries: the entries of the legend.
        said: what the heading says of the colours.
    """

    def __init__(self, facts: Facts) -> None:
        self.of: np.ndarray | None = None
        self.entries: dict[str, Line2D] = {}
        self.said = ""
        if facts.labels is None:
            return
        values, self.names = facts.labels
        of = values.numpy().copy()
        counts = np.bincount(of[of >= 0], minlength=1)
        frequent = np.argsort(-counts, kind="stable")[: len(CLASSES)]
        self.shown = sorted(int(k) for k in frequent if counts[k])
        others = int((counts > 0).sum()) - len(self.shown)
        of[~np.isin(of, self.shown)] = -1
        self.of, self.said = of, ", coloured by their labels"
        self.look = {k: (CLASSES[i], MARKERS[i]) for i, k in enumerate(self.shown)}
        for k, (colour, marker) in self.look.items():
            self.entries[self.names[k]] = Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5)
        if (of < 0).any():
            grey = Line2D([], [], color="0.8", marker=".", linestyle="")
            self.entries[f"{others} other classes" if others > 0 else "no label"] = grey


def _scatter(axes: Axes, values: np.ndarray, colours: Colours) -> None:
    size = float(np.clip(4000 / len(values), 4, 18))
    single = values.shape[1] == 1
    if single and colours.of is None:
        axes.hist(values[:, 0], bins=40, color="0.55")
        axes.set(xlabel="$z$", ylabel="data")
        return
    points, names = (values, ("$z$", "")) if single else in_the_plane(values)
    if colours.of is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, color="#0072B2", alpha=0.6, linewidths=0)
    else:
        rest = colours.of < 0
        if single:  # each class has a line of its own, its points spread over the height in their order
            line = np.searchsorted(colours.shown, colours.of).astype(float)
            line[rest] = len(colours.shown)
            points = np.column_stack([points[:, 0], line + 0.7 * (np.arange(len(points)) * 0.618 % 1 - 0.5)])
            axes.set_yticks(range(len(colours.shown)), [colours.names[k] for k in colours.shown])
        axes.scatter(points[rest, 0], points[rest, 1], s=size, color="0.8", linewidths=0, zorder=1)
        for k in colours.shown:
            mine = points[colours.of == k]
            colour, marker = colours.look[k]
            axes.scatter(
                mine[:, 0], mine[:, 1], s=size, color=colour, marker=marker, alpha=0.75, linewidths=0, zorder=2
            )
        for k in () if single else colours.shown:
            x, y = np.median(points[colours.of == k], axis=0)
            effects = [withStroke(linewidth=2.5, foreground="white")]
            name = colours.names[k]
            axes.text(
                x, y, name, ha="center", va="center", weight="bold", path_effects=effects, zorder=3, parse_math=False
            )
    axes.set(xlabel=names[0], ylabel=names[1])
    if not single:
        axes.set_aspect("equal", adjustable="datalim")
