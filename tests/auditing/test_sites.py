"""Variances by site from the draws of the audit themselves: those of the definition."""

import numpy as np
import pytest
import torch
from catalogue import CATALOGUE

from pyro_vi.auditing import sites
from pyro_vi.auditing.evaluator import Evaluator, stacked
from pyro_vi.auditing.sites import SiteVariances
from pyro_vi.estimators.table import get
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import isolated


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", ["closure", "global"])
@pytest.mark.parametrize(("draws", "chunk", "pairs"), [(24, 5, 9), (25, 25, 200), (30, 10, 10)])
def test_they_are_those_of_the_definition(name, draws, chunk, pairs, kept, monkeypatch):
    """One site, whose other draws are draws of the audit, and two; chunks that end within the pairs and not."""
    monkeypatch.setattr(sites, "PAIRS", pairs)
    monkeypatch.setattr(sites, "KEPT", sites.KEPT if kept else 0)
    pair = pair_of(*CATALOGUE[name].build(), CATALOGUE[name].batch)
    seeds = list(range(100, 100 + draws))
    with isolated(0, validation=False):
        evaluator = Evaluator(get("trace"), pair, CATALOGUE[name].batch, list(pair.parameters()), True, draws)
        found = SiteVariances(evaluator, seeds, 3)
        for start in range(0, draws, chunk):
            found.add(start, evaluator(seeds[start : start + chunk])[1] / 3)
        captured, half = evaluator.captured, min(pairs, draws // 2)
        base, other = (stacked(captured, seeds[i * half : (i + 1) * half], evaluator.args) for i in range(2))
        gradients = evaluator.at(base)[1]
        for site, value in found.result.items():
            mixed = [o if d.site == site else b for d, b, o in zip(captured.draws, base, other, strict=True)]
            expected = 0.5 * ((evaluator.at(mixed)[1] - gradients) / 3).square().mean(0)
            np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-14)
    assert len(found.result) == (1 if name == "closure" else 2)


def test_replayed_chunks_are_the_numbers_of_single_draws(monkeypatch):
    """With a flat graph of each chunk, and without."""
    entry = CATALOGUE["global"]
    pair = pair_of(*entry.build(), entry.batch)
    with isolated(0, validation=False):
        parameters = list(pair.parameters())
        looped = Evaluator(get("trace"), pair, entry.batch, parameters, False, 12)(list(range(12)))
        for least, used in ((0.0, True), (1e9, False)):
            monkeypatch.setattr("pyro_vi.auditing.evaluator.REPEATED", least)
            evaluator = Evaluator(get("trace"), pair, entry.batch, parameters, True, 12)
            assert (evaluator._replay is not None) == used
            for seeds in (list(range(12)), list(range(12)), list(range(5))):
                for one, two in zip(evaluator(seeds), looped, strict=True):
                    torch.testing.assert_close(one, two[: len(seeds)], rtol=1e-10, atol=1e-12)
