"""Pictures of what fitted pairs make: reconstructions, draws from the prior, walks through the latent space.

* Each picture reads a comparison, and nothing of a program but its traces: no method of a model or guide is needed.
  What is shown of x is the mean of the observed site's distribution, E[x | z], or a draw where it has no finite mean.
* Data with an ``image_shape`` are drawn as images, other data as lines over the features, single numbers as points.
* Below the pictures stand what they read from traces, and how they draw.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import constraints

from pyro_vi.data import Batch
from pyro_vi.draws import evaluating
from pyro_vi.errors import InputError
from pyro_vi.pairs import Pair, Site, isolated, prototype
from pyro_vi.plots import LOOK, heading, looks
from pyro_vi.terms import data_plate

STEPS = 9
"""Values that a latent dimension takes in a traversal."""
MOST = 8
"""Latent dimensions that a traversal shows at most."""
SPREAD = np.linspace(-3, 3, STEPS)
_Shape = tuple[int, int]


@matplotlib.rc_context(LOOK)
def reconstructions(comparison: Any, *, n: int = 10, seed: int = 0) -> Figure:
    """Held-out data, and E[x | z] at one draw z ~ q(z | x) of each estimator's pair.

    Args:
        comparison: fitted pairs and their data.
        n: number of data, the first of the held-out ones.
        seed: of the draw, the same for all pairs.

    Raises:
        InputError: a program fails on these rows, or what it observes has no row for each datum.
    """
    args = _rows(comparison.data.heldout, range(min(n, len(comparison.data.heldout[0]))))
    shown: dict[str, np.ndarray] = {}
    for name, result in comparison.results.items():
        with _undisturbed(result.run.pair, seed):
            replayed = poutine.trace(result.run.pair.guide).get_trace(*args)
            data, shown[name] = _observed(result.run.pair, args, replayed)
    styles, shape, count = looks(shown), _image_shape(comparison, data), len(data)
    if shape is not None:
        size = (0.62 * count + 1.4, 0.62 * (1 + len(shown)) * shape[0] / shape[1] + 0.8)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1 + len(shown), 1, squeeze=False).ravel()
        for axes, (name, values) in zip(panels, [("data", data), *shown.items()], strict=True):
            _draw_images(axes, values.reshape(1, count, *shape), _grey_scale(comparison))
            colour = styles[name].colour if name in styles else "black"
            axes.set_ylabel(name, rotation=0, ha="right", va="center", color=colour, parse_math=False)
    else:
        # A single number makes no line: all data then share one panel.
        groups = [slice(None)] if data.shape[1] == 1 else [slice(k, k + 1) for k in range(count)]
        across = min(5, len(groups))
        down = math.ceil(len(groups) / across)
        figure = Figure(figsize=(max(5.0, 2.0 * across), 1.6 + 1.7 * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, group in zip(panels, groups, strict=False):
            _draw_lines(axes, data[group], "0.35", "data", marker=".", line=False)
            for name, values in shown.items():
                _draw_lines(axes, values[group], styles[name].colour, name, styles[name].marker, styles[name].width)
        _finish(figure, panels, len(groups))
        figure.supxlabel("held-out datum" if data.shape[1] == 1 else "feature", fontsize=9)
        figure.supylabel("x", fontsize=9)
    heading(figure, comparison, "Held-out data and reconstructions E[x | z] at one draw z ~ q(z | x)")
    return figure


@matplotlib.rc_context(LOOK)
def prior_samples(comparison: Any, *, rows: int = 4, columns: int = 8, seed: int = 0) -> Figure:
    """E[x | z] at rows × columns draws z ~ p(z) of each estimator's model; with held-out data if they are not images.

    Args:
        comparison: fitted pairs and their data.
        rows: of the grid of images.
        columns: of the grid of images.
        seed: of the draws, the same for all pairs.

    Raises:
        InputError: the model fails on so many rows, or what it observes has no row for each datum.
    """
    count = rows * columns
    # Of the batch only the length matters, and what the model is conditioned on, where it is.
    args = _rows(comparison.data.heldout, [i % len(comparison.data.heldout[0]) for i in range(count)])
    shown: dict[str, np.ndarray] = {}
    for name, result in comparison.results.items():
        with _undisturbed(result.run.pair, seed):
            data, shown[name] = _observed(result.run.pair, args)
    styles, shape = looks(shown), _image_shape(comparison, data)
    across = min(3, len(shown))
    down = math.ceil(len(shown) / across)
    height = 2.6 if shape is None else 3.4 * rows * shape[0] / (columns * shape[1])
    figure = Figure(figsize=(3.6 * across, (height + 0.3) * down + 0.6), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, (name, values) in zip(panels, shown.items(), strict=False):
        axes.set_title(name, color=styles[name].colour, parse_math=False)
        if shape is not None:
            _draw_images(axes, values.reshape(rows, columns, *shape), _grey_scale(comparison))
        else:
            _draw_lines(axes, data, "0.75", "held-out data", marker=".")
            _draw_lines(axes, values, styles[name].colour, "E[x | z]" if len(shown) == 1 else name, marker=".")
    if shape is None:
        figure.supxlabel("draw" if data.shape[1] == 1 else "feature", fontsize=9)
        figure.supylabel("x", fontsize=9)
    _finish(figure, panels, len(shown), legend=shape is None)
    figure.get_layout_engine().set(w_pad=0.1)
    heading(figure, comparison, f"E[x | z] at {count} draws from the prior, z ~ p(z)")
    return figure


@matplotlib.rc_context(LOOK)
def latent_traversal(comparison: Any, *, datum: int = 0, seed: int = 0) -> Figure:
    """E[x | z] as one latent dimension at a time goes from −3 to 3 prior standard deviations, the others at E_q[z | x].

    At most 8 dimensions are shown: those in which the posterior means of the held-out data vary most, in that order. One
    that the model does not use changes nothing.

    Args:
        comparison: fitted pairs and their data.
        datum: row of the held-out data from whose posterior mean the walks start.
        seed: of the draws.

    Raises:
        InputError: the model has not exactly one latent site, in the data plate, real-valued and a vector.
    """
    walks: dict[str, tuple[list[int], np.ndarray, np.ndarray]] = {}
    for name, result in comparison.results.items():
        with _undisturbed(result.run.pair, seed):
            walks[name] = _walk(result.run.pair, comparison.data.heldout, datum)
    styles, values = looks(walks), next(iter(walks.values()))[2]
    shape, most = _image_shape(comparison, values[0]), max(len(dims) for dims, _, _ in walks.values())
    if shape is not None:
        across = min(3, len(walks))
        down = math.ceil(len(walks) / across)
        size = (3.6 * across + 0.8, (3.3 * most / STEPS * shape[0] / shape[1] + 0.4) * down + 0.8)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.add_gridspec(down, across + 1, width_ratios=[0.16] + [1.0] * across)
        first = figure.add_subplot(grid[0, 0], title="datum", anchor="N")
        start = comparison.data.heldout[0][datum].double().cpu().numpy()
        _draw_images(first, start.reshape(1, 1, *shape), _grey_scale(comparison))
        for k, (name, (dims, mean, values)) in enumerate(walks.items()):
            axes = figure.add_subplot(grid[k // across, 1 + k % across])
            axes.set_title(name, color=styles[name].colour, parse_math=False)
            cell = _draw_images(axes, values.reshape(len(dims), STEPS, *shape), _grey_scale(comparison))
            middle, top = (np.arange(STEPS) + 0.5) * cell[1] - 0.5, np.arange(len(dims)) * cell[0] - 0.5
            # Where among the values the walk's start lies: the other rows keep this dimension there.
            place = np.interp(mean, SPREAD, middle)
            axes.vlines(place, top, top + shape[0], color=styles[name].colour, linewidth=1.6)
            axes.set_xticks(middle[[0, STEPS // 2, -1]], ["−3", "0", "3"])
            axes.set_yticks(top + cell[0] / 2, [f"$z_{{{d + 1}}}$" for d in dims])
            axes.tick_params(length=0)
        figure.supxlabel("prior standard deviations (line: posterior mean)", fontsize=9)
    else:
        figure = Figure(figsize=(max(4.5, 1.4 * most + 1.4), 1.5 * len(walks) + 1.4), layout="constrained")
        panels = figure.subplots(len(walks), most, squeeze=False, sharex=True, sharey=True)
        single = values.shape[-1] == 1
        for row, (name, (dims, _, values)) in zip(panels, walks.items(), strict=True):
            row[0].set_ylabel(name, color=styles[name].colour, parse_math=False)
            for axes, d, lines in zip(row, dims, values, strict=False):
                axes.set_title(f"$z_{{{d + 1}}}$")
                if single:
                    axes.plot(SPREAD, lines[:, 0], color=styles[name].colour, marker=".")
                    continue
                for t, colour in enumerate(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, STEPS))):
                    _draw_lines(axes, lines[t : t + 1], colour, f"{SPREAD[t]:+.2f}", marker=".")
        figure.supxlabel("prior standard deviations" if single else "feature (colour: prior standard deviations)")
        figure.supylabel("E[x | z]")
        _finish(figure, panels.ravel(), panels.size, legend=not single)
    heading(
        figure, comparison, f"One latent dimension at a time, from the posterior mean of held-out datum {datum + 1}"
    )
    return figure


@contextmanager
def _undisturbed(pair: Pair, seed: int) -> Iterator[None]:
    with evaluating(pair), isolated(seed, validation=False), torch.no_grad():
        yield


def _rows(args: Batch, index: Iterable[int]) -> Batch:
    length, rows = len(args[0]), list(index)
    return tuple(a[rows] if a.dim() and len(a) == length else a for a in args)


def _observed(pair: Pair, args: Batch, replayed: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """x and E[x | z], each of shape ``(B, features)``: z from the trace that is replayed, else from the prior.

    x is the site that observes the first column; if none does (it is an input), all observed sites side by side.
    """
    plate, n = data_plate(prototype(pair.model, args), args), len(args[0])
    model = pair.model if replayed is None else poutine.replay(pair.model, trace=replayed)
    pairs = []
    for node in prune_subsample_sites(poutine.trace(model).get_trace(*args)).nodes.values():
        if node["type"] != "sample" or not node["is_observed"]:
            continue
        fn = node["fn"]
        axis = 0 if plate is None else plate.dim + len(fn.batch_shape)
        value, mean = (v.expand(fn.shape()) for v in (node["value"], _moments(fn)[0]))
        if not value.dim() or value.shape[axis] != n:
            raise InputError(
                f"what the model observes has shape {tuple(value.shape)}, with no row for each of {n} data"
            )
        value, mean = (v.movedim(axis, 0).reshape(n, -1).double().cpu() for v in (value, mean))
        pairs.append((value, mean))
    if not pairs:
        raise InputError("the model observes nothing, so there is nothing to draw")
    first = args[0].reshape(n, -1).double().cpu()
    chosen = [p for p in pairs if p[0].shape == first.shape and torch.equal(p[0], first)][:1] or pairs
    data, means = (torch.cat(columns, 1).numpy() for columns in zip(*chosen, strict=True))
    return data, means


def _moments(fn: Any, draws: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation; where they have no closed form, of so many draws, or one draw and 0."""
    try:
        mean, deviation = fn.mean, fn.stddev
    except (NotImplementedError, AttributeError):
        mean = deviation = torch.tensor(math.nan)
    if bool(mean.isfinite().all()) and bool(deviation.isfinite().all()):
        return mean, deviation
    values = fn.sample((max(1, draws),)).double()
    return values.mean(0), values.std(0, correction=0)


def _walk(pair: Pair, heldout: Batch, datum: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Dimensions, where the walk starts in prior standard deviations, and E[x | z]: ``(D,), (D,), (D, STEPS, features)``."""
    heldout = _rows(heldout, range(min(1000, len(heldout[0]))))
    site = _vector(pair, heldout)
    fn = poutine.trace(pair.guide).get_trace(*heldout).nodes[site.name]["fn"]
    means = _moments(fn, draws=200)[0].expand(len(heldout[0]), -1)
    dims = means.var(0, correction=0).argsort(descending=True)[:MOST]
    args = _rows(heldout, [datum] * (len(dims) * STEPS))
    replayed = poutine.trace(pair.guide).get_trace(*args)
    prior = poutine.trace(poutine.replay(pair.model, trace=replayed)).get_trace(*args).nodes[site.name]["fn"]
    loc, scale = (m.expand(len(args[0]), -1)[0].to(means) for m in _moments(prior, draws=1000))
    z = means[datum].repeat(len(dims), STEPS, 1)
    for i, d in enumerate(dims):
        z[i, :, d] = loc[d] + scale[d] * torch.as_tensor(SPREAD).to(means)
    replayed.nodes[site.name]["value"] = z.reshape(-1, z.shape[-1]).to(site.dtype)
    _, values = _observed(pair, args, replayed)
    start = ((means[datum] - loc) / scale)[dims]
    return dims.tolist(), start.double().cpu().numpy(), values.reshape(len(dims), STEPS, -1)


def _vector(pair: Pair, args: Batch) -> Site:
    layout = prototype(pair.model, args)
    plate, sites = data_plate(layout, args), list(layout.latents.values())
    if len(sites) == 1 and plate is not None and plate.name in sites[0].plates:
        support: Any = sites[0].support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        real = isinstance(support, type(constraints.real))
        if real and len(sites[0].event_shape) == 1 and sites[0].batch_shape == (len(args[0]),):
            return sites[0]
    raise InputError("a walk through the latent space needs one latent site: real vectors, one for each datum")


def _image_shape(comparison: Any, values: np.ndarray) -> _Shape | None:
    shape: _Shape | None = comparison.data.spec.image_shape
    return shape if shape is not None and values.shape[1] == math.prod(shape) else None


def _grey_scale(comparison: Any) -> tuple[float, float]:
    # Of the data, not of each image: the same grey is the same number everywhere.
    if comparison.data.spec.support in ("boolean", "unit_interval"):
        return 0.0, 1.0
    return float(comparison.data.heldout[0].min()), float(comparison.data.heldout[0].max())


def _draw_images(axes: Axes, images: np.ndarray, scale: tuple[float, float]) -> _Shape:
    """Draw images of shape ``(rows, columns, height, width)`` as one; gives back height and width of a cell."""
    gap = max(1, images.shape[3] // 14)
    cells = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    rows, columns, height, width = cells.shape
    mosaic = cells.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)[:-gap, :-gap]
    grey = matplotlib.colormaps["gray"].with_extremes(bad="white")
    axes.imshow(mosaic, cmap=grey, vmin=scale[0], vmax=scale[1], interpolation="none")
    axes.autoscale(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return height, width


def _draw_lines(
    axes: Axes, values: np.ndarray, colour: Any, label: str, marker: str, width: float = 0.8, line: bool = True
) -> None:
    """Draw rows of values over their features; single numbers as points over their rows, with one entry in the legend."""
    single = values.shape[1] == 1
    lines = values.T if single else values
    style = {"marker": marker if single or lines.shape[1] < 4 or not line else "", "markersize": 4, "color": colour}
    for k, y in enumerate(lines):
        name = label if k == 0 else "_nolegend_"
        axes.plot(
            1 + np.arange(len(y)), y, linestyle="-" if line and not single else "", linewidth=width, label=name, **style
        )


def _finish(figure: Figure, panels: np.ndarray, used: int, legend: bool = True) -> None:
    """Remove the panels that were not used, and give the figure one legend, of its first panel and what others add."""
    for axes in panels[used:]:
        axes.remove()
    entries = {t: h for p in panels[:used] for h, t in zip(*p.get_legend_handles_labels(), strict=True)}
    if legend and entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(len(entries), 5))
