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
from data_toys import assert_equal, message, numbers, on_disk, same

from pyro_vi.data import mapped as reading
from pyro_vi.data.loading import load
from pyro_vi.data.mapped import Mapped, ahead
from pyro_vi.errors import InputError
from pyro_vi.fitting.folder import checksum

FAILED = 300
"""Seconds after which something that should have happened has not."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of a few rows, so that all that goes by blocks has many of them; and no thread may be left."""
    monkeypatch.setattr(reading, "_NUMBERS", 64)
    monkeypatch.setattr(reading, "_GAP", 20)
    yield
    assert not readers()


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pyro_vi_ahead")]


def wait_until(condition: Any) -> None:
    end = time.monotonic() + FAILED
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    assert condition()


# ---- the same bits as from memory


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_batches_are_moved_as_they_are_read(tmp_path: Path) -> None:
    given = (on_disk(tmp_path / "x.npy", numbers("uint8")), np.arange(101))
    for integers, dtypes in ((False, [torch.float64, torch.float64]), (True, [torch.uint8, torch.int64])):
        data = load(given, integers=integers).to("meta", torch.float64)
        batches = list(data.batches(0, 40))
        assert [len(x) for _, (x, _) in batches] == [40, 40, 11]
        for index, batch in batches:
            assert {t.device.type for t in (index, *batch, *data.example())} == {"meta"}
            assert [t.dtype for t in batch] == dtypes


@pytest.mark.slow
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
    monkeypatch.setattr(reading, "FILE_BYTES", path.stat().st_size)
    assert not load(path).mapped
    monkeypatch.setattr(reading, "FILE_BYTES", path.stat().st_size - 1)
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
    small = [message(load, tmp_path / f"{name}.npy") for name in names]
    monkeypatch.setattr(reading, "FILE_BYTES", 0)
    assert [message(load, tmp_path / f"{name}.npy") for name in names] == small
    assert message(load, tmp_path / "none.npy").startswith("there is no file")


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
    """While an item is in use, no more than the next two are read."""
    begun, wanted = [], 0

    def read(item: int) -> int:
        begun.append(item)
        assert item < wanted + 2
        return -item

    reads = ahead(read, range(100))
    for expected in range(20):
        wanted += 1
        assert next(reads) == (expected, -expected)
    wait_until(lambda: len(begun) == 22)
    assert begun == list(range(22))
    assert len(readers()) == 1
    reads.close()
    assert not readers()
    assert len(begun) == 22
    assert list(ahead(abs, [])) == []
    assert list(ahead(abs, [-5])) == [(-5, 5)]


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
    """The thread itself presses Ctrl-C, as soon as it is known that the second item is waited for."""
    main, waiting, release = threading.main_thread().ident, threading.Event(), threading.Event()
    assert main is not None

    def items() -> Iterator[int]:
        for item in range(9):
            if item == 3:  # it is asked for just before the second one is waited for
                waiting.set()
            yield item

    def read(item: int) -> int:
        if item == 1:
            assert waiting.wait(FAILED)
            signal.pthread_kill(main, signal.SIGINT)
            assert release.wait(FAILED)
        return item

    def pressed(*_: Any) -> None:
        release.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, pressed)
    try:
        reads = ahead(read, items())
        assert next(reads) == (0, 0)
        with pytest.raises(KeyboardInterrupt):
            next(reads)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not readers()


FIT = """
import resource, sys
import numpy as np
import pyro_vi
from pyro_vi.data.loading import load

pair = "vae(latent_dim=2, hidden=(4,))", "diag_normal"
options = {"batch_size": 256, "check": False, "progress": False}  # a step of 1,024 rows needs half of the limit
pyro_vi.fit(*pair, np.random.rand(20, 10), steps=1, **options)  # whatever the first fit of a process loads
(now,) = (line for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (int(now.split()[1]) * 1024 + 850 * 2**20,) * 2)

data = load(sys.argv[1])
assert data.mapped and (data.spec.num_data, len(data.heldout[0])) == (58983, 6553), data.spec
run = pyro_vi.fit(*pair, data, epochs=1, **options)
assert run.steps == 231, run.steps
del data, run
try:
    np.array(np.load(sys.argv[1], mmap_mode="r"))
except MemoryError:
    print("the whole file does not fit")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_a_fit_needs_less_memory_than_its_file(tmp_path: Path) -> None:
    """In a process that cannot get as much memory as the file is long."""
    path, shape = tmp_path / "large.npy", (2**16, 2**12)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)  # 1 GB, sparse
    array[0], array[-1] = np.arange(2**12), 0.5
    del array
    try:
        command = [sys.executable, "-c", FIT, str(path)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stdout) == (0, "the whole file does not fit\n"), done.stderr
    finally:
        path.unlink()  # pytest keeps folders of some runs
