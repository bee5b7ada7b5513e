"""Data sets and batches: known shapes and moments, splits, equal bits from equal seeds, and every refusal."""

import functools
import gzip
import http.server
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pooch
import pytest
import torch
from sklearn.datasets import load_digits
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vi.data import files, seeds
from pyro_vi.data import registered as datasets
from pyro_vi.data.dataset import Data, DataSpec
from pyro_vi.data.loading import available, load
from pyro_vi.errors import InputError, UsageError
from pyro_vi.support import specs

needs_folder = pytest.mark.skipif("PYRO_VI_DATA" not in os.environ, reason="PYRO_VI_DATA is not set")
STATIC = "mnist_static_binarized/binarized_mnist_packed.npz"
OMNIGLOT = "omniglot/omniglot_28.npz"


def message(call: Callable[..., object], *args: Any, error: type[InputError] = InputError, **options: Any) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(error) as caught:
        call(*args, **options)
    assert type(caught.value) is error
    text = str(caught.value)
    assert "\n" not in text
    return text


def same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- texts


@pytest.mark.parametrize(
    ("text", "target", "options"),
    [
        ("vae", "vae", {}),
        (" vae ( ) ", "vae", {}),
        ("vae(latent_dim=8, hidden=(256, 128))", "vae", {"latent_dim": 8, "hidden": (256, 128)}),
        (
            "vae(a=-1.5, b=None, c='x(y=1)', d={'k': [1]})",
            "vae",
            {"a": -1.5, "b": None, "c": "x(y=1)", "d": {"k": [1]}},
        ),
        ("path/file.py:Name(x=1)", "path/file.py:Name", {"x": 1}),
        ("my (1)/file.py:Name(x=1)", "my (1)/file.py:Name", {"x": 1}),
        ("my (1)/file.py:Name", "my (1)/file.py:Name", {}),
        ("package.module:Name", "package.module:Name", {}),
    ],
)
def test_parse(text: str, target: str, options: dict[str, object]) -> None:
    assert specs.parse(text) == (target, options)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("vae(8)", "'vae(8)': '8' has no option name; write it as option=value"),
        ("vae(*(1, 2))", "has no option name"),
        ("vae(**{'a': 1})", "'**' cannot be read; write every option as option=value"),
        ("vae(a=1, a=2)", "the option 'a' is given twice; give it once"),
        ("vae(a=open('x'))", "the value \"open('x')\" of 'a' is not a Python literal; write a number"),
        ("vae(a=b)", "the value 'b' of 'a' is not a Python literal"),
        ("vae(a=2 ** 3)", "is not a Python literal"),
        ("vae(a={[]: 1})", "is not a Python literal"),
        ("vae(a=1", "cannot read 'vae(a=1'; write name or name(option=value, ...)"),
        ("vae(a=)", "cannot read"),
        ("vae(a=1)(b=2)", "cannot read"),
        ("vae(a=1) + vae(b=2)", "cannot read"),
        ("(a=1)", "cannot read"),
        ("", "cannot read ''"),
        ("vae(" + "(" * 5000 + ")" * 5001, "cannot read"),
    ],
)
def test_parse_refuses(text: str, problem: str) -> None:
    assert problem in message(specs.parse, text, error=UsageError)


def test_unknown_lists_and_suggests() -> None:
    text = "no data set named 'digts'; did you mean 'digits'? Available: digits, mnist"
    assert str(specs.unknown("data set", "digts", ["digits", "mnist"])) == text
    assert str(specs.unknown("guide", "zzz", ["a", "b"])) == "no guide named 'zzz'. Available: a, b"
    assert str(specs.unknown("guide", "zzz", [])) == "no guide named 'zzz'. Available: none"


def test_check_options() -> None:
    specs.check_options("vae", {"a": 1}, ["a", "b"])
    text = message(specs.check_options, "vae", {"latent": 1}, ["latent_dim", "hidden"], error=UsageError)
    assert text == "vae has no option 'latent'; did you mean 'latent_dim'? Its options are: latent_dim, hidden"
    text = message(specs.check_options, "vae", {"x": 1}, [], error=UsageError)
    assert text == "vae has no option 'x'; it takes no options, so leave it out"


# ---- digits


def test_digits_shapes_and_spec() -> None:
    data = load("digits")
    (train,), (heldout,) = data.train(), data.heldout
    assert train.shape == (1498, 64)
    assert heldout.shape == (299, 64)
    assert train.dtype == heldout.dtype == data.spec.dtype == torch.float32
    assert set(train.unique().tolist()) == set(heldout.unique().tolist()) == {0.0, 1.0}
    spec = data.spec
    assert (spec.name, spec.num_data, spec.event_shape) == ("digits", 1498, (64,))
    assert (spec.support, spec.image_shape) == ("boolean", (8, 8))
    assert "CC BY 4.0" in spec.source


def test_digits_split_is_disjoint_and_covers() -> None:
    data = load("digits(binarize=False)", seed=3)
    assert data.spec.support == "unit_interval"
    parts = torch.cat([data.train()[0], data.heldout[0]])
    whole = torch.from_numpy(load_digits().data / 16).float()
    # As multisets of rows: sorted lexicographically, both are the same table.
    assert np.array_equal(np.unique(parts.numpy(), axis=0), np.unique(whole.numpy(), axis=0))
    assert len(parts) == len(whole)
    assert torch.allclose(parts.double().sum(0), whole.double().sum(0))
    other = load("digits(binarize=False)", seed=4)
    assert not torch.equal(other.heldout[0], data.heldout[0])


def test_split_is_a_partition_of_the_rows() -> None:
    for rows, fraction in [(1797, 1 / 6), (2, 0.5), (10, 0.999), (100, 0.29), (7, 0.0)]:
        train, heldout = seeds.split(rows, fraction, seed=1)
        assert torch.equal(torch.cat([train, heldout]).sort().values, torch.arange(rows))
        assert len(train) >= 1
        assert (len(heldout) == 0) == (fraction == 0)
    assert len(seeds.split(100, 0.29, 0)[1]) == 29


def test_binarised_digits_average_to_the_pixel_values() -> None:
    epochs = 200
    data, pixels = load("digits", seed=5), load("digits(binarize=False)", seed=5).train()[0].double()
    total = torch.zeros_like(pixels)
    for epoch in range(epochs):
        total += data.train(epoch)[0]
    mean, error = total / epochs, (pixels * (1 - pixels) / epochs).sqrt()
    certain = (pixels == 0) | (pixels == 1)
    assert torch.equal(mean[certain], pixels[certain])
    # 4 standard errors for each level's average over all its pixels and epochs: 15 comparisons of huge samples.
    for level in range(1, 16):
        where = pixels == level / 16
        standard_error = (level / 16 * (1 - level / 16) / (epochs * int(where.sum()))) ** 0.5
        assert abs(float(mean[where].mean()) - level / 16) < 4 * standard_error
    # Per pixel: z-scores of that many draws have variance 1.
    z = ((mean - pixels) / error)[~certain]
    assert abs(float(z.square().mean()) - 1) < 4 * (2 / len(z)) ** 0.5 + 0.01


def test_heldout_digits_are_one_draw_of_the_pixel_values() -> None:
    drawn, pixels = load("digits", seed=2).heldout[0], load("digits(binarize=False)", seed=2).heldout[0]
    assert ((drawn == pixels) | ((pixels > 0) & (pixels < 1))).all()
    error = (pixels * (1 - pixels)).sum().sqrt()
    assert abs(float((drawn - pixels).sum())) < 4 * float(error)


def test_standardised_digits() -> None:
    data = load("digits(standardize=True)", seed=1, dtype=torch.float64)
    (train,) = data.train()
    assert train.mean(0).abs().max() < 1e-6
    assert (train.std(0, correction=0) - 1).abs().max() < 1e-6
    assert (data.spec.support, data.spec.image_shape) == ("real", None)
    assert data.spec.event_shape == (train.shape[1],)
    pixels = load("digits(binarize=False)", seed=1, dtype=torch.float64)
    raw = pixels.train()[0]
    varies = raw.std(0) > 0
    assert train.shape == (1498, int(varies.sum()))
    loc, scale = raw[:, varies].mean(0), raw[:, varies].std(0, correction=0)
    assert torch.allclose(data.heldout[0], (pixels.heldout[0][:, varies] - loc) / scale)
    assert load("digits(standardize=True)").train()[0].std(0, correction=0).sub(1).abs().max() < 1e-6


# ---- seeds, epochs, batches


@pytest.mark.parametrize("name", ["digits", "digits(binarize=False)", "digits(standardize=True)"])
def test_equal_seeds_give_equal_bits_and_leave_the_global_state(name: str) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, b = load(name, seed=7), load(name, seed=7)
    assert same(a.heldout, b.heldout)
    assert same(a.train(3), b.train(3))
    for (i, x), (j, y) in zip(a.batches(3, 400), b.batches(3, 400), strict=True):
        assert torch.equal(i, j)
        assert same(x, y)
    assert not same(a.heldout, load(name, seed=8).heldout)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_only_stochastic_binarisation_is_redrawn() -> None:
    dynamic, fixed = load("digits"), load("digits(binarize=False)")
    assert not same(dynamic.train(0), dynamic.train(1))
    assert same(dynamic.train(1), dynamic.train(1))
    assert same(fixed.train(0), fixed.train(1))


def test_generators_differ_by_seed_epoch_and_purpose() -> None:
    keys = [(s, e, p) for s in (0, 1, 2**32, 2**70) for e in (0, 1, 2) for p in ("train", "shuffle")]
    first = {tuple(torch.rand(4, generator=seeds.generator(*key)).tolist()) for key in keys}
    assert len(first) == len(keys)


@pytest.mark.parametrize("batch_size", [1, 100, 1498, 5000])
def test_batches_are_the_shuffled_rows_of_the_epoch(batch_size: int) -> None:
    data = load("digits")
    (train,) = data.train(2)
    batches = list(data.batches(2, batch_size))
    assert [len(index) for index, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    index = torch.cat([index for index, _ in batches])
    assert torch.equal(index.sort().values, torch.arange(1498))
    assert torch.equal(torch.cat([x for _, (x,) in batches]), train[index])
    other = torch.cat([index for index, _ in data.batches(3, batch_size)])
    assert not torch.equal(other, index)


@pytest.mark.parametrize("name", ["digits", "digits(binarize=False)", "digits(standardize=True)"])
def test_batches_are_made_of_public_parts(name: str) -> None:
    data = load(name)
    stored, order = data.stored(2), data.order(2)
    assert not data.mapped
    assert same(data.values(stored), data.train(2))
    assert torch.equal(order.sort().values, torch.arange(1498))
    for rows, (index, batch) in zip(order.split(400), data.batches(2, 400), strict=True):
        assert torch.equal(rows, index)
        assert same(data.gather(stored, rows), batch)
    # Nothing but operations of torch: a graph of one batch serves for another.
    graph = make_fx(lambda index, *stored: data.values(tuple(c.index_select(0, index) for c in stored)))
    assert same(graph(order[:9], *stored)(order[9:18], *stored), data.gather(stored, order[9:18]))


def test_columns_stay_together() -> None:
    x = torch.arange(50.0)
    data = load((x[:, None].expand(50, 3), 2 * x), seed=1)
    for index, (a, b) in data.batches(0, 7):
        assert torch.equal(2 * a[:, 0], b)
        assert torch.equal(data.train()[0].index_select(0, index), a)


def test_example_is_the_beginning_of_the_first_epoch() -> None:
    data = load("digits")
    assert same(data.example(), (data.train(0)[0][:2],))
    assert same(data.example(5000), data.train(0))
    # More rows than are drawn at a time: the first ones must not depend on how many are asked for.
    many = Data(
        DataSpec("many", 9000, (3,), "boolean", torch.float32, "made"),
        0,
        (torch.zeros(0, 3),),
        (torch.full((9000, 3), 8, dtype=torch.uint8),),
        levels=16,
        binarize=True,
    )
    for size in (1, 4096, 4097, 9000):
        assert torch.equal(many.example(size)[0], many.train(0)[0][:size])
    own = load(torch.arange(10.0))
    assert torch.equal(own.example(3)[0], own.train()[0][:3])


def test_to_changes_dtype_and_not_the_draws() -> None:
    for name in ("digits", "digits(binarize=False)"):
        single, double = load(name), load(name).to(dtype=torch.float64)
        assert double.spec.dtype == double.train()[0].dtype == double.heldout[0].dtype == torch.float64
        assert torch.allclose(single.train(1)[0].double(), double.train(1)[0])
        assert double.columns[0].dtype == torch.uint8
    assert load(load("digits"), dtype=torch.float64).spec.dtype == torch.float64
    assert load(torch.randn(9, 2)).to("cpu", torch.float64).example()[0].dtype == torch.float64


def test_default_dtype_is_followed() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert load("digits").train()[0].dtype == load(np.arange(9)).train()[0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_positive_sizes() -> None:
    data = load("digits")
    assert message(data.batches, 0, 0) == "batch_size must be a whole number of at least 1, not 0"
    assert message(data.example, 0) == "size must be a whole number of at least 1, not 0"
    assert "must not be negative; use whole numbers from 0" in message(load, "digits", seed=-1)
    assert "must not be negative" in message(data.train, -1)
    text = "dtype=torch.int64 is not a floating dtype; use torch.float32 or torch.float64"
    assert message(load, "digits", dtype=torch.int64) == message(data.to, dtype=torch.int64) == text


# ---- people's own arrays and files


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
    assert {c.dtype for c in load((double, torch.arange(5), torch.randn(5))).train()} == {torch.float64}
    assert load(double, dtype=torch.float32).train()[0].dtype == torch.float32


def test_files_agree_with_arrays(tmp_path: Path) -> None:
    x, y = np.random.default_rng(1).normal(size=(20, 3)), np.arange(20)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    frame.to_csv(tmp_path / "named.csv", index=False)
    frame.to_csv(tmp_path / "bare.csv", index=False, header=False)
    frame.set_axis([0, 1, 2], axis=1).to_csv(tmp_path / "counted.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    expected = load(x, seed=2)
    for name in ("x.npy", "named.csv", "bare.csv", "counted.csv", "x.parquet"):
        data = load(tmp_path / name, seed=2)
        assert data.spec.name == name.split(".")[0]
        assert data.spec.source == name
        assert data.spec.event_shape == (3,)
        assert torch.allclose(data.train()[0], expected.train()[0])
        assert torch.allclose(data.heldout[0], expected.heldout[0])
    assert same(load(str(tmp_path / "xy.npz"), seed=2).train(), load((x, y), seed=2).train())


def test_tables_of_whole_numbers(tmp_path: Path) -> None:
    pd.DataFrame({"a": [0, 3, 2], "b": [True, False, True]}).to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("a, b\n0, 1\n1, 1\n")
    (tmp_path / "truth.csv").write_text("True,1\nFalse,0\n")
    data = load(tmp_path / "t.parquet", heldout=0.0)
    assert data.spec.support == "nonnegative_integer"
    assert data.train()[0].tolist() == [[0, 1], [3, 0], [2, 1]]
    assert load(tmp_path / "t.csv").spec.support == "boolean"
    assert load(tmp_path / "truth.csv").spec.support == "boolean"
    assert load(tmp_path / "t.csv", heldout=0.0).train()[0].shape == (2, 2)
    assert load(tmp_path / "truth.csv", heldout=0.0).train()[0].shape == (2, 2)


def test_npz_with_its_own_split(tmp_path: Path) -> None:
    path = tmp_path / "parts.npz"
    np.savez(path, train=np.array([[0], [1], [1]]), test=np.array([[4], [5]]), labels=np.arange(3))
    data = load(path)
    assert data.train()[0].tolist() == [[0], [1], [1]]
    assert data.heldout[0].tolist() == [[4], [5]]
    assert data.spec.support == "nonnegative_integer"  # the narrowest that holds both parts
    assert data.spec.source == "parts.npz (arrays 'train' and 'test'; left out: labels)"
    assert "leave heldout out" in message(load, path, heldout=0.1, error=UsageError)
    np.savez(path, train=np.zeros((3, 2)), test=np.zeros((3, 1)))
    assert "'test' has shape (3, 1) and 'train' (3, 2); give both" in message(load, path)
    np.savez(path, train=np.zeros((3, 2)), test=np.zeros((0, 2)))
    assert "at least one row" in message(load, path)


NAN = torch.tensor([[0.0, 1.0], [float("nan"), 2.0], [float("inf"), float("nan")]])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            NAN,
            "array: the array: 3 values (first in row 1, counted from 0) are NaN or infinite; drop or fill those rows",
        ),
        ((torch.zeros(3), NAN[:2, 0]), "column 1: 1 value (first in row 1, counted from 0) is NaN"),
        ((torch.zeros(3), torch.zeros(2)), "columns differ in their number of rows (column 0 3, column 1 2); give all"),
        (torch.zeros(0, 3), "array: 0 rows cannot be fitted; give at least 2 rows"),
        (torch.zeros(1, 3), "array: 1 row cannot be fitted; give at least 2 rows"),
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
        ((), "cannot take data from a tuple; give a name, a path, a tensor, a NumPy array, or a tuple of"),
        ([1.0, 2.0], "cannot take data from a list"),
        ({"x": 1}, "cannot take data from a dict"),
    ],
    ids=str,
)
def test_refused_arrays(data: Any, problem: str) -> None:
    assert problem in message(load, data)


@pytest.mark.parametrize("heldout", [1.0, -0.1, float("nan")])
def test_refused_fraction(heldout: float) -> None:
    text = f"heldout={heldout} is not a fraction; use a number from 0 (nothing held out) to below 1"
    assert message(load, torch.zeros(5), heldout=heldout) == message(load, "digits", heldout=heldout) == text


def test_data_are_not_split_twice() -> None:
    assert "split already; leave heldout out" in message(load, load("digits"), heldout=0.5, error=UsageError)


CORRUPT = {
    "empty.npy": (b"", "cannot read empty.npy (No data left in file); save it again as .npy"),
    "text.npy": (b"hello, this is text", "text.npy holds Python objects, or is damaged, and is not read; save plain"),
    "cut.npz": (b"PK\x03\x04 cut short", "cannot read cut.npz"),
    "empty.csv": (b"", "cannot read empty.csv (No columns to parse from file); save it again as .csv"),
    "header.csv": (b"a,b\n", "header.csv holds no numbers; save at least 2 rows of them"),
    "latin.csv": (b"a,b\n1,\xff\xfe\n", "cannot read latin.csv"),
    "ragged.csv": (b"1,2\n1,2,3\n", "cannot read ragged.csv"),
    "wide.csv": (b"a,b\n1,2,3\n4,5,6\n", "cannot read wide.csv (Error tokenizing data. C error: Expected 2 fields"),
    "index.csv": (b",a\n0,1.5\n1,2.5\n", "index.csv: a column has no name (row numbers?); name it, or save with"),
    "words.csv": (b"a,b\n1,x\n2,y\n", "words.csv: column 'b' is not numeric; leave it out or code it as numbers"),
    "semicolon.csv": (b"a;b\n1;2\n3;4\n", "semicolon.csv: column 'a;b' is not numeric"),
    "gap.csv": (b"a,b\n1,2\n3,\n", "gap: the table: 1 value (first in row 1, counted from 0) is NaN or infinite"),
    "text.parquet": (b"hello", "cannot read text.parquet"),
    "notes.txt": (b"1 2", "unknown kind of file '.txt'; use one of .npy, .npz, .csv, .parquet"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_refused_files(tmp_path: Path, name: str) -> None:
    content, problem = CORRUPT[name]
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, str(tmp_path / name)):
        assert problem in message(load, path)


def test_refused_contents(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    assert "holds Python objects" in message(load, tmp_path / "objects.npy")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object))
    assert "holds Python objects" in message(load, tmp_path / "objects.npz")
    np.savez(tmp_path / "empty.npz")
    assert "empty.npz holds no array; save at least one" in message(load, tmp_path / "empty.npz")
    np.savez(tmp_path / "lengths.npz", x=np.zeros(3), y=np.zeros(4))
    assert "lengths: columns differ in their number of rows ('x' 3, 'y' 4)" in message(load, tmp_path / "lengths.npz")
    (tmp_path / "lengths.npz").rename(tmp_path / "wrong.npy")
    assert "wrong.npy holds several arrays; rename it to wrong.npz" in message(load, tmp_path / "wrong.npy")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    assert "one.npz holds one plain array; rename it to one.npy" in message(load, tmp_path / "one.npz")
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, x=np.random.default_rng(0).normal(size=1000))
    content = bytearray(whole.read_bytes())
    content[500] ^= 0xFF
    whole.write_bytes(content)
    assert "cannot read whole.npz" in message(load, whole)
    pd.DataFrame(index=range(3)).to_parquet(tmp_path / "none.parquet")
    assert "none.parquet holds no numbers; save at least 2 rows" in message(load, tmp_path / "none.parquet")


def test_refused_paths(tmp_path: Path) -> None:
    assert "is a folder; name one file in it: .npy, .npz, .csv, .parquet" in message(load, tmp_path)
    assert "is a folder" in message(load, str(tmp_path))
    assert "there is no file 'nowhere.csv'; check the path" in message(load, "nowhere.csv")
    assert "there is no file" in message(load, str(tmp_path / "nowhere.csv"))
    assert "unknown kind of file" in message(load, str(tmp_path / "nowhere"))
    text = message(load, "x.csv(header=True)", error=UsageError)
    assert text == "the file 'x.csv' has no options; leave out what is in parentheses"


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    text = "reading x.parquet needs pyarrow; install it with: pip install 'pyro-vi[parquet]'"
    assert message(load, tmp_path / "x.parquet") == text


# ---- names and options


def test_available() -> None:
    assert list(available()) == ["digits", "mnist", "mnist_static", "omniglot"]
    assert all(text and "\n" not in text for text in available().values())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "digts",
            "no data set named 'digts'; did you mean 'digits'? Available: digits, mnist, mnist_static, omniglot; or",
        ),
        ("digts(binarize=False)", "did you mean 'digits'?"),
        (
            "digits(binarise=False)",
            "data set 'digits' has no option 'binarise'; did you mean 'binarize'? Its options are",
        ),
        ("digits(binarize='no')", "data set 'digits': binarize='no' is not allowed; use True or False"),
        ("digits(binarize=1)", "binarize=1 is not allowed; use True or False"),
        ("digits(binarize=True, standardize=True)", "exclude each other; leave one out"),
        ("digits(False)", "'False' has no option name; write it as option=value"),
        ("digits(binarize=", "cannot read 'digits(binarize='"),
        ("omniglot(heldout_part='train')", "heldout_part='train' is not allowed; use 'test' or 'valid'"),
        ("mnist(standardize=True)", "has no option 'standardize'; did you mean 'binarize'? Its options are: binarize"),
    ],
)
def test_refused_names(name: str, problem: str) -> None:
    assert problem in message(load, name, error=UsageError)


def test_sets_with_their_own_split_refuse_another() -> None:
    text = "data set 'mnist' has a held-out part of its own; leave heldout out"
    assert message(load, "mnist", heldout=0.1, error=UsageError) == text


# ---- values are checked against the spec


@pytest.mark.parametrize(
    ("support", "good", "bad"),
    [
        ("boolean", [0.0, 1.0], [0.5, 2.0]),
        ("unit_interval", [0.0, 0.5], [-0.1, 1.1]),
        ("nonnegative_integer", [0.0, 7.0], [-1.0, 0.5]),
        ("real", [-1.0, 1e30], []),
    ],
)
def test_spec_checks_values(support: str, good: list[float], bad: list[float]) -> None:
    spec = DataSpec("mine", 10, (2,), support, torch.float32, "made")
    spec.check(torch.tensor([good]))
    spec.check(torch.zeros(0, 2))
    spec.check(torch.zeros(3, 2, dtype=torch.int64))
    if bad:
        text = message(spec.check, torch.tensor([good, bad]))
        wanted = (
            rf"mine: 2 values \(first in row 1, counted from 0\) are outside the support '{support}' \(.*\); scale or"
        )
        assert re.match(wanted, text)
    text = message(spec.check, torch.tensor([good, good, [float("nan"), float("inf")]]))
    assert text == "mine: 2 values (first in row 2, counted from 0) are NaN or infinite; drop or fill those rows"
    text = "mine: values have shape (2, 3), not (rows, 2); give rows like those of the training data"
    assert message(spec.check, torch.zeros(2, 3)) == text
    assert "have shape ()" in message(spec.check, torch.tensor(1.0))


# ---- data sets in files


@pytest.fixture
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYRO_VI_DATA", raising=False)


@pytest.mark.parametrize(("name", "relative"), [("mnist_static", STATIC), ("omniglot", OMNIGLOT)])
def test_missing_and_damaged_folders(
    name: str, relative: str, no_folder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"data set '{name}': PYRO_VI_DATA is not set; set it to a folder that has {relative}"
    assert message(load, name) == text
    monkeypatch.setenv("PYRO_VI_DATA", str(tmp_path))
    assert message(load, name) == text.replace("is not set", f"has no {relative}")
    (tmp_path / relative).parent.mkdir()
    (tmp_path / relative).write_bytes(b"PK\x03\x04 damaged")
    text = message(load, name)
    assert text.startswith(f"data set '{name}': cannot read ")
    assert text.endswith("; replace the file by an intact copy")


def test_small_mnist_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRO_VI_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    assert "put the original train-images-idx3-ubyte.gz there" in message(load, "mnist")
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    header = np.array([2051, 5, 28, 28], ">u4").tobytes()
    for name in datasets.MNIST_SHA256:
        (tmp_path / "mnist" / name).write_bytes(gzip.compress(header + images.tobytes()))
    data = load("mnist(binarize=False)")
    assert torch.equal(data.heldout[0], torch.from_numpy(images).reshape(5, 784) / 255)
    assert same(data.train(), data.heldout)
    for content in (b"no gzip", gzip.compress(b"short"), gzip.compress(header + b"1"), gzip.compress(b"\0" * 16)):
        (tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(content)
        assert "put the original t10k-images-idx3-ubyte.gz there" in message(load, "mnist")


@needs_folder
def test_mnist() -> None:
    data, grey = load("mnist"), load("mnist(binarize=False)")
    assert data.spec.num_data == 60000
    assert (data.spec.event_shape, data.spec.image_shape, data.spec.support) == ((784,), (28, 28), "boolean")
    assert grey.spec.support == "unit_interval"
    assert data.columns[0].dtype == torch.uint8
    (heldout,), (pixels,) = data.heldout, grey.heldout
    assert heldout.shape == pixels.shape == (10000, 784)
    assert round(float(pixels.mean()), 4) == 0.1325  # the well-known mean of the test images, 33.8 / 255
    assert abs(float((heldout - pixels).sum())) < 4 * float((pixels * (1 - pixels)).sum().sqrt())
    index, (batch,) = next(data.batches(0, 100))
    assert batch.shape == (100, 784)
    assert torch.equal(batch, data.train(0)[0][index])
    assert torch.equal(data.example(5)[0], data.train(0)[0][:5])


@needs_folder
def test_mnist_static() -> None:
    data, valid = load("mnist_static"), load("mnist_static(heldout_part='valid')")
    (train,) = data.train()
    assert (train.shape, data.heldout[0].shape) == ((50000, 784), (10000, 784))
    assert (data.spec.support, data.spec.image_shape) == ("boolean", (28, 28))
    means = [round(float(x.mean(dtype=torch.float64)), 4) for x in (train, valid.heldout[0], data.heldout[0])]
    assert means == [0.1306, 0.1311, 0.1325]
    data.spec.check(data.heldout[0])
    assert data.to(dtype=torch.float64).columns[0].dtype == torch.uint8


@needs_folder
def test_omniglot() -> None:
    data, grey = load("omniglot"), load("omniglot(binarize=False, heldout_part='valid')")
    assert (data.spec.num_data, data.heldout[0].shape, grey.heldout[0].shape) == (23000, (8115, 784), (1345, 784))
    assert (data.spec.support, grey.spec.support, data.spec.image_shape) == ("boolean", "unit_interval", (28, 28))
    (batch,), (pixels,) = data.example(4000), grey.example(4000)
    assert abs(float((batch - pixels).sum())) < 4 * float((pixels * (1 - pixels)).sum().sqrt())


# ---- downloads


@pytest.fixture
def cache(tmp_path: Path, no_folder: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache" / "pyro_vi"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | Path], None]]:
    servers = []

    def start(folder: str | Path) -> None:
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(datasets, "MNIST_URL", f"http://127.0.0.1:{server.server_port}/")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


FOLDER = os.environ.get("PYRO_VI_DATA", "")


@needs_folder
def test_mnist_is_downloaded_once(cache: Path, serve: Callable[[str | Path], None], monkeypatch: Any) -> None:
    serve(Path(FOLDER) / "mnist")
    downloaded = load("mnist(binarize=False)")
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == sorted(datasets.MNIST_SHA256)
    monkeypatch.setattr(datasets, "MNIST_URL", "http://127.0.0.1:9/")
    again = load("mnist(binarize=False)")  # from the cache: nothing listens there
    assert same(downloaded.columns, again.columns)
    monkeypatch.setenv("PYRO_VI_DATA", FOLDER)
    assert same(downloaded.columns, load("mnist(binarize=False)").columns)


def test_failed_download(cache: Path, serve: Callable[[str | Path], None], tmp_path: Path, monkeypatch: Any) -> None:
    name = "train-images-idx3-ubyte.gz"
    remedy = f"; set PYRO_VI_DATA to a folder that has mnist/{name}"
    monkeypatch.setattr(datasets, "MNIST_URL", "http://127.0.0.1:9/")
    text = message(load, "mnist")
    assert text.startswith(f"data set 'mnist': cannot download http://127.0.0.1:9/{name} (")
    assert text.endswith(remedy)
    (tmp_path / "served").mkdir()
    serve(tmp_path / "served")
    assert "404" in message(load, "mnist")
    (tmp_path / "served" / name).write_bytes(b"something else")
    text = message(load, "mnist")
    assert "SHA256" in text
    assert text.endswith(remedy)
    assert not (cache / "mnist" / name).exists()
