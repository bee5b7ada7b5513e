"""The figure of collapse: what each unit of the latents knows about its datum."""

import math

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pyro_vi.reporting.look import LOOK, legend, looks

MOST = 60
"""Most units that are drawn: those with the largest KL."""
COLOURS = {"": "#0072B2", "model": "#999999", "optimiser": "#E69F00", "guide": "#D55E00", "unclear": "#CC79A7"}
"""Colours of units by the cause of their collapse."""
WORDS = {
    "": "not collapsed",
    "model": "the decoder ignores it",
    "optimiser": "the optimiser left it unused",
    "guide": "the guide has collapsed",
    "unclear": "collapsed, cause unclear",
}


@matplotlib.rc_context(LOOK)
def plot_collapse(found: xr.Dataset) -> Figure:
    """KL of each unit, sorted, with two standard errors; active units have a dot, and the colour is the cause of a collapse.

    A bar is the KL; units without one have their mutual information. The ticks on the bars are the bounds of the mutual
    information. For a linear decoder, the second panel has the eigenvalues of the covariance and what the decoder uses.

    Args:
        found: a dataset of `pyro_vi.collapse`.

    Example:
        >>> import torch
        >>> from pyro_vi.data import DataSpec
        >>> from pyro_vi.diagnostics import collapse
        >>> from pyro_vi.models.linear_gaussian import LinearGaussian
        >>> from pyro_vi.guides.exact import Exact
        >>> spec = DataSpec("x", 3, (2,), "real", torch.float32, "made up")
        >>> model = LinearGaussian(spec, latent_dim=2, weight=[[1.0, 0.0], [1.0, 0.0]])
        >>> x = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [2.0, 1.0]])
        >>> [panel.get_ylabel() for panel in plot_collapse(collapse(model, Exact(model, (x,)), x)).axes]
        ['KL from the prior (nats)', 'variance / noise']
    """
    height, error = (np.where(np.isnan(found.kl), found[name], found[kl]) for name, kl in _SIDES)
    order = np.argsort(-np.nan_to_num(height), kind="stable")[:MOST]
    linear = "eigenvalue" in found
    size = min(11.0, max(4.4, 1.6 + 0.26 * len(order)) + (3.4 if linear else 0))
    figure = Figure(figsize=(size, 3.6), layout="constrained")
    panels = figure.subplots(
        1, 2 if linear else 1, squeeze=False, width_ratios=[max(1.0, len(order) / 12), 1.0][: 1 + linear]
    )[0]
    axes, place = panels[0], np.arange(len(order))
    causes = [str(cause) for cause in found.cause.values[order]]
    axes.bar(place, height[order], color=[COLOURS[cause] for cause in causes], width=0.7)
    axes.errorbar(
        place, height[order], 2 * np.nan_to_num(error[order]), fmt="none", ecolor="0.25", elinewidth=0.8, capsize=2
    )
    for side in ("lower", "upper"):
        axes.plot(place, found[f"information_{side}"].values[order], "_", color="black", markersize=7)
    active = found.active.values[order]
    top = float(np.nanmax(height[order] + 2 * np.nan_to_num(error[order]))) or 1.0
    axes.plot(place[active], np.full(active.sum(), 1.08 * top), "o", color="black", markersize=3.5)
    axes.axhline(found.attrs["thresholds"]["kl"], color="0.4", linewidth=0.8, linestyle=":")
    axes.set_ylim(min(0.0, float(np.nanmin(height[order]))), 1.16 * top)
    small = 8 if len(order) <= 20 else 6
    axes.set_xticks(place, found.unit.values[order], rotation=90, fontsize=small, parse_math=False)
    known = "KL from the prior" if not np.isnan(found.kl).any() else "KL from the prior, or information"
    axes.set_ylabel(f"{known} (nats)")
    entries: dict[str, Artist] = {WORDS[cause]: Patch(color=COLOURS[cause]) for cause in COLOURS if cause in causes}
    entries |= {
        "active unit": Line2D([], [], marker="o", color="black", linestyle="", markersize=3.5),
        "mutual information, bounds": Line2D([], [], marker="_", color="black", linestyle="", markersize=7),
    }
    if linear:
        _draw_spectrum(panels[1], found)
    legend(figure, entries)
    left = len(found.unit) - len(order)
    text = f"{found.attrs['active']} of {found.attrs['units']} units are active" + (
        f" ({left} are not shown)" if left else ""
    )
    figure.suptitle(text, fontsize=10)
    return figure


_SIDES = (("information_lower", "kl"), ("information_lower_se", "kl_se"))


def _draw_spectrum(axes: matplotlib.axes.Axes, found: xr.Dataset) -> None:
    """Eigenvalues of the covariance in units of the noise, and the variances along the decoder's directions."""
    count = min(len(found.direction), max(12, 2 * found.attrs["units"]))
    place = 1 + np.arange(count)
    look = looks(["data", "decoder"])
    axes.plot(place, np.maximum(found.eigenvalue.values[:count], 1e-3), "o", color="black", markersize=4, label="data")
    axes.plot(
        place, found.signal.values[:count], "x", color=look["decoder"].colour, markersize=5, label="decoder and noise"
    )
    axes.axhline(1, color="0.4", linewidth=0.8, linestyle=":")
    if found.signal.values[0] > 30:
        axes.set_yscale("log")
    axes.set(xlabel="direction", ylabel="variance / noise")
    axes.locator_params(axis="x", integer=True)
    axes.legend()
    if not math.isnan(found.attrs["noise"]):
        axes.set_title(f"{found.attrs['usable']} eigenvalues exceed the noise", fontsize=9)
