"""k-hat from the largest weights: that of all weights, and the known shape of a tail."""

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats

from pyro_vi.diagnostics.tails import Tail, khat


def log_weights(shape: float, draws: int, rows: int = 1) -> torch.Tensor:
    """Logarithms of Pareto weights with tail shape k: exponential variables times k."""
    generator = torch.Generator().manual_seed(3)
    return -shape * torch.rand(draws, rows, generator=generator, dtype=torch.float64).log()


@pytest.mark.parametrize("draws", [30, 300, 3000])
def test_it_is_arviz_of_all_weights_in_any_chunks(draws):
    every, tail = log_weights(0.5, draws, 3), Tail(draws)
    for part in every.split(7):
        tail.add(part)
    expected = array_stats.psislw(-every.T.numpy())[1]
    np.testing.assert_allclose(khat(tail.top(), draws), expected, rtol=1e-10)


def test_it_is_near_the_shape_of_the_tail():
    """The standard deviation of the estimate is about (1 + k) / √(3 √K)."""
    draws = 40_000
    for shape in (0.3, 0.9):
        tail = Tail(draws)
        tail.add(log_weights(shape, draws))
        assert abs(float(khat(tail.top(), draws)) - shape) < 4 * (1 + shape) / (3 * draws**0.5) ** 0.5


def test_equal_weights_and_few_draws_have_none():
    for weights in (torch.zeros(100, 1), log_weights(0.5, 24)):
        tail = Tail(len(weights))
        tail.add(weights)
        assert khat(tail.top(), len(weights)).isnan().all()
