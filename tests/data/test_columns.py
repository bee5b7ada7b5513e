"""Data in files: the bits of the same array in memory, bounded memory, threads that end, and every refusal."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_vi.data import columns
from pyro_vi.data import mapped as mapping
from pyro_vi.data.dataset import Data
from pyro_vi.data.loading import load
from pyro_vi.data.mapped import Mapped, ahead
from pyro_vi.errors import InputError
from pyro_vi.fitting.folder import checksum


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of a few rows, so that all that goes by blocks has many of them; and no thread may be left."""
    monkeypatch.setattr(mapping, "_NUMBERS", 64)
    monkeypatch.setattr(mapping, "_GAP", 20)
    yield
    assert not readers()


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pyro_vi_ahead")]


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    assert condition()


def message(data: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def numbers(dtype: str, shape: tuple[int, ...] = (101, 3, 2)) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, 2 if dtype == "bool" else 200, shape).astype(dtype)


def on_disk(path: Path, values: np.ndarray[Any, Any], mode: Any = "r") -> np.memmap[Any, Any]:
    np.save(path, values)
    mapped = np.load(path, mmap_mode=mode)
    assert isinstance(mapped, np.memmap)
    return mapped


def assert_equal(mapped: Data, memory: Data) -> None:
    """Everything that `Data` gives, bit by bit."""
    assert mapped.mapped and not memory.mapped
    for name in ("num_data", "event_shape", "support", "dtype"):
        assert getattr(mapped.spec, name) == getattr(memory.spec, name)
    assert same(mapped.heldout, memory.heldout)
    assert same(mapped.train(), memory.train())
    assert checksum(mapped.columns) == checksum(memory.columns)
    for size in (1, 13, 1000):
        assert same(mapped.example(size), memory.example(size))
    for size in (1, 7, 50, 1000):
        for (i, x), (j, y) in zip(mapped.batches(3, size), memory.batches(3, size), strict=True):
            assert torch.equal(i, j)
            assert same(x, y)
            assert same(mapped.gather(mapped.stored(3), i), y)


# ---- the same bits as from memory


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "uint8", "int8", "uint16", "int32", "int64", "bool"]
)
@pytest.mark.parametrize("shape", [(101, 3, 2), (101,), (23, 100)])
def test_bits_are_those_of_the_array_in_memory(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    values = numbers(dtype, shape)
    options: dict[str, Any] = {"seed": 1, "heldout": 0.2}
    mapped, memory = load(on_disk(tmp_path / "x.npy", values), **options), load(values, **options)
    assert_equal(mapped, memory)
    (column,) = mapped.columns
    assert isinstance(column, Mapped)
    assert column.shape == memory.columns[0].shape
    assert same((torch.cat(list(column.blocks())),), memory.columns)
    # Rounded to float32 first, as the tensor in memory was.
    assert_equal(mapped.to(dtype=torch.float64), memory.to(dtype=torch.float64))
    wide = {**options, "dtype": torch.float64}
    assert_equal(load(on_disk(tmp_path / "y.npy", values), **wide), load(values, **wide))


@pytest.mark.parametrize("heldout", [None, 0.0, 0.5, 0.99])
def test_splits(heldout: float | None, tmp_path: Path) -> None:
    values = numbers("float32")
    assert_equal(load(on_disk(tmp_path / "x.npy", values), heldout=heldout), load(values, heldout=heldout))


def test_views_and_raw_files(tmp_path: Path) -> None:
    values = numbers("int32", (120, 4))
    values.tofile(tmp_path / "raw")
    raw = np.memmap(tmp_path / "raw", np.int32, "r", offset=5 * 16, shape=(115, 4))
    assert_equal(load(raw), load(values[5:]))
    assert_equal(load(raw[7:90]), load(values[12:95]))
    assert_equal(load(raw[1:].reshape(-1, 2, 2)), load(values[6:].reshape(-1, 2, 2)))
    far = np.memmap(tmp_path / "raw", np.uint8, "r", offset=1000)  # rows at odd places
    assert_equal(load(far), load(values.view(np.uint8).reshape(-1)[1000:]))


def test_writable_map_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = numbers("float32")
    array = on_disk(tmp_path / "x.npy", np.zeros_like(values), "r+")
    array[:] = values  # and not flushed
    assert_equal(load(array), load(values))
    assert np.array_equal(array, values)


def test_columns_in_files_and_in_memory_stay_together(tmp_path: Path) -> None:
    x, y, z = numbers("float64", (90, 5)), torch.randn(90), numbers("uint8", (90, 2))
    mapped = load((on_disk(tmp_path / "x.npy", x), y, on_disk(tmp_path / "z.npy", z)), heldout=0.1)
    assert [isinstance(column, Mapped) for column in mapped.columns] == [True, False, True]
    assert_equal(mapped, load((x, y, z), heldout=0.1))
    other = load((y, on_disk(tmp_path / "x.npy", x)), heldout=0.1)
    assert_equal(other, load((y, x), heldout=0.1))


@pytest.mark.parametrize("values", [[0.0, 1.0, 0.0], [0, 1, 5], [0, -1, 5], [0.0, 1.0, 2.0]], ids=str)
def test_support(values: list[float], tmp_path: Path) -> None:
    array = np.repeat(np.array(values), 100)
    assert load(on_disk(tmp_path / "x.npy", array)).spec.support == load(array).spec.support


def test_batches_are_moved_as_they_are_read(tmp_path: Path) -> None:
    data = load((on_disk(tmp_path / "x.npy", numbers("uint8")), np.arange(101))).to("meta", torch.float64)
    batches = list(data.batches(0, 40))
    assert [len(x) for _, (x, _) in batches] == [40, 40, 11]
    for index, batch in batches:
        assert {t.device.type for t in (index, *batch, *data.example())} == {"meta"}
        assert {t.dtype for t in batch} == {torch.float64}


def test_only_what_is_wanted_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(on_disk(tmp_path / "x.npy", numbers("float32", (4000, 64))))
    read, preadv = [], os.preadv

    def counting(*args: Any) -> int:
        read.append(preadv(*args))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counting)
    data.example(10)
    assert sum(read) == 10 * 256
    read.clear()
    batches = data.batches(0, 16)
    next(batches)
    wait_until(lambda: sum(read) >= 3 * 16 * 256)
    batches.close()
    assert sum(read) == 3 * 16 * 256  # the first, and two ahead


def test_a_call_may_read_less_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, preadv = numbers("float32"), os.preadv
    mapped = load(on_disk(tmp_path / "x.npy", values))
    monkeypatch.setattr(os, "preadv", lambda file, views, start: preadv(file, [views[0][:11]], start))
    assert same(mapped.train(), load(values).train())


# ---- what is copied


@pytest.mark.parametrize("kind", ["fortran", "foreign", "strided", "long", "private", "removed", "replaced", "copy"])
def test_what_cannot_be_left_in_its_file_is_copied(kind: str, tmp_path: Path) -> None:
    path, values = tmp_path / "x.npy", numbers("float64", (50, 4))
    if kind == "fortran":
        array = on_disk(path, np.asfortranarray(values))
    elif kind == "foreign":
        array = on_disk(path, values.astype(">f8"))
    elif kind == "long":
        array = on_disk(path, values.astype(np.longdouble))
    elif kind == "private":
        array = on_disk(path, np.zeros_like(values), "c")
        array[:] = values
    else:
        array = on_disk(path, values)
    if kind == "strided":
        array, values = array[::2], values[::2]
    elif kind == "removed":
        path.unlink()
    elif kind == "replaced":
        path.rename(tmp_path / "old.npy")
        np.save(path, np.zeros_like(values))
    elif kind == "copy":
        array = array.copy()
    data = load(array)
    assert not data.mapped
    assert same(data.train(), load(values).train())


# ---- files


def test_large_files_are_mapped_and_small_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, path = numbers("uint8"), tmp_path / "x.npy"
    np.save(path, values)
    assert not load(path).mapped
    monkeypatch.setattr(mapping, "FILE_BYTES", path.stat().st_size)
    assert not load(path).mapped
    monkeypatch.setattr(mapping, "FILE_BYTES", path.stat().st_size - 1)
    for name in (path, str(path)):
        data = load(name, seed=2)
        assert_equal(data, load(values, seed=2))
        assert (data.spec.name, data.spec.source) == ("x", "x.npy")
    np.save(path, np.asfortranarray(values))
    assert not load(path).mapped
    assert same(load(path).train(), load(values).train())


def test_large_damaged_files_are_refused_like_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", np.zeros(100))
    os.truncate(tmp_path / "cut.npy", 500)
    (tmp_path / "text.npy").write_bytes(b"hello, this is text")
    np.savez(tmp_path / "several.npz", x=np.zeros(3))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    np.save(tmp_path / "one.npy", np.array(3.0))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    names = ("objects", "cut", "text", "several", "one", "words")
    small = [message(tmp_path / f"{name}.npy") for name in names]
    monkeypatch.setattr(mapping, "FILE_BYTES", 0)
    assert [message(tmp_path / f"{name}.npy") for name in names] == small
    assert message(tmp_path / "none.npy").startswith("there is no file")


@pytest.mark.parametrize("kind", ["nan", "wide", "whole", "unsigned", "one", "lengths"])
def test_refusals_are_those_of_arrays_in_memory(kind: str, tmp_path: Path) -> None:
    values: Any = numbers("float64", (200, 5))
    if kind == "nan":
        values[70, 2], values[70, 3], values[199, 0] = np.nan, np.inf, -np.inf
        assert "3 values (first in row 70, counted from 0) are NaN or infinite" in message(values)
    elif kind == "wide":
        values[150, 0] = 1e300
    elif kind == "whole":
        values = np.array([2] * 100 + [2**24 + 1])
    elif kind == "unsigned":
        values = np.array([2] * 100 + [2**63 + 1], np.uint64)
    elif kind == "one":
        values = values[:1]
    array: Any = on_disk(tmp_path / "x.npy", values)
    if kind == "lengths":
        array, values = (array, np.zeros(3)), (values, np.zeros(3))
    told = message(array)
    assert told == message(values) or kind == "unsigned"
    assert "holds numbers above 2**63; give smaller ones, or floats" in told or kind != "unsigned"
    assert message(array[:100] if kind == "nan" else array, heldout=0.5)


@pytest.mark.parametrize("heldout", [1.0, -0.1, float("nan")])
def test_refused_fraction(heldout: float, tmp_path: Path) -> None:
    array = on_disk(tmp_path / "x.npy", numbers("float32"))
    assert message(array, heldout=heldout) == message(numbers("float32"), heldout=heldout)


def test_heldout_rows_are_bounded_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_NUMBERS", 2**20)
    array = on_disk(tmp_path / "x.npy", numbers("uint8", (200_000,)))
    data = load(array)
    assert (data.spec.num_data, len(data.heldout[0])) == (190_000, 10_000)
    assert len(load(array, heldout=0.2).heldout[0]) == 40_000
    monkeypatch.setattr(columns, "HELDOUT_BYTES", 4000)
    assert len(load(array).heldout[0]) == 1000
    assert len(load(array, dtype=torch.float64).heldout[0]) == 500
    assert len(load((array, array)).heldout[0]) == 500
    monkeypatch.setattr(columns, "HELDOUT_BYTES", 1)
    assert len(load(array).heldout[0]) == 1
    assert len(load(np.array(array)).heldout[0]) == 20_000


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: path.unlink(), "cannot read {} (No such file or directory); restore it, and load it again"),
        (lambda path: os.replace(path.with_name("other"), path), "{} was replaced after it was loaded; load the data"),
        (lambda path: os.truncate(path, 2000), "{} was cut short after it was loaded; restore it, and load it again"),
    ],
    ids=["removed", "replaced", "cut short"],
)
def test_files_that_change_are_told(change: Any, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    data = load(on_disk(path, numbers("float32", (500, 4))))
    path.with_name("other").write_bytes(path.read_bytes())
    change(path)
    for call in (data.train, lambda: list(data.batches(0, 10)), lambda: checksum(data.columns)):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).startswith(problem.format(path))
        assert "\n" not in str(caught.value)


# ---- the thread


def test_ahead_is_in_order_and_bounded() -> None:
    done: list[int] = []

    def read(item: int) -> int:
        done.append(item)
        return -item

    reads = ahead(read, range(100))
    for expected in range(20):
        assert next(reads) == (expected, -expected)
        wait_until(lambda: len(done) == expected + 3)  # noqa: B023
        time.sleep(0.002)
        assert done == list(range(expected + 3))
    assert len(readers()) == 1
    reads.close()
    assert not readers()
    assert len(done) < 24
    assert list(ahead(read, [])) == []
    assert list(ahead(read, [5])) == [(5, -5)]


def test_what_the_thread_raises_is_raised_in_its_turn() -> None:
    def read(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    reads = ahead(read, range(9))
    assert [next(reads) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(ValueError, match="three"):
        next(reads)
    assert not readers()


@pytest.mark.parametrize("how", ["close", "break", "delete", "interrupt", "cycle", "end"])
def test_nothing_is_left_running(how: str, tmp_path: Path) -> None:
    data = load(on_disk(tmp_path / "x.npy", numbers("float32")))
    batches = data.batches(0, 5)
    next(batches)
    assert len(readers()) == 1
    if how == "close":
        batches.close()
    elif how == "break":
        for _ in batches:
            break
        batches.close()
    elif how == "delete":
        del batches
    elif how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt())
    elif how == "cycle":
        cycle: list[Any] = [batches]
        cycle.append(cycle)
        del batches, cycle
        gc.collect()
    else:
        list(batches)
    assert not readers()


def test_an_interrupt_while_waiting_ends_the_thread() -> None:
    release = threading.Event()
    reads = ahead(lambda item: release.wait(10), range(9))
    main, before = threading.main_thread().ident, readers()
    assert main is not None and not before

    def press() -> None:
        wait_until(readers)
        time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)
        release.set()

    finger = threading.Thread(target=press)
    finger.start()
    with pytest.raises(KeyboardInterrupt):
        next(reads)
    finger.join()
    assert not readers()


# ---- memory

FIT = """
import resource, sys, time
import pyro_vi
from pyro_vi.data import load

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

def seconds(what, start=[time.monotonic()]):
    now = time.monotonic()
    print(f"{what}: {now - start[0]:.1f} s", file=sys.stderr)
    start[0] = now

before = peak()
data = load(sys.argv[1])
assert data.mapped and (data.spec.num_data, len(data.heldout[0])) == (121072, 10000), data.spec
seconds("load")
run = pyro_vi.fit(
    "vae(latent_dim=2, hidden=(4,))", "diag_normal", data, epochs=1, batch_size=1024, check=False, progress=False
)
assert run.steps == 119, run.steps
seconds("fit")
print(peak() - before)
"""


def test_memory_of_a_fit_does_not_grow_with_its_file(tmp_path: Path) -> None:
    path, shape = tmp_path / "large.npy", (2**17, 2**12)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)  # 2 GB, sparse
    array[0], array[-1] = np.arange(2**12), 0.5
    del array
    try:
        done = subprocess.run(
            [sys.executable, "-c", FIT, str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        growth = float(done.stdout)
        print(f"the peak grew by {growth:.2f} GB; {done.stderr}")
        assert growth < 1
    finally:
        path.unlink()  # pytest keeps folders of some runs
