"""Columns in files are surveyed, split and refused like those in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_toys import assert_equal, message, numbers, on_disk

from pyro_vi.data import columns
from pyro_vi.data import mapped as reading
from pyro_vi.data.loading import load
from pyro_vi.data.mapped import Mapped
from pyro_vi.errors import UsageError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that all that goes by blocks has many of them."""
    monkeypatch.setattr(reading, "_NUMBERS", 64)
    monkeypatch.setattr(reading, "_GAP", 20)


@pytest.mark.parametrize("heldout", [None, 0.0, 0.5, 0.99])
def test_splits(heldout: float | None, tmp_path: Path) -> None:
    values = numbers("float32")
    assert_equal(load(on_disk(tmp_path / "x.npy", values), heldout=heldout), load(values, heldout=heldout))


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


@pytest.mark.parametrize("kind", ["nan", "wide", "whole", "unsigned", "one"])
def test_refusals_are_those_of_arrays_in_memory(kind: str, tmp_path: Path) -> None:
    values: Any = numbers("float64", (200, 5))
    if kind == "nan":
        values[70, 2], values[70, 3], values[199, 0] = np.nan, np.inf, -np.inf
        assert "3 values (first in row 70, counted from 0) are NaN or infinite" in message(load, values)
    elif kind == "wide":
        values[150, 0] = 1e300
    elif kind == "whole":
        values = np.array([2] * 100 + [2**24 + 1])
    elif kind == "unsigned":
        values = np.array([2] * 100 + [2**63 + 1], np.uint64)
    elif kind == "one":
        values = values[:1]
    array: Any = on_disk(tmp_path / "x.npy", values)
    told = message(load, array)
    assert told == message(load, values) or kind == "unsigned"
    assert "holds numbers above 2**63; give smaller ones, or floats" in told or kind != "unsigned"
    assert message(load, array[:100] if kind == "nan" else array, heldout=0.5)


def test_what_has_another_length_is_passed_on_whole(tmp_path: Path) -> None:
    x, other = numbers("float64", (90, 5)), np.arange(3.0)
    mapped = load((on_disk(tmp_path / "x.npy", x), on_disk(tmp_path / "other.npy", other)), heldout=0.1)
    memory = load((x, other), heldout=0.1)
    assert_equal(mapped, memory)
    assert len(mapped.columns) == 1
    assert [len(part) for part in mapped.example(4)] == [4, 3]


@pytest.mark.parametrize("heldout", [1.0, -0.1, float("nan")])
def test_refused_fraction(heldout: float, tmp_path: Path) -> None:
    array = on_disk(tmp_path / "x.npy", numbers("float32"))
    for data in (array, numbers("float32")):
        assert message(load, data, heldout=heldout, error=UsageError).startswith(
            "heldout must be a number of at least 0"
        )


def test_heldout_rows_are_bounded_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_NUMBERS", 2**20)
    array = on_disk(tmp_path / "x.npy", numbers("uint8", (200_000,)))
    data = load(array)
    assert (data.spec.num_data, len(data.heldout[0])) == (190_000, 10_000)
    assert len(load(array, heldout=0.2).heldout[0]) == 40_000
    monkeypatch.setattr(columns, "HELDOUT_BYTES", 4000)
    assert len(load(array).heldout[0]) == 1000
    assert len(load(array, dtype=torch.float64).heldout[0]) == 500
    assert len(load((array, array), integers=False).heldout[0]) == 500
    assert len(load((array, array)).heldout[0]) == 2000  # which stay bytes
    monkeypatch.setattr(columns, "HELDOUT_BYTES", 1)
    assert len(load(array).heldout[0]) == 1
    assert len(load(np.array(array)).heldout[0]) == 20_000
