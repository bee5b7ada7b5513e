"""From a name, a path or arrays to data: what is inferred, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_toys import message

from pyro_vi.data.loading import load
from pyro_vi.errors import UsageError


def test_default_dtype_is_followed() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert load("digits").train()[0].dtype == load(np.arange(9)).train()[0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_own_array() -> None:
    values = np.random.default_rng(0).normal(size=(100, 3, 2))
    data = load(values, seed=1)
    assert (data.spec.name, data.spec.num_data, data.spec.event_shape) == ("array", 90, (3, 2))
    assert (data.spec.support, data.spec.dtype, data.spec.image_shape) == ("real", torch.float32, None)
    together = torch.cat([data.train()[0], data.heldout[0]])
    assert torch.equal(together.sort(0).values, torch.from_numpy(values).float().sort(0).values)
    assert load(data) is data


def test_own_data_are_copied() -> None:
    values = torch.randn(10, requires_grad=True)
    data = load(values, heldout=0.0)
    assert data.heldout[0].shape == (0,)
    assert torch.equal(data.train()[0], values.detach())
    assert data.train()[0].data_ptr() != values.data_ptr()
    assert not data.train()[0].requires_grad


@pytest.mark.parametrize(
    ("values", "support"),
    [
        (torch.tensor([0.0, 1.0, 1.0]), "boolean"),
        (torch.tensor([True, False, True]), "boolean"),
        (np.array([0, 1, 0], dtype=np.uint8), "boolean"),
        (torch.tensor([0, 1, 2]), "nonnegative_integer"),
        (np.array([0, 1, 2], dtype=np.uint16), "nonnegative_integer"),
        (np.array([0, 7], dtype=">i4"), "nonnegative_integer"),
        (torch.tensor([0, -1, 2]), "real"),
        (torch.tensor([0.0, 1.0, 2.0]), "real"),
        (np.array([0.5, 0.25], dtype=">f8"), "real"),
        (np.array([0.5, 0.25], dtype=np.float16)[::-1], "real"),
        (np.array([0.5, 0.25], dtype=np.longdouble), "real"),
    ],
)
def test_support_is_inferred_and_values_are_floats(values: Any, support: str) -> None:
    data = load(values, heldout=0.0)
    assert data.spec.support == support
    assert data.spec.event_shape == ()
    assert data.train()[0].dtype == torch.float32
    assert data.train()[0].tolist() == values.tolist()


def test_dtype_of_own_data() -> None:
    double = torch.randn(5, dtype=torch.float64)
    assert load(double).spec.dtype == torch.float64  # chosen by its owner
    several = (double, torch.arange(5), torch.randn(5))
    assert [c.dtype for c in load(several).train()] == [torch.float64, torch.int64, torch.float64]
    assert [c.dtype for c in load(several, integers=False).train()] == 3 * [torch.float64]
    assert load(double, dtype=torch.float32).train()[0].dtype == torch.float32


NAN = torch.tensor([[0.0, 1.0], [float("nan"), 2.0], [float("inf"), float("nan")]])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            NAN,
            "array: the array: 3 values (first in row 1, counted from 0) are NaN or infinite; drop or fill those rows",
        ),
        ((torch.zeros(3), NAN[:, 0]), "argument 1: 2 values (first in row 1, counted from 0) are NaN or infinite"),
        ({"x": torch.zeros(3), "y": NAN}, "array: y: 3 values (first in row 1, counted from 0) are NaN or infinite"),
        (torch.zeros(0, 3), "array: 0 rows cannot be fitted; give at least 2 rows"),
        (torch.zeros(1, 3), "array: 1 row cannot be split; give at least 2 rows, or heldout=0"),
        (torch.tensor(3.0), "is a single number; give an array with a row for each datum"),
        (np.array(3.0), "is a single number"),
        (np.array(["a", "b"]), "holds <U1, not numbers; give whole or real numbers"),
        (np.array([None, 1]), "holds object, not numbers"),
        (np.array([1j, 1]), "holds complex128, not numbers"),
        (np.array([1, 2**63 + 1], dtype=np.uint64), "holds numbers above 2**63; give smaller ones, or floats"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "is a masked array; drop or fill the masked rows"),
        (torch.tensor([1j, 1]), "is a sparse, quantised or complex tensor; give a dense one of real numbers"),
        (torch.eye(3).to_sparse(), "is a sparse, quantised or complex tensor"),
        (
            np.array([1.0, 1e300]),
            "holds numbers that torch.float32 cannot represent; load with dtype=torch.float64, or rescale",
        ),
        (torch.tensor([1, 2**24 + 1]), "holds numbers that torch.float32 cannot represent"),
        ({1.0, 2.0}, "cannot take data from a set; give a name, a path, a tensor, an array, a DataFrame, a tuple of"),
        (3.0, "cannot take data from a float"),
    ],
    ids=str,
)
def test_refused_arrays(data: Any, problem: str) -> None:
    assert problem in message(load, data)


@pytest.mark.parametrize("heldout", [1.0, -0.1, float("nan")])
def test_refused_fraction(heldout: float) -> None:
    text = f"heldout must be a number of at least 0 and below 1, not {heldout}"
    for data in (torch.zeros(5), "digits"):
        assert message(load, data, heldout=heldout, error=UsageError) == text


def test_data_are_not_split_twice() -> None:
    assert "split already; leave heldout out" in message(load, load("digits"), heldout=0.5, error=UsageError)


def test_refused_paths(tmp_path: Path) -> None:
    assert "is a folder; name one file in it: .npy, .npz, .csv, .parquet" in message(load, tmp_path)
    assert "is a folder" in message(load, str(tmp_path))
    assert "there is no file 'nowhere.csv'; check the path" in message(load, "nowhere.csv")
    assert "there is no file" in message(load, str(tmp_path / "nowhere.csv"))
    assert "unknown kind of file" in message(load, str(tmp_path / "nowhere"))
    text = message(load, "x.csv(header=True)", error=UsageError)
    assert text.startswith("the file 'x.csv' has no option 'header'. Its options are: columns, label, labels, target")
