"""Figures of what fitted pairs generate: reconstructions, draws from the prior, latent traversals.

* They use only the traces of a program. A figure shows the mean E[x | z] of the observed site's distribution, or a draw if
  it has no finite mean.
* Data with an ``image_shape`` are drawn as images, other data as lines over the features, and scalar data as points.
"""

import math
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from pyro import poutine
from torch.distributions import constraints

from pyro_vi.comparing import Comparison
from pyro_vi.data import Batch
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair, Site
from pyro_vi.reporting.look import LOOK, heading, legend, looks
from pyro_vi.reporting.mosaics import draw_images, image_shape
from pyro_vi.reporting.of_pairs import moment, observed, of_each_pair, posterior_of, prior_of, rows_of, trace_of

STEPS, MOST = 9, 8
"""Number of values of a latent dimension in a traversal, and the largest number of dimensions shown."""
SPREAD = np.linspace(-3, 3, STEPS)
MOST_NAMES, FEW_NAMES = 15, 5
"""Most features whose names are written below a wide panel, and below a narrow one."""


@matplotlib.rc_context(LOOK)
def reconstructions(comparison: Comparison, *, n: int = 10, seed: int = 0) -> Figure:
    """Held-out data, and E[x | z] at one draw z ~ q(z | x) of each estimator's pair.

    Args:
        comparison: fitted pairs and their data.
        n: number of data: the first n of the held-out data, or of the training data if none are held out.
        seed: seed of the draw, the same for all pairs.

    Raises:
        InputError: a program fails on these rows, or an observed site does not have one row per datum.
    """
    on, pictured = comparison.pictured()
    args = rows_of(pictured, range(min(n, len(pictured[0]))))
    found = of_each_pair(comparison, seed, lambda pair: observed(pair, args, posterior_of(pair, args)))
    data, shown = next(iter(found.values()))[0], {name: mean for name, (_, mean) in found.items()}
    styles, shape, count = looks(shown), image_shape(comparison, data), len(data)
    if shape is not None:
        size = (0.62 * count + 0.5 + 0.08 * max(map(len, shown)), 0.7 * (1 + len(shown)) * shape[0] / shape[1] + 0.5)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.02, hspace=0))
        panels = figure.subplots(1 + len(shown), 1, squeeze=False).ravel()
        for axes, (name, values) in zip(panels, [("data", data), *shown.items()], strict=True):
            draw_images(axes, values, (1, count), comparison)
            colour = styles[name].colour if name in styles else "black"
            axes.set_ylabel(name, rotation=0, ha="right", va="center", color=colour, parse_math=False)
    else:
        # Scalar data make no line, so that all of them share one panel.
        groups = [slice(None)] if data.shape[1] == 1 else [slice(k, k + 1) for k in range(count)]
        across, down = min(5, len(groups)), math.ceil(len(groups) / 5)
        figure = Figure(figsize=(max(5.6, 2.0 * across), 1.6 + 1.7 * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, group in zip(panels, groups, strict=False):
            _draw_lines(axes, data[group], "0.35", "data", ".", width=0.0)
            for name, values in shown.items():
                _draw_lines(axes, values[group], styles[name].colour, name, styles[name].marker, styles[name].width)
        _label(panels, len(groups), across, f"{on} datum" if data.shape[1] == 1 else "feature", "x")
        _name_features(panels[: len(groups)], comparison, data.shape[1], FEW_NAMES)
        legend(figure)
    what = f"{on.capitalize()} data and reconstructions E[x | z] at one draw z ~ q(z | x)"
    heading(figure, comparison, what, found)
    return figure


@matplotlib.rc_context(LOOK)
def prior_samples(comparison: Comparison, *, rows: int = 4, columns: int = 8, seed: int = 0) -> Figure:
    """E[x | z] at rows × columns draws z ~ p(z) from each estimator's model; with the held-out data, unless they are images.

    Args:
        comparison: fitted pairs and their data.
        rows: number of rows of the grid of images.
        columns: number of its columns.
        seed: seed of the draws, the same for all pairs.

    Raises:
        InputError: the model fails on this number of rows, all data share a latent site, or an observed site does not have one
            row per datum.
    """
    count = rows * columns
    one = next(iter(comparison.results.values())).run
    shared = one.pair.layouts(one.data.example(one.data.spec.num_data))[0].shared if one.data.num_heldout == 0 else []
    if shared:
        raise InputError(
            f"all data share '{shared[0]}', so that one draw of the prior gives one picture of all of them"
        )
    # Only the length of the batch matters, and the inputs of a model that is conditioned on some.
    on, pictured = comparison.pictured()
    args = rows_of(pictured, [i % len(pictured[0]) for i in range(count)])
    found = of_each_pair(comparison, seed, lambda pair: observed(pair, args, prior_of(pair, args)))
    data, shown = next(iter(found.values()))[0], {name: mean for name, (_, mean) in found.items()}
    styles, shape = looks(shown), image_shape(comparison, data)
    across, down = min(3, len(shown)), math.ceil(len(shown) / 3)
    height = 2.6 if shape is None else 3.4 * rows * shape[0] / (columns * shape[1])
    size = (max(3.6 * across, 5.2), (height + 0.3) * down + (0.6 if shape else 1.3))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1))
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, (name, values) in zip(panels, shown.items(), strict=False):
        axes.set_title(name, color=styles[name].colour, parse_math=False)
        if shape is not None:
            draw_images(axes, values, (rows, columns), comparison)
        else:
            _draw_lines(axes, data, "0.75", f"{on} data", marker=".")
            _draw_lines(axes, values, styles[name].colour, "E[x | z]" if len(shown) == 1 else name, marker=".")
    x = "draw" if data.shape[1] == 1 else "feature"
    _label(panels, len(shown), across, *((x, "x") if shape is None else ("", "")))
    if shape is None:
        _name_features(panels[: len(shown)], comparison, data.shape[1], MOST_NAMES)
    legend(figure)
    heading(figure, comparison, f"E[x | z] at {count} draws from the prior, z ~ p(z)", found)
    return figure


@matplotlib.rc_context(LOOK)
def latent_traversal(comparison: Comparison, *, datum: int = 0, seed: int = 0) -> Figure:
    """E[x | z] as one latent dimension at a time goes from −3 to 3 prior standard deviations, the others at E_q[z | x].

    At most 8 dimensions are shown: those in which the posterior means of the held-out data vary most, in that order.
    Varying a dimension that the model does not use changes nothing.

    Args:
        comparison: fitted pairs and their data.
        datum: row at whose posterior mean the other dimensions are fixed: of the held-out data, or of the training data if
            none are held out.
        seed: seed of the draws.

    Raises:
        InputError: the model does not have exactly one latent site, or the site is not a real vector in the data plate.
    """
    on, pictured = comparison.pictured()
    traversals = of_each_pair(comparison, seed, lambda pair: _traverse(pair, pictured, datum))
    styles, values = looks(traversals), next(iter(traversals.values()))[2]
    shape, most = image_shape(comparison, values[0]), max(len(dims) for dims, _, _ in traversals.values())
    if shape is not None:
        across, down = min(3, len(traversals)), math.ceil(len(traversals) / 3)
        size = (max(3.6 * across + 0.8, 5.2), (3.3 * most / STEPS * shape[0] / shape[1] + 0.4) * down + 0.8)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.add_gridspec(down, across + 1, width_ratios=[0.16] + [1.0] * across)
        start = pictured[0][datum].double().cpu().numpy()
        draw_images(figure.add_subplot(grid[0, 0], title="datum", anchor="N"), start, (1, 1), comparison)
        for k, (name, (dims, mean, values)) in enumerate(traversals.items()):
            axes = figure.add_subplot(grid[k // across, 1 + k % across])
            axes.set_title(name, color=styles[name].colour, parse_math=False)
            cell = draw_images(axes, values, (len(dims), STEPS), comparison)
            middle, top = (np.arange(STEPS) + 0.5) * cell[1] - 0.5, np.arange(len(dims)) * cell[0] - 0.5
            # The line marks the posterior mean of this dimension, at which the other rows fix it.
            axes.vlines(np.interp(mean, SPREAD, middle), top, top + shape[0], color=styles[name].colour, linewidth=1.6)
            axes.set_xticks(middle[[0, STEPS // 2, -1]], ["−3", "0", "3"])
            axes.set_yticks(top + cell[0] / 2, [f"$z_{{{d + 1}}}$" for d in dims])
            axes.tick_params(length=0)
        figure.supxlabel("prior standard deviations (line: posterior mean)")
    else:
        figure = Figure(figsize=(max(5.6, 1.4 * most + 1.4), 1.5 * len(traversals) + 1.4), layout="constrained")
        panels = figure.subplots(len(traversals), most, squeeze=False, sharex=True, sharey=True)
        single, features = values.shape[-1] == 1, 1 + np.arange(values.shape[-1])
        marker = "." if len(features) < 4 else ""
        rainbow = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, STEPS))
        for row, (name, (dims, _, values)) in zip(panels, traversals.items(), strict=True):
            small = min(9.0, 150 / len(name))  # a long name is no longer than its panel
            row[0].set_ylabel(f"{name}\nE[x | z]", color=styles[name].colour, parse_math=False, fontsize=small)
            for axes, d, lines in zip(row, dims, values, strict=False):
                axes.set_prop_cycle(color=[styles[name].colour] if single else rainbow)
                axes.set(title=f"$z_{{{d + 1}}}$", xlabel="prior sd" if single else "feature")
                drawn = axes.plot(*((SPREAD, lines) if single else (features, lines.T)), lw=0.8, marker=marker)
                axes.locator_params(axis="x", integer=True)
                axes.label_outer()
        _name_features(panels.ravel(), comparison, values.shape[-1], FEW_NAMES)
        if not single:
            legend(figure, {f"{at:+g} sd": line for at, line in zip(SPREAD, drawn, strict=True)})
    heading(figure, comparison, f"E[x | z], one latent dimension varied, from {on} datum {datum + 1}", traversals)
    return figure


def _traverse(pair: Pair, heldout: Batch, datum: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return the dimensions shown, their posterior means in prior standard deviations, and E[x | z] along each of them.

    Their shapes are ``(D,)``, ``(D,)`` and ``(D, STEPS, features)``.
    """
    site = _latent_vector(pair, heldout)
    posterior = trace_of(pair.guide, heldout).nodes[site.name]["fn"]
    means = moment(posterior, "mean", 200).expand(len(heldout[0]), -1)
    dims = means.var(0, correction=0).argsort(descending=True)[:MOST]
    args = rows_of(heldout, [datum] * (len(dims) * STEPS))
    replayed = trace_of(pair.guide, args)
    prior = trace_of(poutine.replay(pair.model, trace=replayed), args).nodes[site.name]["fn"]
    loc, scale = (moment(prior, m, 1000).expand(len(args[0]), -1)[0].to(means) for m in ("mean", "stddev"))
    z = means[datum].repeat(len(dims), STEPS, 1)
    for i, d in enumerate(dims):
        z[i, :, d] = loc[d] + scale[d] * torch.as_tensor(SPREAD).to(means)
    replayed.nodes[site.name]["value"] = z.reshape(-1, z.shape[-1]).to(site.dtype)
    values = observed(pair, args, trace_of(poutine.replay(pair.model, trace=replayed), args))[1]
    values = values.reshape(len(dims), STEPS, -1)
    return dims.tolist(), ((means[datum] - loc) / scale)[dims].double().cpu().numpy(), values


def _latent_vector(pair: Pair, args: Batch) -> Site:
    layout, _ = pair.layouts(args)
    plate, sites = layout.data_plate, list(layout.latents.values())
    if len(sites) == 1 and plate is not None and plate.name in sites[0].plates:
        support: Any = sites[0].support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        vector = len(sites[0].event_shape) == 1 and sites[0].batch_shape == (len(args[0]),)
        if vector and isinstance(support, type(constraints.real)):
            return sites[0]
    raise InputError("a latent traversal needs a model with exactly one latent site, a real vector for each datum")


def _draw_lines(axes: Axes, values: np.ndarray, colour: Any, label: str, marker: str, width: float = 0.8) -> None:
    """Draw rows of values over their features, as points if the width is 0; draw scalar data as points over the rows."""
    single = values.shape[1] == 1
    lines = values.T if single else values
    axes.locator_params(axis="x", integer=True)
    dots, stroke = single or lines.shape[1] < 4 or not width, width and not single
    for k, y in enumerate(lines):
        drawn = axes.plot(1 + np.arange(len(y)), y, color=colour, linewidth=width, markersize=4)[0]
        drawn.set(marker=marker if dots else "", linestyle="-" if stroke else "", label=None if k else label)


def _name_features(panels: np.ndarray, comparison: Comparison, count: int, most: int) -> None:
    """Write the names of a table's columns at the features, if they are few."""
    names = comparison.data.spec.features
    if not 1 < count == len(names) <= most:
        return
    short = [name if len(name) < 16 else f"{name[:14]}…" for name in names]
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, short)) > 2 else {}
    for axes in panels:
        axes.set_xticks(1 + np.arange(count), short, parse_math=False, **turned)
        axes.set_xlabel("")


def _label(panels: np.ndarray, used: int, across: int, x: str, y: str) -> None:
    """Label the outer panels of a grid of which the first ``used`` are used, and remove the others."""
    for k, axes in enumerate(panels[:used]):
        if k % across == 0:
            axes.set_ylabel(y)
        if k + across >= used:  # no panel is below this one
            axes.set_xlabel(x)
            axes.tick_params(labelbottom=True)
    for axes in panels[used:]:
        axes.remove()
