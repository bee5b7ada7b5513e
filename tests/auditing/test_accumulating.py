"""Streamed moments against stored draws and theory; the test of a difference against its distribution; Holm by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_vi.auditing.accumulating import Difference, Moments, holm
from pyro_vi.auditing.result import _columns


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pieces(values: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Consecutive parts of these sizes, over and over."""
    parts, step = [], 0
    while len(values):
        size = sizes[step % len(sizes)]
        parts.append(values[:size])
        values, step = values[size:], step + 1
    return parts


@pytest.mark.parametrize("sizes", [(1,), (3, 1, 17), (1000,)], ids=str)
@pytest.mark.parametrize(("groups", "draws"), [(4, 40), (7, 100), (40, 1000), (2, 20)])
def test_streamed_moments_are_those_of_stored_draws(groups, draws, sizes):
    centred = noise(draws, 3) * torch.tensor([1.0, 1e-2, 5.0], dtype=torch.float64)
    # A mean far from 0 against the spread, where the naive sum of squares would lose its digits: draws near 1e4 hold a
    # deviation of .01 to 2e-10 of it.
    for stored, tolerance in ((centred, 1e-12), (1e4 + centred, 1e-9)):
        moments = Moments(3, groups, draws)
        for part in pieces(stored, sizes):
            moments.add(part)
        assert moments.count == draws
        np.testing.assert_allclose(moments.mean, stored.mean(0), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(moments.variance, stored.var(0), rtol=tolerance)
        split = np.split(stored.numpy(), np.linspace(0, draws, groups + 1).astype(int)[1:-1])
        expected = [part.var(0, ddof=1) for part in split]
        np.testing.assert_allclose(torch.stack(moments.group_variances), expected, rtol=tolerance)


def test_float32_draws_are_accumulated_in_double_precision():
    stored = (1e4 + noise(1000, 2)).float()
    moments = Moments(2, 10, 1000)
    moments.add(stored)
    np.testing.assert_allclose(moments.variance, stored.double().var(0), rtol=1e-9)


# Of elements that are independent and normal each is a repetition of the same experiment.
REPETITIONS = 2000


def columns_of(draws: int, groups: int) -> dict[str, np.ndarray]:
    """What an audit says of a normal gradient with variance 4, for each of the repetitions."""
    moments = Moments(REPETITIONS, groups, draws)
    moments.add(3 + 2 * noise(draws, REPETITIONS))
    grouped = torch.stack(moments.group_variances).numpy()
    return _columns(np.eye(REPETITIONS), moments.mean.square().numpy(), moments.variance.numpy(), grouped)


@pytest.mark.parametrize(("draws", "groups"), [(1000, 40), (200, 20)])
def test_interval_of_a_variance_covers_it_in_95_percent(draws, groups):
    found = columns_of(draws, groups)
    covered = (found["grad_var_low"] < 4) & (found["grad_var_high"] > 4)
    assert abs(covered.mean() - 0.95) < 4 * math.sqrt(0.95 * 0.05 / REPETITIONS)


@pytest.mark.parametrize(("draws", "groups"), [(1000, 40), (200, 20)])
def test_standard_error_of_a_variance_is_that_of_theory(draws, groups):
    """A group of n / G normal draws has Var(s²) = 2 σ⁴ / (n / G − 1), the mean of G groups 2 σ⁴ / (n − G)."""
    squares = columns_of(draws, groups)["grad_var_se"] ** 2
    error = squares.std() / math.sqrt(REPETITIONS)
    assert abs(squares.mean() - 2 * 4**2 / (draws - groups)) < 4 * error
    # And it is the error that the variances do have; they use the spread between group means too: 2 σ⁴ / (n − 1).
    variances = columns_of(draws, groups)["grad_var"]
    expected = 2 * 4**2 / (draws - 1)
    assert abs(variances.var() - expected) < 4 * expected * math.sqrt(2 / REPETITIONS)


def test_a_variance_of_zero_has_an_interval_of_no_width():
    moments = Moments(1, 4, 40)
    moments.add(torch.full((40, 1), 0.7, dtype=torch.float64))
    grouped = torch.stack(moments.group_variances).numpy()
    found = _columns(np.eye(1), moments.mean.square().numpy(), moments.variance.numpy(), grouped)
    assert [float(found[key][0]) for key in ("grad_var", "grad_var_se", "grad_var_low", "grad_var_high")] == [0.0] * 4
    assert float(found["grad_snr"][0]) == math.inf


def difference(one: Tensor, two: Tensor, sizes: list[int], chunk: int = 64, resolution: float = 1e-10) -> Difference:
    result = Difference(sizes, len(one), resolution)
    for a, b in zip(one.split(chunk), two.split(chunk), strict=True):
        result.add(a, b)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("pairs", [20, 400])
def test_of_equal_means_the_p_value_is_uniform(pairs, size):
    """Normal differences have exactly Student's t, also for few pairs and blocks of many elements."""
    blocks = 10_000 // size
    common = noise(pairs, blocks * size, seed=1)
    one, two = common + noise(pairs, blocks * size, seed=2), common + 0.5 * noise(pairs, blocks * size, seed=3)
    found = difference(one, two, [size] * blocks)
    assert stats.kstest(found.p, "uniform").pvalue > 6e-5  # 4 standard deviations of a normal
    # The tail is what Holm's adjustment looks at: by the normal law 10 times as many of 10 pairs are below .001.
    assert abs((found.p < 1e-3).sum() - 1e-3 * blocks) < 4 * math.sqrt(1e-3 * blocks)
    z = found.z.numpy()
    freedom = pairs // 2 - 1
    spread = freedom / (freedom - 2)
    kurtosis = 3 + 6 / (freedom - 4)
    assert abs(z.mean()) < 4 * math.sqrt(spread / blocks)
    assert abs(z.var() - spread) < 4 * spread * math.sqrt((kurtosis - 1) / blocks)


@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_a_real_difference_has_the_z_of_theory(shift):
    """z ≈ |δ| √(n / 2) / σ of the second half of n pairs, with variance 1 + z² / n, whatever the sign of δ."""
    pairs = 2000
    common = 10 * noise(pairs, 1, seed=1)
    found = difference(common + shift + noise(pairs, 1, seed=2), common, [1])
    expected = 0.5 * math.sqrt(pairs / 2)
    assert abs(float(found.z) - expected) < 4 * math.sqrt(1 + expected**2 / pairs)
    assert found.p.item() < 1e-40


def test_z_of_a_block_is_the_one_written_out():
    """Mean difference of the first half as direction, an ordinary z-score of the projections of the second."""
    one, two = noise(50, 5, seed=1), noise(50, 5, seed=2)
    found = difference(one, two, [2, 3]).z
    for k, block in enumerate((slice(0, 2), slice(2, 5))):
        delta = (one - two)[:, block]
        direction = delta[:25].mean(0) / delta[:25].mean(0).norm()
        numbers = delta[25:] @ direction
        torch.testing.assert_close(found[k], numbers.mean() / (numbers.std() / 5), rtol=1e-10, atol=1e-10)


def test_z_does_not_depend_on_the_chunks():
    one, two = noise(101, 4, seed=1), noise(101, 4, seed=2)
    expected = difference(one, two, [1, 3], chunk=101).z
    for chunk in (1, 7, 50, 64):
        torch.testing.assert_close(difference(one, two, [1, 3], chunk=chunk).z, expected, rtol=1e-10, atol=1e-10)


def test_equal_draws_and_rounding_count_as_no_difference():
    two = 1e3 + noise(100, 4)
    for one in (two, two * (1 + 1e-14), two + 1e-12 * noise(100, 4, seed=2)):
        found = difference(one, two, [1, 3])
        assert found.z.tolist() == [0.0, 0.0]
        assert found.p.tolist() == [1.0, 1.0]
    zero = torch.zeros(100, 4, dtype=torch.float64)
    assert difference(zero, zero, [1, 3]).z.tolist() == [0.0, 0.0]
    # What is above rounding is found, also if it is the same in every draw.
    assert (difference(two * (1 + 1e-6), two, [1, 3]).z > 1000).all()
    assert difference(torch.ones_like(zero), zero, [1, 3]).p.tolist() == [0.0, 0.0]


def test_holm_is_the_one_by_hand():
    """Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, the last raised to .06, as the ones before it are."""
    found = holm(np.array([[0.01, math.nan, 0.04], [0.03, 0.005, math.nan]]))
    np.testing.assert_allclose(found, [[0.03, math.nan, 0.06], [0.06, 0.02, math.nan]], rtol=1e-12)
    np.testing.assert_allclose(holm(np.array([0.5, 0.9, 0.4])), [1.0, 1.0, 1.0], rtol=1e-12)
    assert np.isnan(holm(np.full((2, 1), math.nan))).all()
    assert holm(np.zeros((2, 0))).shape == (2, 0)
