"""The measurements for the page of a report: `MEASURES` has all diagnostics, and `diagnosed` calls them.

Each may fail, or not apply, without the others. `draw_of` says how its pictures are drawn.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pyro_vi.comparing.evaluating import measured
from pyro_vi.data import Batch, length_of
from pyro_vi.diagnostics import (
    calibration_of_pair,
    collapse_of_pair,
    evidence_of_pair,
    gaps_of_pair,
    linear_response_of_pair,
    moments_of_pair,
    reliability_of_pair,
)
from pyro_vi.elbo import Facts
from pyro_vi.programs import Pair
from pyro_vi.reporting.page import Failed, Subject
from pyro_vi.reporting.page.tabulating import Found
from pyro_vi.reporting.plots_of_predictions import plot_predictive
from pyro_vi.reporting.predicting import predictive_of_pair, predictive_tree

DRAWS = 2000
"""Draws of each datum for its evidence and its k-hat."""
FEW = 20
"""Most data of which the parts of the gap are found, which are searched for datum by datum."""


@dataclass(frozen=True)
class Measure:
    """A diagnostic as the page calls it.

    Attributes:
        compute: gives the dataset of a pair on some rows, from draws with a seed.
        rows: most rows, evenly spaced among those of the page; None for all of these.
        apart: it is asked of training rows too, if the page is about held-out ones.
        draw: makes figures by their captions, from the datasets and from what ``compute`` gave besides.
    """

    compute: Callable[[Pair, Batch, int], xr.Dataset | tuple[xr.Dataset, Any]]
    rows: int | None = None
    apart: bool = False
    draw: Callable[[Found, Any], Mapping[str, Figure]] | None = None


def _predictive(pair: Pair, args: Batch, seed: int) -> tuple[xr.Dataset, xr.DataTree]:
    tree = predictive_tree(pair, args, draws=200, seed=seed)
    return predictive_of_pair(pair, args, draws=200, seed=seed, tree=tree), tree


def _predictive_figures(_: Found, tree: xr.DataTree) -> dict[str, Figure]:
    said = {
        "predictive": "Densities of data drawn again from the fitted latents (thin), and of the observed data",
        "pit": "Ranks of the observed numbers among data drawn again from the fitted latents, less those of uniform ranks",
        "pit_new": "Ranks of the observed numbers among new data drawn from the model, less those of uniform ranks",
        "predictive_new": "Densities of new data drawn from the model (thin), and of the observed data",
    }
    return {said.get(name, name.replace("_", " ")): figure for name, figure in plot_predictive(tree).items()}


MEASURES: dict[str, Measure] = {
    "evidence": Measure(lambda pair, args, seed: evidence_of_pair(pair, args, particles=DRAWS, seed=seed)),
    "gaps": Measure(
        lambda pair, args, seed: gaps_of_pair(
            pair, args, families=("diag_normal", "full_normal"), draws=200, particles=DRAWS, seed=seed
        ),
        rows=FEW,
        apart=True,
    ),
    "reliability": Measure(lambda pair, args, seed: reliability_of_pair(pair, args, draws=DRAWS, seed=seed)),
    "calibration": Measure(lambda pair, args, seed: calibration_of_pair(pair, args, seed=seed)),
    "moments": Measure(lambda pair, args, seed: moments_of_pair(pair, args, draws=DRAWS, seed=seed, most=FEW)),
    "linear_response": Measure(lambda pair, args, seed: linear_response_of_pair(pair, args, seed=seed)),
    "collapse": Measure(lambda pair, args, seed: collapse_of_pair(pair, args, seed=seed)),
    "predictive": Measure(_predictive, 200, draw=_predictive_figures),
}
"""The diagnostics of the page, by the names of their sections."""


def diagnosed(subject: Subject, facts: Facts, seed: int) -> dict[str, Mapping[str, xr.Dataset] | Failed]:
    """Return the datasets of all diagnostics by name of their rows, or why there are none."""
    pair = subject.run.pair
    main, args = next(iter(subject.args.items()))
    if not facts.points:
        # Near the posterior, the draws' log p − log q vary far less than log p(x | z) does beside a closed-form KL.
        subject.bounds[main] = measured(pair, args, facts, subject.run.data, draws=100, seed=seed, kl="sampled")
    found: dict[str, Mapping[str, xr.Dataset] | Failed] = {}
    for name, measure in MEASURES.items():
        of = [_measured(name, subject, rows, seed) for rows in (subject.args if measure.apart else [main])]
        datasets = {rows: one for rows, one in zip(subject.args, of, strict=False) if not isinstance(one, Failed)}
        found[name] = datasets or next(one for one in of if isinstance(one, Failed))
    return found


def _measured(name: str, subject: Subject, rows: str, seed: int) -> xr.Dataset | Failed:
    """Compute a diagnostic on some of the page's rows; its dimension ``datum`` gets the places among these."""
    measure, pair, args, start = MEASURES[name], subject.run.pair, subject.args[rows], time.perf_counter()
    count = length_of(args)
    args, numbers = pair.evenly(args, count if measure.rows is None else measure.rows)
    index = np.array(numbers)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            computed = measure.compute(pair, args, seed)
        found, kept = computed if isinstance(computed, tuple) else (computed, None)
        if "datum" in found.dims:
            places = found["datum"].values if "datum" in found.coords else np.arange(found.sizes["datum"])
            found = found.assign_coords(datum=index[places.astype(int)])
    except Exception as error:  # what does not apply is said on the page
        return Failed.by(error)
    rests = (
        {"rests_on": f"{len(index):,} of {subject.counts[rows]:,} {rows} rows, evenly spaced"}
        if len(index) < count
        else {}
    )
    if kept is not None:
        subject.kept[name] = kept
    return found.assign_attrs(seconds=time.perf_counter() - start, **rests)


def draw_of(name: str, subject: Subject) -> Callable[[Found], Mapping[str, Figure]] | None:
    """Return what draws the figures of a diagnostic, by its name; None if the page has a figure of its own, or none."""
    draw = MEASURES[name].draw if name in MEASURES else None
    return None if draw is None else lambda found: draw(found, subject.kept.get(name))
