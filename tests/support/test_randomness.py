"""The generators of torch, NumPy and Python are put back as they were."""

import random

import numpy as np
import torch

from pyro_vi.support.randomness import generators, seed_generators, set_generators


def test_generators_are_put_back_through_a_file(tmp_path):
    def draws():
        return torch.rand(3).tolist(), np.random.normal(size=3).tolist(), [random.gauss(0, 1) for _ in range(3)]

    draws()
    np.random.normal()  # numpy and Python keep the second of two normals
    random.gauss(0, 1)
    torch.save(generators(), tmp_path / "state.pt")
    first = draws()
    assert draws() != first
    set_generators(torch.load(tmp_path / "state.pt", weights_only=True))
    again = draws()
    assert again[:2] == first[:2]
    set_generators(torch.load(tmp_path / "state.pt", weights_only=True))
    assert random.getstate() == random.getstate()


def test_a_seed_gives_the_draws_that_it_gives_to_each_generator():
    seed_generators(2**32 + 5)
    found = torch.randn(4), np.random.normal(size=3).tolist(), random.random()
    torch.manual_seed(2**32 + 5)
    np.random.seed(5)
    assert torch.equal(found[0], torch.randn(4))
    assert found[1:] == (np.random.normal(size=3).tolist(), random.Random(2**32 + 5).random())
