"""The words that the topics of a model prefer, as a table."""

import inspect
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_vi.comparing import Comparison
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair
from pyro_vi.reporting.look import LOOK, heading, looks
from pyro_vi.reporting.of_pairs import of_each_pair, posterior_of
from pyro_vi.reporting.pictures.facts import Facts, facts_of

ACROSS, MOST = 5, 20
"""Topics beside each other, and most topics that are shown of a fit."""


@matplotlib.rc_context(LOOK)
def top_words(comparison: Comparison, *, n: int = 8, seed: int = 0) -> Figure:
    """The n words with the largest weight in each topic, by the model's method ``top_words``, the first one first.

    If the model has a method ``shares``, which turns a latent code into shares of topics, the most frequent topics come first,
    with their mean share in the documents.

    Args:
        comparison: fitted pairs and their data.
        n: number of words, or fewer if the vocabulary has fewer.
        seed: seed of the draw of the shares.

    Raises:
        InputError: the model has no method ``top_words``.
    """
    facts = facts_of(comparison)
    if not facts.words:
        raise InputError("the model has no method top_words, so that there are no words to show")
    n = min(n, math.prod(facts.spec.event_shape))
    found = of_each_pair(
        comparison, seed, lambda pair: _topics(Facts(pair, facts.data, facts.on, facts.args), n, facts.features)
    )
    rows = {name: math.ceil(len(topics) / ACROSS) for name, (topics, _) in found.items()}
    lines = 1 + max((len(words) for topics, _ in found.values() for words in topics), default=n)
    height = 0.165 * lines + 0.12
    figure = Figure(figsize=(9.5, 0.6 + sum(rows.values()) * height + 0.3 * len(found) * (len(found) > 1)))
    layout = figure.subfigures(len(found), 1, squeeze=False, height_ratios=list(rows.values())).ravel()
    top = 1 - 0.55 / figure.get_figheight()
    styles = looks(found)
    for part, (name, (topics, shares)) in zip(layout, found.items(), strict=True):
        part.subplots_adjust(left=0.02, right=0.995, top=top if len(found) == 1 else 0.86, bottom=0.01, hspace=0.05)
        if len(found) > 1:
            part.text(0.02, 0.9, name, color=styles[name].colour, weight="bold", parse_math=False)
        panels = part.subplots(rows[name], ACROSS, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
            axes.set(xlim=(0, 1), ylim=(-lines, 0))
        titles = [f"{100 * share:.1f} %" for share in shares] or [f"topic {k + 1}" for k in range(len(topics))]
        for axes, words, title in zip(panels, topics, titles, strict=False):
            axes.text(0, -0.5, title, va="center", color=styles[name].colour, weight="bold")
            axes.plot([0, 0.86], [-1, -1], color="0.8", linewidth=0.8)
            for i, word in enumerate(words):
                shade = 0.45 * i / max(1, len(words) - 1)  # the first words are darkest
                axes.text(0, -1.5 - i, str(word)[:22], va="center", color=str(shade), parse_math=False)
    said = f", with mean shares of the topics in {facts.on} documents" if any(s for _, s in found.values()) else ""
    heading(figure, comparison, f"The {n} words with the largest weight in each topic{said}", found)
    return figure


def _topics(facts: Facts, n: int, vocabulary: Sequence[str]) -> tuple[list[list[str]], list[float]]:
    """Return the words of the topics, and the mean shares of the topics, if the model gives them; largest shares first."""
    method = facts.method("top_words")
    assert method is not None
    takes_words = "vocabulary" in inspect.signature(method).parameters
    words = method(n, vocabulary) if vocabulary and takes_words else method(n)
    shares = _shares(facts.pair, facts, len(words))
    if shares is None:
        return words[:MOST], []
    order = np.argsort(-shares, kind="stable")[:MOST]
    return [words[k] for k in order], [float(shares[k]) for k in order]


def _shares(pair: Pair, facts: Facts, topics: int) -> np.ndarray | None:
    method = facts.method("shares")
    sites = [name for name, site in facts.local.items() if site.event_shape]
    if method is None or len(sites) != 1:
        return None
    shares = method(posterior_of(pair, facts.args).nodes[sites[0]]["value"])
    if not isinstance(shares, torch.Tensor) or shares.shape != (facts.rows, topics):
        return None
    return np.asarray(shares.double().mean(0).cpu().numpy())
