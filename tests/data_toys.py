"""Arrays in memory and in files, and comparisons of data bit by bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_vi.data.dataset import Data
from pyro_vi.errors import InputError
from pyro_vi.fitting.folder import checksum


def message(call: Callable[..., object], *args: Any, error: type[InputError] = InputError, **options: Any) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(error) as caught:
        call(*args, **options)
    assert type(caught.value) is error
    text = str(caught.value)
    assert "\n" not in text
    return text


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
