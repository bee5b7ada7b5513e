"""Discrete latents: the component that each datum most probably comes from."""

import math

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pyro_vi.comparing import Comparison
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair
from pyro_vi.reporting.look import LOOK, heading, legend
from pyro_vi.reporting.of_pairs import of_each_pair, posterior_of
from pyro_vi.reporting.pictures.facts import Facts, facts_of
from pyro_vi.reporting.pictures.latents import CLASSES, MARKERS, in_the_plane, means_of

DRAWS, GRID = 32, 160
"""Draws from which the most probable component is found, and points along each side of the learned density."""


@matplotlib.rc_context(LOOK)
def components(comparison: Comparison, *, seed: int = 0) -> Figure:
    """Data in the plane, coloured by the most frequent value of a discrete latent in draws from its posterior.

    Of a model with a real vector for each datum too, the points are its posterior means. More than two dimensions are shown
    by two principal components. Data in the plane have contours of the learned density, where the model has ``log_evidence``.

    Args:
        comparison: fitted pairs and their data.
        seed: seed of the draws.

    Raises:
        InputError: no latent is a discrete number for each datum.
    """
    facts = facts_of(comparison)
    if not facts.assigned:
        raise InputError("no latent is a discrete number for each datum, so that there are no components to draw")
    site = next(iter(facts.assigned))
    found = of_each_pair(comparison, seed, lambda pair: _assigned(pair, facts, site))
    across = min(3, len(found))
    down = math.ceil(len(found) / across)
    figure = Figure(figsize=(max(5.4, 3.9 * across), 3.7 * down + 1.0), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    entries: dict[str, Line2D] = {}
    names = _class_names(facts, site)
    values = sorted({int(k) for _, assigned, _ in found.values() for k in np.unique(assigned)})
    looks = {k: (CLASSES[i % 10], MARKERS[(i + i // 10) % 10]) for i, k in enumerate(values)}
    for axes, (name, (points, assigned, axis_names)) in zip(panels, found.items(), strict=False):
        pair = comparison.results[name].run.pair
        _contours(axes, pair, facts, points)
        size = float(np.clip(4000 / len(points), 4, 18))
        for k, (colour, marker) in looks.items():
            mine = points[assigned == k]
            axes.scatter(
                mine[:, 0], mine[:, 1], s=size, color=colour, marker=marker, alpha=0.75, linewidths=0, zorder=2
            )
            entries[names.get(k, f"{site} {k}")] = Line2D(
                [], [], color=colour, marker=marker, linestyle="", markersize=5
            )
        axes.set_xlabel(axis_names[0], parse_math=axis_names[0].startswith("$"))
        axes.set_ylabel(axis_names[1], parse_math=axis_names[1].startswith("$"))
        if not axis_names[1]:
            axes.set_yticks([])
        if len(found) > 1:
            axes.set_title(name, parse_math=False)
    for axes in panels[len(found) :]:
        axes.remove()
    legend(figure, entries)
    heading(figure, comparison, f"{facts.on.capitalize()} data by their most probable '{site}'", found)
    return figure


def _class_names(facts: Facts, site: str) -> dict[int, str]:
    """Names of the values of a latent that is the class of a batch with labels: it has as many values."""
    label = next((one for one in facts.spec.others if one.name == "label"), None)
    states = getattr(facts.assigned[site].support, "upper_bound", None)
    if label is None or "label" not in facts.columns or states is None or int(states) + 1 != len(label.classes):
        return {}
    return dict(enumerate(label.classes))


def _assigned(pair: Pair, facts: Facts, site: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Points in the plane, the component of each, and the names of the axes."""
    draws = torch.stack([posterior_of(pair, facts.args).nodes[site]["value"].long() for _ in range(DRAWS)])
    assigned = draws.mode(0).values.cpu().numpy()
    if facts.vectors:
        one = next(iter(facts.vectors))
        means = means_of(Facts(pair, facts.data, facts.on, facts.args), [one])[one]
        if means.shape[1] > 1:
            points, names = in_the_plane(means)
            return points, assigned, names
    points, names = _placed(facts.args[0].double().cpu().numpy().reshape(facts.rows, -1), facts.features)
    return points, assigned, names


def _placed(values: np.ndarray, features: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    if values.shape[1] == 1:  # spread over the height, in their order
        height = np.arange(len(values)) * 0.618 % 1
        return np.column_stack([values[:, 0], height]), (features[0] if len(features) == 1 else "x", "")
    points, names = in_the_plane(values)
    if values.shape[1] == 2:
        names = features if len(features) == 2 else ("$x_1$", "$x_2$")
    return points, names


def _contours(axes: Axes, pair: Pair, facts: Facts, points: np.ndarray) -> None:
    """Contours of the learned density of data in the plane, at equal steps of its logarithm."""
    evidence = Facts(pair, facts.data, facts.on, facts.args).method("log_evidence")
    if evidence is None or tuple(facts.args[0].shape[1:]) != (2,) or len(facts.args) > 1:
        return
    low, high = points.min(0), points.max(0)
    x, y = (np.linspace(a - 0.1 * (b - a), b + 0.1 * (b - a), GRID) for a, b in zip(low, high, strict=True))
    mesh = torch.as_tensor(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)).to(facts.args[0])
    with torch.no_grad():
        log_p = evidence(mesh).double().cpu().numpy().reshape(GRID, GRID)
    levels = log_p.max() - np.arange(6, 0, -1) ** 2 / 2
    axes.contour(x, y, log_p, levels=levels, colors="0.7", linewidths=0.7, linestyles="-", zorder=1)
