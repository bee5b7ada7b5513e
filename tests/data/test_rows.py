"""Orders of very many rows: each row once, at random, and in little memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_toys import on_disk, same
from scipy import stats

from pyro_vi.data import rows
from pyro_vi.data.loading import load
from pyro_vi.data.rows import Shuffled, parts, shuffled, without
from pyro_vi.data.seeds import generator, split, split_many


def drawn(size: int, epoch: int = 0) -> Shuffled:
    keys = torch.randint(2**32, (rows.ROUNDS,), generator=generator(0, epoch, "shuffle"))
    return Shuffled(size, tuple(keys.tolist()))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 5000])
def test_each_row_comes_once(size: int) -> None:
    order = drawn(size)
    assert sorted(order[:].tolist()) == list(range(size)) and len(order) == size
    assert torch.equal(torch.cat(list(parts(order, size, 1 + size // 3))), order[:])
    index = torch.tensor([size - 1, 0])
    assert torch.equal(order[index], order[:][index])


def test_rows_of_a_long_order_are_computed_alone() -> None:
    order = drawn(10**12)
    found = order[:100_000]
    assert len(found.unique()) == 100_000 and found.min() >= 0 and found.max() < 10**12
    assert stats.kstest(found.double().numpy() / 1e12, "uniform").pvalue > 0.001


@pytest.mark.slow
def test_all_orders_of_four_rows_are_about_as_frequent() -> None:
    """Of 4 rows, 24 orders; of two rows in a row of 50, 49 · 50 pairs of places in ten groups."""
    counts: dict[tuple[int, ...], int] = {}
    near = np.zeros(49)
    for epoch in range(1200):
        order = tuple(drawn(4, epoch)[:].tolist())
        counts[order] = counts.get(order, 0) + 1
        long = drawn(50, epoch)[:].argsort()
        near[abs(int(long[1]) - int(long[0])) - 1] += 1
    assert len(counts) == 24 and stats.chisquare(list(counts.values())).pvalue > 0.001
    wanted = 1200 * 2 * np.arange(49, 0, -1) / (50 * 49)  # of the distance of two places
    groups = np.add.reduceat(near, np.arange(0, 49, 5)), np.add.reduceat(wanted, np.arange(0, 49, 5))
    assert stats.chisquare(*groups).pvalue > 0.001


def test_rows_that_are_not_left_out() -> None:
    out = torch.tensor([0, 1, 5, 8, 9])
    kept = without(10, out)
    assert kept[:].tolist() == [2, 3, 4, 6, 7] and kept[1:3].tolist() == [3, 4] and len(kept) == 5
    assert kept[torch.tensor([4, 0])].tolist() == [7, 2] and without(3, out[:0])[:].tolist() == [0, 1, 2]


def test_data_that_fit_keep_their_order() -> None:
    order = shuffled(1000, generator(3, 5, "shuffle"), many=True)
    assert torch.equal(order[:], torch.randperm(1000, generator=generator(3, 5, "shuffle")))
    kept, rest = split_many(20, 0.1, seed=0, many=True)
    assert all(map(torch.equal, (kept[:], rest), split(20, 0.1, seed=0)))


def test_data_of_very_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are the same, and only their order is another one."""
    x = np.arange(300.0).reshape(100, 3)
    mapped = on_disk(tmp_path / "x.npy", x)
    memory = load(x, heldout=0.1, dtype=torch.float64)
    monkeypatch.setattr(rows, "MANY", 10)
    data = load(mapped, heldout=0.1, dtype=torch.float64)
    assert isinstance(data.columns[0].chosen, rows.Without) and len(data.heldout[0]) == 10
    together = torch.cat([*data.train(), *data.heldout])
    assert torch.equal(together[together[:, 0].argsort()], torch.from_numpy(x))
    assert (data.given[:] == data.train()[0][:, 0] / 3).all()  # the row numbers in the file
    for epoch in (0, 1):
        batches = list(data.batches(epoch, 7))
        index = torch.cat([i for i, _ in batches])
        assert sorted(index.tolist()) == list(range(90)) and torch.equal(index, data.order(epoch))
        assert not torch.equal(index, torch.arange(90)) and len(batches[-1][0]) == 6
        assert all(same(batch, data.gather(data.columns, i)) for i, batch in batches)
        assert torch.equal(data.numbers(index), data.train()[0][index, 0].long() // 3)
    assert not torch.equal(data.order(0), data.order(1)) and not memory.mapped
    again = load(mapped, heldout=0.1, dtype=torch.float64)
    assert torch.equal(again.order(1), data.order(1)) and same(again.heldout, data.heldout)


PEAK = """
import itertools, resource, sys
from pyro_vi.data.loading import load
load("digits")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = load(sys.argv[1])
batches = data.batches(0, 1000)
index = [i for i, _ in itertools.islice(batches, 3)]
batches.close()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, data.spec.num_data, [len(set(i.tolist())) for i in index])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes are Linux's unit of the peak memory")
def test_a_narrow_file_takes_less_memory_than_it_is_long(tmp_path: Path) -> None:
    """400 MB with 10^8 rows: a list of the row numbers has 800 MB."""
    path = tmp_path / "x.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(10**8,))  # sparse
    array[0] = 1.0
    del array
    try:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(path)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    finally:
        path.unlink()
    kilobytes, rest = done.stdout.split(maxsplit=1)
    assert rest.strip() == "99990000 [1000, 1000, 1000]" and int(kilobytes) < 350_000
