"""Samples of each class, from models that take labels."""

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from pyro_vi.comparing import Comparison
from pyro_vi.data import Batch
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair
from pyro_vi.reporting.look import LOOK, heading, looks
from pyro_vi.reporting.mosaics import draw_images, image_shape
from pyro_vi.reporting.of_pairs import observed, of_each_pair, prior_of, rows_of
from pyro_vi.reporting.pictures.facts import Facts, facts_of

MOST = 12
"""Most classes that are shown."""


@matplotlib.rc_context(LOOK)
def samples_by_class(comparison: Comparison, *, columns: int = 10, seed: int = 0) -> Figure:
    """E[x | z, y] at draws from the prior, a row of images for each class y that the model is given.

    Args:
        comparison: fitted pairs and their data.
        columns: number of draws of each class.
        seed: seed of the draws, the same for all pairs.

    Raises:
        InputError: the data are no images, or the batch has no column of labels.
    """
    facts = facts_of(comparison)
    if not by_class(facts):
        raise InputError("the data are no images with a column of labels, so that there are no samples of a class")
    labels = facts.labels
    assert labels is not None
    names = labels[1][:MOST]
    found = of_each_pair(comparison, seed, lambda pair: _samples(pair, facts, len(names), columns))
    shape = image_shape(comparison, next(iter(found.values())))
    assert shape is not None
    styles = looks(found)
    width, height = 0.42 * columns + 0.09 * max(map(len, names)) + 0.2, 0.42 * len(names) * shape[0] / shape[1]
    across = min(3, len(found))
    down = -(-len(found) // across)
    size = (max(5.0, across * width), down * (height + 0.3) + 0.7)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.05))
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (name, values) in zip(panels, found.items(), strict=False):
        cell = draw_images(axes, values, (len(names), columns), comparison)
        axes.set_yticks(np.arange(len(names)) * cell[0] + (shape[0] - 1) / 2, names, parse_math=False)
        axes.tick_params(length=0)
        if len(found) > 1:
            axes.set_title(name, color=styles[name].colour, parse_math=False)
    for axes in panels[len(found) :]:
        axes.remove()
    heading(figure, comparison, f"E[x | z, y] at {columns} draws z from the prior for each class y", found)
    return figure


def by_class(facts: Facts) -> bool:
    """True if data are images, and the batch has a column of labels."""
    return facts.image is not None and "label" in facts.columns and facts.labels is not None


def _samples(pair: Pair, facts: Facts, classes: int, columns: int) -> np.ndarray:
    count = classes * columns
    args: Batch = rows_of(facts.args, [k % facts.rows for k in range(count)])
    given = torch.arange(classes).repeat_interleave(columns)
    label = facts.columns["label"]
    args = tuple(given.to(label) if before is label else after for before, after in zip(facts.args, args, strict=True))
    return observed(pair, args, prior_of(pair, args))[1]
