"""Exact p-values and bands of uniform ranks, against enumeration, the binomial, simulation and ArviZ."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pyro_vi.diagnostics.ranking.uniformity import band, edges, outside, p_value


def test_the_p_value_is_that_of_all_possible_ranks() -> None:
    """Of 4 ranks among 3 draws there are 4⁴ cases, all equally probable: the share whose statistic is as small."""
    draws, count = 3, 4

    def statistic(ranks: tuple[int, ...]) -> float:
        tails = []
        for edge in edges(draws):
            below, law = sum(rank < edge for rank in ranks), stats.binom(count, edge / (draws + 1))
            tails += [law.cdf(below), law.sf(below - 1)]
        return round(min(tails), 12)

    every = {ranks: statistic(ranks) for ranks in itertools.product(range(draws + 1), repeat=count)}
    for ranks in ((0, 1, 2, 3), (0, 0, 0, 0), (1, 1, 2, 2), (3, 3, 3, 1)):
        share = sum(value <= every[ranks] for value in every.values()) / len(every)
        assert p_value(np.array(ranks), draws) == pytest.approx(share, rel=1e-12)


def test_one_edge_is_the_binomial_test_also_far_in_its_tail() -> None:
    """Among one draw there is one edge: P(B ≤ r or B ≥ n − r) of a fair coin."""
    for below in (0, 3, 400, 490):
        ranks = np.repeat([0, 1], [below, 1000 - below])
        assert p_value(ranks, 1) == pytest.approx(2 * stats.binom.cdf(below, 1000, 0.5), rel=1e-9)
    assert p_value(np.zeros(900, dtype=int), 199) == pytest.approx(200**-900.0 or 0.0, abs=1e-300)


def test_without_ranks_there_is_no_p_value() -> None:
    assert math.isnan(p_value(np.array([]), 99))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "draws"), [(200, 199), (50, 99), (1000, 9)])
def test_uniform_ranks_are_within_the_band_and_rejected_as_often_as_stated(count: int, draws: int) -> None:
    runs = 5000
    ranks = np.random.default_rng(0).integers(0, draws + 1, (runs, count))
    lower, upper = band(count, draws, 0.9)
    shares = np.stack([(ranks < edge).mean(1) for edge in edges(draws)], -1)
    inside = ((shares >= lower - 1e-12) & (shares <= upper + 1e-12)).all(1).mean()
    assert inside > 0.9 - 4 * math.sqrt(0.09 / runs)
    assert inside < 0.925  # counts are whole: the next narrower band may have too little
    p = np.array([p_value(some, draws) for some in ranks[:1000]])
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() < level + 4 * math.sqrt(level * (1 - level) / 1000)
    assert (p <= 0.2).mean() > 0.2 - 0.02 - 4 * math.sqrt(0.16 / 1000)


@pytest.mark.slow
def test_the_band_is_that_of_arviz_within_the_error_of_its_simulation() -> None:
    from arviz_stats.ecdf_utils import get_pointwise_confidence_band, simulate_confidence_bands

    count, draws = 250, 99
    share = edges(draws) / (draws + 1)
    rng = np.random.default_rng(1)
    pointwise = simulate_confidence_bands(count, 1, share, 0.95, 4000, rng)
    theirs = get_pointwise_confidence_band(pointwise, count, share)
    for ours, other in zip(band(count, draws), theirs, strict=True):
        assert abs(ours - other).max() <= 1.001 / count + 0.1 * np.sqrt(0.25 / count)


def test_the_p_value_finds_what_it_is_for() -> None:
    """Power: spread, shift and both ends, of 300 ranks."""
    rng = np.random.default_rng(2)
    normal = rng.normal(size=300)
    for score in (2 * normal, 0.7 * normal, normal + 0.4, rng.standard_t(1, 300)):
        assert p_value(np.floor(stats.norm.cdf(score) * 200).clip(0, 199), 199) < 1e-3
    assert p_value(np.floor(stats.norm.cdf(normal) * 200), 199) > 0.05


def test_outside_sums_to_the_whole() -> None:
    assert outside(30, 19, 1.0) == pytest.approx(1.0, rel=1e-12)
    assert outside(30, 19, 0.0) == 0.0
