"""The figure of the calibration of a guide: distribution functions of its ranks, and the coverage of its intervals."""

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vi.diagnostics import JOINT, LIKELIHOOD, band, edges
from pyro_vi.errors import InputError
from pyro_vi.reporting.look import LOOK, Look, legend, looks

WORST = 3
"""Most latent numbers that are drawn."""
BAND = 0.95
"""Probability that a distribution function of uniform ranks lies within its band, all along."""


@matplotlib.rc_context(LOOK)
def plot_calibration(found: xr.Dataset) -> Figure:
    """Draw the calibration of a guide: of the three worst latent numbers, of log p(x | z) and of log p(x, z).

    On the left, the distribution function of the ranks minus that of uniform ones, with the band in which each of them lies
    with a probability of 95 % if the guide is the posterior. That of a guide that is too narrow is above 0 first and then
    below, that of a wide one the other way round; that of a guide whose values are too high is above 0 throughout. On the
    right, the share of true values that central intervals hold, against their probability, with two standard errors:
    below the diagonal the guide is too narrow.

    Args:
        found: the result of `pyro_vi.calibration`, or of `pyro_vi.refitted_calibration`.

    Returns:
        A figure, which has no window.

    Raises:
        InputError: the result has no numbers.

    Example:
        >>> import torch
        >>> from pyro_vi import calibration
        >>> from pyro_vi.programs import build_pair
        >>> from pyro_vi.data import load
        >>> data = load(torch.randn(9, 3), heldout=0)
        >>> pair = build_pair("linear_gaussian(latent_dim=1)", "diag_normal", data)
        >>> len(plot_calibration(calibration(pair.model, pair.guide, data.example(9), simulations=50)).axes)
        2
    """
    if "quantity" not in found.sizes or found.p_adjusted.isnull().all():
        raise InputError(f"there is no calibration to draw: {found.attrs.get('sentences', ['no simulations'])[0]}")
    names = _shown(found)
    latent = [name for name in names if name not in (LIKELIHOOD, JOINT)]
    styles = looks([*latent, *(name for name in names if name not in latent)])
    figure = Figure(figsize=(7.6, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_functions(left, found, styles)
    _draw_coverage(right, found, latent, styles)
    legend(figure)
    sets = "data sets" if found.attrs["per"] == "data set" else "data"
    count = found.attrs["simulations"]
    of = int(((found.kind != "density") & found.p_adjusted.notnull()).sum())
    what = f"Calibration on {count} {sets} simulated from the model"
    if of > len(latent):
        what += f" (the {len(latent)} worst of {of} latent numbers)"
    figure.suptitle(what, fontsize=10, parse_math=False)
    return figure


def _shown(found: xr.Dataset) -> list[str]:
    """The worst latent numbers, the worst first, and the log-densities."""
    tested = found.isel(quantity=np.flatnonzero(found.p_adjusted.notnull().values))
    latent = tested.isel(quantity=np.flatnonzero(tested.kind.values != "density"))
    order = np.lexsort((-latent.ks.values, latent.p_adjusted.values))[:WORST]
    densities = [name for name in (LIKELIHOOD, JOINT) if name in tested.quantity.values]
    return [*(str(latent.quantity.values[i]) for i in order), *densities]


def _draw_functions(axes: Axes, found: xr.Dataset, styles: dict[str, Look]) -> None:
    draws = int(found.attrs["draws"])
    places = edges(draws)
    share = places / (draws + 1)
    # Masked entries leave some quantities fewer simulations; the band of the fewest is the widest.
    lower, upper = band(int(found.number.sel(quantity=list(styles)).min()), draws, BAND)
    label = f"band of the posterior ({100 * BAND:.0f} %)"
    axes.fill_between(share, lower - share, upper - share, color="0.88", linewidth=0, label=label)
    axes.axhline(0, color="0.6", linewidth=0.8)
    for name, look in styles.items():
        ranks = found["rank"].sel(quantity=name).values
        ranks = np.sort(ranks[~np.isnan(ranks)])
        below = np.searchsorted(ranks, places) / len(ranks) - share
        across, up = np.array([0, *share, 1]), np.array([0, *below, 0])
        dashed = "--" if name in (LIKELIHOOD, JOINT) else "-"
        axes.plot(across, up, color=look.colour, linestyle=dashed, linewidth=1.4, label=name)
    axes.set(xlabel="rank of the true value among the draws, from 0 to 1", ylabel="distribution function − uniform")
    axes.set_xlim(0, 1)


def _draw_coverage(axes: Axes, found: xr.Dataset, names: list[str], styles: dict[str, Look]) -> None:
    levels = found.level.values * 100
    axes.plot([40, 100], [40, 100], color="0.6", linewidth=0.8, zorder=0)
    some = [name for name in names if str(found.kind.sel(quantity=name).values) == "latent"] or list(styles)
    for i, name in enumerate(some):
        one, look = found.sel(quantity=name), styles[name]
        axes.errorbar(
            levels + 0.7 * (i - (len(some) - 1) / 2),
            100 * one.coverage.values,
            200 * one.coverage_se.values,
            color=look.colour,
            marker=look.marker,
            markersize=4,
            linewidth=1,
            capsize=2,
        )
    axes.set_xticks(levels)
    axes.set(xlabel="probability of the interval (%)", ylabel="true values in it (%)", xlim=(45, 100))
    axes.set_ylim(min(45.0, axes.get_ylim()[0]), 102)
