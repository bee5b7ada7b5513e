"""Differences between fits: intervals and p-values have the errors that they state, whatever the order of the fits."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_vi.comparing.differences import Difference, Sample, Spread, compared


def sample(values: torch.Tensor) -> Sample:
    return Sample(float(values.mean()), values)


def draws(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_paired_difference_is_that_of_a_paired_t_test():
    a, b = draws(0, 40), draws(1, 40) + 0.3
    found = compared([{"a": sample(a), "b": sample(b)}], higher=True)
    right = stats.ttest_rel(b.numpy(), a.numpy())
    one = found.differences["a"]
    assert (found.best, one.count) == ("b", 40)
    interval = right.confidence_interval(0.95)
    np.testing.assert_allclose([one.p, one.low, one.high], [right.pvalue, interval.low, interval.high], rtol=1e-10)
    assert abs(one.value - float((b - a).mean())) < 1e-12


def test_where_lower_is_better_the_lowest_is_first():
    found = compared([{"a": sample(draws(0, 9)), "b": sample(draws(0, 9) + 1)}], higher=False)
    assert found.best == "a" and abs(found.differences["b"].value - 1) < 1e-12
    assert found.ranks == {"a": 1, "b": 2}


def test_an_interval_covers_the_true_difference_in_95_of_100_cases():
    """4 standard errors of a proportion over 2000 cases; the noise that both fits share, a hundred times larger, cancels."""
    cases, inside = 2000, 0
    both, own = draws(1, cases, 30) * 100, draws(2, 2, cases, 30)
    for common, a, b in zip(both, *own, strict=True):
        one = compared([{"a": sample(common + a + 5.0), "b": sample(common + b)}], higher=True).differences["b"]
        inside += one.low < 5.0 < one.high
    assert abs(inside / cases - 0.95) < 4 * math.sqrt(0.95 * 0.05 / cases)


@pytest.mark.slow
def test_of_equal_fits_the_best_is_told_apart_from_another_in_at_most_5_of_100_cases():
    """The best is chosen by the same numbers: without a correction for all 6 pairs it is 19 of 100."""
    cases = 1500
    wrong = naive = 0
    for values in draws(3, cases, 4, 40):
        found = compared([{str(k): sample(v) for k, v in enumerate(values)}], higher=True)
        wrong += any(one.apart for one in found.differences.values())
        naive += any(one.low > 0 for one in found.differences.values())
    assert wrong / cases < 0.05 + 4 * math.sqrt(0.05 * 0.95 / cases)
    assert naive / cases > 0.12


def test_the_order_of_the_fits_does_not_matter():
    values = {name: sample(draws(k, 30) + 0.4 * k) for k, name in enumerate("abc")}
    found = [compared([{n: values[n] for n in order}], higher=True) for order in permutations("abc")]
    assert all(one == found[0] for one in found)


def test_fits_that_cannot_be_told_apart_share_a_rank():
    """c is better than a by 0.5 ± 0.02; b is between them, with an error of 0.3."""
    base, noise = draws(0, 100), draws(1, 100)
    found = compared(
        [{"a": sample(base), "b": sample(base + 0.3 + 3 * noise), "c": sample(base + 0.5 + 0.2 * draws(2, 100))}],
        higher=True,
    )
    assert found.ranks == {"c": 1, "b": 1, "a": 2}


def test_equal_numbers_are_no_difference_and_exact_ones_have_no_error():
    x = draws(0, 20)
    assert compared([{"a": sample(x), "b": sample(x * (1 + 1e-9))}], higher=True).ranks == {"a": 1, "b": 1}
    exact = compared([{"a": Sample(-3.0, se=0.0), "b": Sample(-3.5, se=0.0)}], higher=True)
    assert exact.differences["b"].p == 0 and exact.ranks == {"a": 1, "b": 2}


def test_numbers_without_values_have_independent_errors():
    found = compared([{"a": Sample(-3.0, se=0.3), "b": Sample(-4.0, se=0.4)}], higher=True).differences["b"]
    assert (found.value, found.count) == (1.0, 0) and abs(found.se - 0.5) < 1e-12
    assert abs(found.p - 2 * stats.norm.sf(2.0)) < 1e-12
    unknown = compared([{"a": Sample(-3.0), "b": Sample(-4.0)}], higher=True)
    assert math.isnan(unknown.differences["b"].p) and unknown.ranks == {"a": 1, "b": 1}


SHIFTS = (0.5, 0.1, 0.9, 0.3)


@pytest.mark.parametrize(("steady", "apart"), [(True, True), (False, False)])
def test_the_spread_over_seeds_is_that_of_the_paired_differences(steady, apart):
    """The same data under each seed, so that their error, 0.01, stays that of one; seeds spread by 0.34, or by nothing."""
    base, noise = draws(0, 400), torch.tensor([0.2, -0.2] * 200).double()
    seeds = [{"a": sample(base + s), "b": sample(base + s + (0.45 if steady else s - 0.2) + noise)} for s in SHIFTS]
    found = compared(seeds, higher=True)
    one = found.differences["a"]
    assert one.seeds is not None and found.best == "b"
    values = [0.45] * 4 if steady else [s - 0.2 for s in SHIFTS]
    np.testing.assert_allclose(one.seeds.values, values, atol=1e-12)
    assert abs(one.value - np.mean(values)) < 1e-12
    assert abs(one.se - float(noise.std()) / 20) < 1e-12
    assert one.beyond_error and one.apart == one.beyond_seeds == apart
    if not steady:
        assert abs(one.seeds.p - stats.ttest_1samp(values, 0.0).pvalue) < 1e-10
        assert abs(one.seeds.sd - np.std(values, ddof=1)) < 1e-12


def test_a_fit_that_is_missing_under_a_seed_is_compared_under_the_others():
    x = draws(0, 20)
    seeds = [{"a": sample(x), "b": sample(x + 1)}, {"a": sample(x)}, {"a": sample(x), "b": sample(x + 3)}]
    one = compared(seeds, higher=True).differences["a"]
    assert one.seeds is not None
    np.testing.assert_allclose(one.seeds.values, (1.0, 3.0))


def test_a_single_value_has_no_spread():
    assert math.isnan(Spread.of([1.0]).sd) and Spread.of([1.0]).mean == 1.0
    assert not Difference(1.0, math.nan, math.nan, math.nan, math.nan, 1).apart
