"""Predictions of a target from inputs: bands over a single input, or intervals beside the observed values."""

import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pyro_vi.comparing import Comparison
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair
from pyro_vi.reporting.look import LOOK, Look, heading, legend, looks
from pyro_vi.reporting.of_pairs import Draws, draws_of, of_each_pair, rows_of
from pyro_vi.reporting.pictures.facts import Facts, facts_of
from pyro_vi.reporting.pictures.latents import CLASSES

DRAWS, MOST = 400, 200
"""Draws of each guide, and most data that are shown."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@matplotlib.rc_context(LOOK)
def predictions(comparison: Comparison, *, seed: int = 0) -> Figure:
    """The target as observed, and its posterior predictive distribution: medians with 50 % and 90 % bands or intervals.

    With a single input, bands go over it. With several, data are ordered by their predicted median. Of a target of truth
    values, the bands are those of its probability. The share of the data inside the 90 % intervals is said. Of a target of
    classes, the predictive probability of each class is shown, data in the order of their class, which is drawn below them.

    Args:
        comparison: fitted pairs and their data.
        seed: seed of the draws.

    Raises:
        InputError: the batch has no column with a target of one number for each datum.
    """
    facts = facts_of(comparison)
    if not has_target(facts):
        raise InputError(
            "the batch has no column with a target of one number, so that there are no predictions to draw"
        )
    args = facts.args
    if facts.rows > MOST and facts.pair.separable(facts.args, MOST):
        args = rows_of(facts.args, range(MOST))
    found = of_each_pair(comparison, seed, lambda pair: _predicted(pair, Facts(pair, facts.data, facts.on, args)))
    target = _target(Facts(facts.pair, facts.data, facts.on, args))
    inputs = args[0].double().cpu().numpy().reshape(len(target), -1)
    styles = looks(found)
    across = min(3, len(found))
    down = math.ceil(len(found) / across)
    figure = Figure(figsize=(max(5.8, 3.7 * across), 3.0 * down + 1.1), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    classes = next((one.classes for one in facts.spec.others if one.name in ("target", "label")), ())
    kind = next(iter(found.values()))[1]
    for axes, (name, (predicted, kind)) in zip(panels, found.items(), strict=False):
        own = name if len(found) > 1 else ""
        if kind == "class":
            right = _by_class(axes, target, predicted, len(classes))
            said = f"{100 * right:.0f} % have the class with the largest probability"
            axes.set_title("\n".join(filter(None, (own, said))), color=styles[name].colour, parse_math=False)
            continue
        bands = np.quantile(predicted, QUANTILES, axis=0)
        if inputs.shape[1] == 1:
            _over_input(axes, inputs[:, 0], target, bands, styles[name])
        else:
            _in_order(axes, target, bands, styles[name])
        inside = (target >= bands[0]) & (target <= bands[-1])
        coverage = "" if kind == "boolean" else f"{100 * float(inside.mean()):.0f} % of the data inside 90 %"
        axes.set_title("\n".join(filter(None, (own, coverage))), color=styles[name].colour, parse_math=False)
    features = facts.features
    single = inputs.shape[1] == 1
    label = (features[0] if len(features) == 1 else "x") if single else "data, in the order of their predicted median"
    label = "data, in the order of their class" if kind == "class" else label
    for k, axes in enumerate(panels[: len(found)]):
        axes.set_xlabel(label, parse_math=False)
        if k % across == 0:
            axes.set_ylabel("probability" if kind == "class" else "target")
    for axes in panels[len(found) :]:
        axes.remove()
    if kind == "class":
        names = classes or tuple(map(str, range(int(target.max()) + 1)))
        legend(figure, {str(name): Patch(color=CLASSES[k % len(CLASSES)]) for k, name in enumerate(names)})
        heading(figure, comparison, f"Class of {len(target)} {facts.on} data, and its predictive probabilities", found)
        return figure
    what = "probability" if kind == "boolean" else "posterior predictive"
    heading(figure, comparison, f"Target of {len(target)} {facts.on} data, {what}: median, 50 % and 90 %", found)
    return figure


def has_target(facts: Facts) -> bool:
    """True if the batch has a column with a target, a number for each datum, and all latents are shared: a regression."""
    return facts.target is not None


def _target(facts: Facts) -> np.ndarray:
    assert facts.target is not None
    return np.asarray(facts.target.double().cpu().numpy())


def _predicted(pair: Pair, facts: Facts) -> tuple[np.ndarray, str]:
    """Draws of the target of each datum, of shape ``(draws, rows)``; of its probability, if it is a truth value.

    And its kind: ``"boolean"``, ``"class"`` or ``"number"``.
    """
    draws: Draws = draws_of(pair, facts.args, DRAWS)
    target = _target(facts)
    for name, data in draws.data.items():
        if data.shape == target.shape and np.array_equal(data.astype(float), target):
            if facts.layout.observed[name].distribution.startswith("Categorical"):
                return draws.drawn[name], "class"
            boolean = draws.sites[name].boolean
            kind = "boolean" if boolean else "number"
            return (draws.means if boolean else draws.drawn)[name].astype(float), kind
    raise InputError("no observed site has the values of the target, so that there are no predictions of it")


def _by_class(axes: Axes, target: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Draw the shares of the classes among the predictions of each datum; return the share of data that have the largest."""
    count = max(classes, int(target.max()) + 1)
    shares = np.stack([(predicted == k).mean(0) for k in range(count)])
    own = shares[target.astype(int), np.arange(len(target))]
    order = np.lexsort((-own, target))
    at, below = 1 + np.arange(len(target)), np.zeros(len(target))
    colours = [CLASSES[k % len(CLASSES)] for k in range(count)]
    for share, colour in zip(shares[:, order], colours, strict=True):
        axes.bar(at, share, 1.0, below, color=colour, linewidth=0)
        below = below + share
    axes.bar(at, 0.05, 1.0, -0.08, color=[colours[int(k)] for k in target[order]], linewidth=0)
    axes.set(ylim=(-0.09, 1.0), xlim=(0.5, len(target) + 0.5))
    return float((shares.argmax(0) == target).mean())


def _over_input(axes: Axes, x: np.ndarray, y: np.ndarray, bands: np.ndarray, look: Look) -> None:
    order = np.argsort(x, kind="stable")
    at, (low, lower, middle, upper, high) = x[order], bands[:, order]
    axes.fill_between(at, low, high, color=look.colour, alpha=0.18, linewidth=0, label="90 %")
    axes.fill_between(at, lower, upper, color=look.colour, alpha=0.32, linewidth=0, label="50 %")
    axes.plot(at, middle, color=look.colour, linewidth=1.4, label="median")
    axes.plot(x, y, ".", color="0.15", markersize=3.5, label="observed")


def _in_order(axes: Axes, y: np.ndarray, bands: np.ndarray, look: Look) -> None:
    order = np.argsort(bands[2], kind="stable")
    at, (low, lower, middle, upper, high) = 1 + np.arange(len(y)), bands[:, order]
    axes.vlines(at, low, high, color=look.colour, alpha=0.35, linewidth=0.9)
    axes.vlines(at, lower, upper, color=look.colour, alpha=0.6, linewidth=1.8)
    axes.plot(at, middle, color=look.colour, linewidth=1.2)
    axes.plot(at, y[order], ".", color="0.15", markersize=3.5)
