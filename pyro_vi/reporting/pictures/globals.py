"""Latents that all data share: their marginals, beside reference draws where the data have them, and coefficients by name."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from pyro_vi.comparing import Comparison
from pyro_vi.data import posteriordb
from pyro_vi.errors import InputError
from pyro_vi.programs import Give, Pair, evaluating, isolated
from pyro_vi.reporting.look import LOOK, heading, legend, looks
from pyro_vi.reporting.of_pairs import latents_of, of_each_pair, prior_of
from pyro_vi.reporting.pictures.facts import Facts, facts_of, real

DRAWS, MOST = 2000, 12
"""Draws of each guide, and most numbers whose marginals are shown."""


@matplotlib.rc_context(LOOK)
def marginals(comparison: Comparison, *, seed: int = 0) -> Figure:
    """Marginal posterior densities of the latents that all data share; in grey those of reference draws, if the data have them.

    Above each panel stands sd_q / sd of the reference, in the colour of its fit: below 1, q is too narrow.

    Args:
        comparison: fitted pairs and their data.
        seed: seed of the draws.

    Raises:
        InputError: all latents belong to single data, and there are no reference draws of them.
    """
    facts = facts_of(comparison)
    reference = reference_of(facts)
    found = of_each_pair(comparison, seed, lambda pair: _numbers(pair, facts, reference))
    names = list(next(iter(found.values())))
    if not names:
        raise InputError("no latent is shared by all data, so that there are no marginals to draw")
    shown, site = names[:MOST], coefficients_of(facts)
    labels = _labels(facts, site)
    across = min(4, len(shown))
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(max(5.4, 2.5 * across), 2.1 * down + 1.0), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    styles = looks(found)
    for axes, name in zip(panels, shown, strict=False):
        truth = reference.get(name)
        draws = {fit: values[name] for fit, values in found.items()}
        _draw_marginal(axes, labels.get(name, name), draws, truth, {fit: look.colour for fit, look in styles.items()})
    for axes in panels[len(shown) :]:
        axes.remove()
    entries: dict[str, Line2D | Patch] = {
        name: Line2D([], [], color=look.colour, linewidth=look.width) for name, look in styles.items()
    }
    if reference:
        entries["reference draws"] = Patch(color="0.8")
    legend(figure, entries)
    part = f" (the first {MOST} of {len(names)})" if len(names) > MOST else ""
    ratio = "; numbers: sd of q / sd of the reference" if reference else ""
    heading(figure, comparison, f"Marginal posterior densities{part}{ratio}", found)
    return figure


@matplotlib.rc_context(LOOK)
def coefficients(comparison: Comparison, *, seed: int = 0) -> Figure:
    """Posterior median of each coefficient, with its 50 % and 90 % intervals, by the names of the data's columns.

    Coefficients are a latent that all data share, a real vector with one number for each column, which it multiplies: where
    all columns are 0, its values do not matter.

    Args:
        comparison: fitted pairs and their data.
        seed: seed of the draws.

    Raises:
        InputError: the columns have no names, or no latent has one number for each.
    """
    facts = facts_of(comparison)
    site = coefficients_of(facts)
    if site is None:
        raise InputError(
            "no shared latent multiplies the named columns, one number each, so that there are no coefficients to draw"
        )
    found = of_each_pair(comparison, seed, lambda pair: latents_of(pair, facts.args, DRAWS)[site].reshape(DRAWS, -1))
    count, styles = len(facts.features), looks(found)
    figure = Figure(figsize=(6.4, 1.5 + (0.22 + 0.12 * len(found)) * count), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    offsets = np.linspace(-0.28, 0.28, len(found)) if len(found) > 1 else [0.0]
    for shift, (name, draws) in zip(offsets, found.items(), strict=True):
        colour = styles[name].colour
        places = np.arange(count) + shift
        low, lower, middle, upper, high = np.quantile(draws, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
        axes.hlines(places, low, high, color=colour, linewidth=1.1)
        axes.hlines(places, lower, upper, color=colour, linewidth=3.2)
        axes.plot(
            middle,
            places,
            styles[name].marker,
            color=colour,
            markersize=4,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=name,
        )
    axes.set_yticks(range(count), facts.features, parse_math=False)
    axes.set(ylim=(count - 0.5, -0.5), xlabel=f"{site} (thick: 50 %, thin: 90 %)")
    if len(found) > 1:
        legend(figure)
    heading(figure, comparison, "Coefficients: posterior medians and intervals", found)
    return figure


def coefficients_of(facts: Facts) -> str | None:
    """Name of the shared latent that is a real vector with one number for each named column, which it multiplies, or None."""
    shape = (len(facts.features),)
    sizes = {name: (*site.batch_shape, *site.event_shape) for name, site in facts.shared.items() if real(site)}
    return next((name for name, size in sizes.items() if size == shape and _multiplies(facts, name)), None)


def _labels(facts: Facts, site: str | None) -> dict[str, str]:
    """Names of coefficients by their column, and of numbers of groups by their group."""
    groups = next((one.classes for one in facts.spec.others if one.name == "group"), ())
    named = {site: facts.features} if site else {}
    for name, shared in facts.shared.items():
        if groups and shared.batch_shape == (len(groups),) and not shared.event_shape:
            named[name] = groups
    return {f"{name}[{k}]": f"{name}[{word}]" for name, words in named.items() for k, word in enumerate(words, 1)}


def _multiplies(facts: Facts, name: str) -> bool:
    """True if the site does not matter where all columns are 0, as a coefficient does not, and an intercept or a bias does."""
    args = (torch.zeros_like(facts.args[0]), *facts.args[1:])
    try:
        with evaluating(facts.pair), isolated(0, validation=False), torch.no_grad():
            here = prior_of(facts.pair, args)
            values = {site: here.nodes[site]["value"] for site in facts.layout.latents}
            with Give({**values, name: values[name] + 1.0}):
                there = prior_of(facts.pair, args)
            pairs = [(_log_p(here.nodes[site]), _log_p(there.nodes[site])) for site in facts.layout.observed]
            return all(torch.allclose(one, other, equal_nan=True) for one, other in pairs)
    except Exception:  # a model need not be defined there
        return False


def _log_p(node: Any) -> Tensor:
    value: Tensor = node["fn"].log_prob(node["value"])
    return value


def reference_of(facts: Facts) -> dict[str, np.ndarray]:
    """Reference draws of the posterior by the name of the number, if the data have them."""
    if facts.spec.name.split("(")[0] not in posteriordb.NAMES:
        return {}
    found = posteriordb.read(facts.spec.name.split("(")[0])
    draws = found.draws.reshape(-1, len(found.names)).numpy()
    return {name: draws[:, k] for k, name in enumerate(found.names)}


def numbers_of(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Draws of each number of a site, ``beta[1]``, ``beta[2]``, …, counted from 1; a single number has the site's name.

    Example:
        >>> {name: draws.tolist() for name, draws in numbers_of("b", np.array([[1.0, 2.0], [3.0, 4.0]])).items()}
        {'b[1]': [1.0, 3.0], 'b[2]': [2.0, 4.0]}
    """
    flat = values.reshape(len(values), -1)
    if values.ndim == 1 or flat.shape[1] == 1:
        return {name: flat[:, 0]}
    return {
        f"{name}[{','.join(str(i + 1) for i in index)}]": flat[:, k]
        for k, index in enumerate(np.ndindex(values.shape[1:]))
    }


def _numbers(pair: Pair, facts: Facts, reference: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draws by the name of the number: of those in the reference, or of all shared latents if none of them is."""
    draws = latents_of(pair, facts.args, DRAWS)
    every = {name: one for site, values in draws.items() for name, one in numbers_of(site, values).items()}
    known = {name: one for name in reference if (one := _by_reference(name, every, reference)) is not None}
    shared = {n: one for site in facts.shared for n, one in numbers_of(site, draws[site]).items()}
    return known or shared


def _by_reference(name: str, every: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Draws of the number that a reference calls ``name``: a site of that name, or the coefficient of a regression."""
    if name in every:
        return every[name]
    given = sum(other.startswith("beta[") for other in reference)
    weights = sum(other == "weights" or other.startswith("weights[") for other in every)
    first = given == weights + 1 and "intercept" in every  # beta[1] is then the intercept
    same = {"alpha": "intercept", "mu": "intercept", "sigma": "scale", "tau": "group_scale"}
    if name.startswith("beta[") and given in (weights, weights + first):
        k = int(name[5:-1]) - first
        same[name] = "intercept" if k == 0 else "weights" if weights == 1 else f"weights[{k}]"
    return every.get(same.get(name, ""))


def _draw_marginal(
    axes: Axes, name: str, found: Mapping[str, np.ndarray], truth: np.ndarray | None, colours: Mapping[str, str]
) -> None:
    every = list(found.values()) + ([] if truth is None else [truth])
    low, high = (float(np.median([np.quantile(v, q) for v in every])) for q in (0.0005, 0.9995))
    wide = [min(np.quantile(v, 0.005) for v in every), max(np.quantile(v, 0.995) for v in every)]
    low, high = min(low, wide[0]), max(high, wide[1])
    if truth is not None:
        axes.hist(truth, bins=50, range=(low, high), density=True, color="0.8")
    tops = []
    for fit, values in found.items():
        x, y = _smooth(values)
        axes.plot(x, y, color=colours[fit], linewidth=1.5)
        tops.append(y.max())
    axes.set(xlim=(low, high), yticks=[])
    axes.set_ylim(bottom=0)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(name, parse_math=False)
    if truth is not None:
        for k, (fit, values) in enumerate(list(found.items())[:4]):
            ratio = float(values.std() / truth.std())
            axes.text(
                0.99,
                0.98 - 0.13 * k,
                f"{ratio:.2f}",
                color=colours[fit],
                transform=axes.transAxes,
                ha="right",
                va="top",
            )


def _smooth(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A kernel estimate of the density, which ends where the draws end; a point estimate is a narrow peak."""
    if np.ptp(values) == 0:
        at, width = float(values[0]), 1e-3 * max(1.0, abs(float(values[0])))
        return np.array([at - width, at, at + width]), np.array([0.0, 1 / width, 0.0])
    from arviz_stats.base import array_stats  # imported here because it takes as long as Pyro

    x, y, _ = array_stats.kde(values)
    return np.asarray(x), np.asarray(y)
