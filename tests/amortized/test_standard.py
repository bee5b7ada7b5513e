"""The input of an encoder has mean 0 and standard deviation 1, whatever its units, and no missing values."""

import math

import pytest
import torch
from catalogue import columns

from pyro_vi.amortized.columns import Column
from pyro_vi.amortized.standard import Standard

ROWS = Column(0, ("data",), (0, 1), (3,))
X = columns(40)


def standard(value, present=None, column=ROWS, dtype=torch.float64):
    return Standard(column, value, present, dtype)


@pytest.mark.parametrize(
    "value",
    [X, 1e-9 * X, 1e9 * X, 1.7e9 + X, (100 * X).round().long(), (1e-3 * X).float()],
    ids=["units", "small", "large", "far away", "integers", "float32"],
)
def test_each_feature_has_mean_0_and_standard_deviation_1(value):
    (found,) = standard(value)(value, None)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std(0, unbiased=False), torch.ones(3).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_feature_is_centred_only(value, dtype):
    x = torch.full((7, 3), value, dtype=dtype)
    found = standard(x)
    assert bool((found.scale == 1).all())
    torch.testing.assert_close(found(x, None)[0], torch.zeros(7, 3).double(), rtol=0, atol=1e-6 * max(value, 1.0))


def test_pixels_are_only_centred():
    """One in 40 is 1 in the first feature, none in the second, half in the third."""
    x = torch.zeros(40, 3).double()
    x[0, 0] = 1
    x[:20, 2] = 1
    found = Standard(ROWS, x, None, torch.float64)(x, None)[0]
    torch.testing.assert_close(found, x - torch.tensor([1 / 40, 0.0, 0.5]).double())


def test_the_moments_are_over_rows_elements_and_steps():
    column = Column(0, ("data", "members"), (0, 1, 2), (5, 2), steps=True)
    x = columns(12, 10).reshape(4, 3, 5, 2)
    found = standard(x, column=column)
    torch.testing.assert_close(found.mean, x.mean((0, 1, 2)))
    torch.testing.assert_close(found.scale, x.reshape(-1, 2).std(0, unbiased=False))


def test_missing_and_masked_values_count_neither_in_the_moments_nor_in_the_input():
    x, present = X.clone(), torch.arange(40) % 4 > 0
    x[1, 0], x[2, 1], x[~present] = math.nan, math.inf, 1e6
    found = standard(x, present)
    kept = x[3:][present[3:]]
    torch.testing.assert_close(found.mean[2], x[present, 2].mean())
    value, known = found(x, present)
    assert bool(value.isfinite().all()) and found.channels == 2
    assert not value[~known.bool()].any() and int(known.sum()) == 3 * 30 - 2
    torch.testing.assert_close(value[3:][present[3:]], (kept - found.mean) / found.scale)
    again, _ = found(torch.where(present.unsqueeze(-1), x, -1e9), present)
    assert torch.equal(value, again)
    # Values that are missing in a later batch only are at the mean.
    later = standard(X)(torch.where(X > 1, math.nan, X), None)
    assert len(later) == 1 and bool((later[0][X > 1] == 0).all())
    nothing = standard(torch.full((4, 3), math.nan))
    assert not nothing(torch.full((4, 3), math.nan), None)[0].any()


def test_truth_values_are_numbers():
    x = torch.arange(40).reshape(40, 1).expand(40, 3) % 4 > 0
    torch.testing.assert_close(standard(x).mean, torch.full((3,), 0.75).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_missing_value_in_later_data_is_at_the_mean_and_one_that_overflows_stays_infinite(dtype):
    """The example has no gaps; the numbers are those of ``where``, bit by bit."""
    found = standard(X, dtype=dtype)
    value = X[:5].clone()
    value[0, 0], value[1, 1], value[2, 2], value[3, 0], value[4, 1] = math.nan, math.inf, -math.inf, 1e308, -1e308
    (given,) = found(value, None)
    scaled = (value.to(dtype) - found.mean) / found.scale
    assert given.dtype == dtype
    assert torch.equal(given, torch.where(value.isfinite(), scaled, 0))
    assert given[0, 0] == given[1, 1] == given[2, 2] == 0
    assert dtype == torch.float64 or given[3, 0] == math.inf == -given[4, 1]
