"""Each purpose of each epoch has random numbers of its own, and a split is a partition."""

import torch

from pyro_vi.data.seeds import generator, split


def test_split_is_a_partition_of_the_rows() -> None:
    for rows, fraction in [(1797, 1 / 6), (2, 0.5), (10, 0.999), (100, 0.29), (7, 0.0)]:
        train, heldout = split(rows, fraction, seed=1)
        assert torch.equal(torch.cat([train, heldout]).sort().values, torch.arange(rows))
        assert len(train) >= 1
        assert (len(heldout) == 0) == (fraction == 0)
    assert len(split(100, 0.29, 0)[1]) == 29


def test_generators_differ_by_seed_epoch_and_purpose() -> None:
    keys = [(s, e, p) for s in (0, 1, 2**32, 2**70) for e in (0, 1, 2) for p in ("train", "shuffle")]
    first = {tuple(torch.rand(4, generator=generator(*key)).tolist()) for key in keys}
    assert len(first) == len(keys)
