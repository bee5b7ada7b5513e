"""Batches, epochs and held-out rows of a data set: equal bits from equal seeds; values are checked against the spec."""

import re

import numpy as np
import pytest
import torch
from data_toys import message, same
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vi.data.dataset import Data
from pyro_vi.data.loading import load
from pyro_vi.data.spec import DataSpec
from pyro_vi.errors import UsageError


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


def test_positive_sizes() -> None:
    data = load("digits")
    assert message(data.batches, 0, 0) == "batch_size must be a whole number of at least 1, not 0"
    assert message(data.example, 0) == "size must be a whole number of at least 1, not 0"
    assert message(load, "digits", seed=-1, error=UsageError).startswith("seed must be a whole number from 0 to ")
    assert "must not be negative" in message(data.train, -1)
    text = "dtype=torch.int64 is not a floating dtype; use torch.float32 or torch.float64"
    assert message(load, "digits", dtype=torch.int64) == message(data.to, dtype=torch.int64) == text


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
