"""A target in the plane: its true density, and draws of each fitted guide."""

import math
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_vi.comparing import Comparison
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair
from pyro_vi.reporting.look import LOOK, heading, looks
from pyro_vi.reporting.of_pairs import latents_of, of_each_pair
from pyro_vi.reporting.pictures.facts import Facts, facts_of

GRID, DRAWS = 240, 2000
"""Points along each side of the true density, and draws of each guide."""
INSIDE = (0.99, 0.9, 0.5)
"""Probability inside each contour of the true density."""


@matplotlib.rc_context(LOOK)
def density(comparison: Comparison, *, seed: int = 0) -> Figure:
    """Contours of the true density, which hold 50, 90 and 99 % of it, and draws of each guide over them.

    The density is that of the model's method ``log_density``, which takes two numbers side by side, ``(..., 2)``, and need not
    be normalised: the latents, or the first two numbers of them. The share of the draws inside each contour is said; of the
    true density it is 50, 90 and 99 %.

    Args:
        comparison: fitted pairs and their data.
        seed: seed of the draws.

    Raises:
        InputError: the model has no density in the plane.
    """
    facts = facts_of(comparison)
    if not in_plane(facts):
        raise InputError("the model has no method log_density of two numbers, so that there is no true density to draw")
    names = list(facts.layout.latents)
    found = of_each_pair(comparison, seed, lambda pair: _draws(pair, facts, names))
    log_density = facts.method("log_density")
    x, y, log_p, levels = _grid(log_density, np.concatenate(list(found.values())), facts.spec.dtype)
    across = 2 if len(found) == 3 else min(3, 1 + len(found))
    down = math.ceil((1 + len(found)) / across)
    figure = Figure(figsize=(3.4 * across, 3.3 * down + 1.0), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    styles = looks(found)
    panels[0].contourf(x, y, log_p, levels=[*levels, float(log_p.max()) + 1e-6], colors=["0.88", "0.72", "0.5"])
    panels[0].set_title("true density")
    for axes in panels[: 1 + len(found)]:
        axes.contour(x, y, log_p, levels=levels, colors="0.25", linewidths=0.9, linestyles="solid")
    for axes, (name, draws) in zip(panels[1:], found.items(), strict=False):
        colour = styles[name].colour
        axes.scatter(draws[:, 0], draws[:, 1], s=4, color=colour, alpha=0.35, linewidths=0, zorder=0, rasterized=True)
        inside = _log_p_at(log_density, draws, facts.spec.dtype)
        shares = [f"{100 * float((inside >= level).mean()):.0f}" for level in levels[::-1]]
        axes.set_title(f"{name}\n{', '.join(shares)} % inside", color=colour, parse_math=False)
    labels = _labels(facts, names)
    for k, axes in enumerate(panels):
        if k > len(found):
            axes.remove()
            continue
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        axes.set_xlabel(labels[0], parse_math=False)
        if k % across == 0:
            axes.set_ylabel(labels[1], parse_math=False)
        axes.tick_params(labelbottom=True)
    what = f"True density, contours around 50, 90 and 99 % of it, and {DRAWS} draws of q"
    heading(figure, comparison, what, found)
    return figure


def in_plane(facts: Facts) -> bool:
    """True if the model has a density of its own, of two numbers: of latents that do not belong to single data."""
    log_density = facts.method("log_density")
    if log_density is None or facts.local or sum(site.numel for site in facts.layout.latents.values()) < 2:
        return False
    return _log_p_at(log_density, np.zeros((3, 2)), facts.spec.dtype).shape == (3,)


def _draws(pair: Pair, facts: Facts, names: list[str]) -> np.ndarray:
    values = latents_of(pair, facts.args, DRAWS)
    return np.concatenate([values[name].reshape(DRAWS, -1) for name in names], 1)[:, :2].astype(float)


def _log_p_at(log_density: Any, points: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(log_density(torch.as_tensor(points, dtype=dtype)).double().cpu().numpy())


def _grid(
    log_density: Any, draws: np.ndarray, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[float]]:
    """A grid over the outermost contour and all but the outermost draws, log p on it, ``(y, x)``, and the contours' levels."""
    low, high = np.quantile(draws, 0.005, axis=0), np.quantile(draws, 0.995, axis=0)
    levels: list[float] = []
    for _ in range(8):
        # Levels are those of a wider grid: probability outside of the picture counts.
        x, y, log_p = _evaluated(log_density, 2 * low - high - 1e-6, 2 * high - low + 1e-6, dtype)
        levels = _levels(log_p)
        inside = log_p >= levels[0]
        columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
        before = low, high
        low = np.minimum(low, [x[columns[0]], y[rows[0]]])
        high = np.maximum(high, [x[columns[-1]], y[rows[-1]]])
        if np.array_equal(before, (low, high)):
            break
    pad = 0.06 * (high - low)
    return *_evaluated(log_density, low - pad, high + pad, dtype), levels


def _evaluated(
    log_density: Any, low: np.ndarray, high: np.ndarray, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = (np.linspace(a, b, GRID) for a, b in zip(low, high, strict=True))
    mesh = np.stack(np.meshgrid(x, y), -1)
    return x, y, _log_p_at(log_density, mesh.reshape(-1, 2), dtype).reshape(GRID, GRID)


def _levels(log_p: np.ndarray) -> list[float]:
    """Levels of log p whose contours hold the probabilities of `INSIDE`, in rising order."""
    ordered = np.sort(log_p.ravel())[::-1]
    mass = np.exp(ordered - ordered[0]).cumsum()
    return [float(ordered[(mass / mass[-1]).searchsorted(share)]) for share in INSIDE]


def _labels(facts: Facts, names: list[str]) -> list[str]:
    labels = []
    for name in names:
        size = facts.layout.latents[name].numel
        labels += [name] if size == 1 else [f"{name}[{k}]" for k in range(1, size + 1)]
    return labels
