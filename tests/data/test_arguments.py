"""Arguments of programs: columns, which have a row for each datum, and what is passed on as it is."""

from collections import namedtuple
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_toys import same

from pyro_vi.data.arguments import part, split
from pyro_vi.data.dataset import length_of
from pyro_vi.data.loading import load

X, MASK = torch.arange(10.0).reshape(5, 2), torch.tensor([True, False, True, True, False])
Scale = namedtuple("Scale", ["loc", "sd"])


def test_each_argument_comes_back_in_its_place() -> None:
    given = (X, None, 3, "word", {"mask": MASK, "lags": [X[:, 0], 2]}, Scale(X, 1.0), torch.tensor(2.0), torch.ones(4))
    arguments, columns = split(given)
    assert list(columns) == ["argument 0", "argument 4['mask']", "argument 4['lags'][0]"]
    rows = tuple(column[2:4] for column in columns.values())
    x, none, number, word, inner, scale, single, other = arguments.fill(rows)
    assert (none, number, word, single, other) == (None, 3, "word", given[6], given[7])
    assert same((x, inner["mask"], inner["lags"][0]), (X[2:4], MASK[2:4], X[2:4, 0]))
    assert inner["lags"][1] == 2
    assert scale is given[5]  # a tuple of a class of its own is not looked into


def test_the_first_tensor_or_array_says_how_many_rows_there_are() -> None:
    assert list(split((3, torch.tensor(1.0), np.zeros(4), torch.zeros(5), torch.zeros(4, 2)))[1]) == [
        "argument 2",
        "argument 4",
    ]


def test_rows_of_arguments_that_are_together() -> None:
    given = (X, None, {"mask": MASK}, [X, 7], torch.ones(4))
    x, none, inner, several, other = part(given, 1, 3)
    assert same((x, inner["mask"], several[0]), (X[1:3], MASK[1:3], X[1:3]))
    assert (none, several[1], other) == (None, 7, given[4])


def test_names_of_keyword_arguments() -> None:
    data = load({"y": X, "mask": MASK, "size": 5}, heldout=0.4)
    assert data.arguments is not None
    assert data.arguments.names == ("y", "mask", "size")
    assert [len(data.example(5)[i]) for i in (0, 1)] == [3, 3]
    assert [len(data.heldout[i]) for i in (0, 1)] == [2, 2]
    assert data.example()[2] == data.heldout[2] == 5
    together = torch.cat([data.train()[0], data.heldout[0]])
    assert torch.equal(together.sort(0).values, X)


@pytest.mark.parametrize("given", [None, (), (7, "word", torch.tensor(2.0)), {"size": 7}, [1.0, 2.0]], ids=str)
def test_programs_that_hold_their_data_have_one_row(given: Any) -> None:
    data = load(given)
    expected = tuple(
        (given.values() if isinstance(given, dict) else [given] if isinstance(given, list) else given) or ()
    )
    assert (data.spec.num_data, data.num_heldout, data.columns, data.heldout) == (1, 0, (), expected)
    assert data.example() == data.train() == expected
    ((rows, batch),) = data.batches(0, 1)
    assert (rows.tolist(), batch) == ([0], expected)


def test_whole_numbers_and_truth_values_stay_what_they_are() -> None:
    given = {"x": X.double(), "group": torch.tensor([0, 1, 2, 0, 1]), "mask": MASK}
    for integers, dtypes in ((None, (torch.float64, torch.int64, torch.bool)), (False, 3 * (torch.float64,))):
        data = load(given, heldout=0.4, integers=integers)
        for batch in (data.train(), data.heldout, data.example(), next(data.batches(0, 2))[1]):
            assert tuple(value.dtype for value in batch) == dtypes
    assert load(MASK, heldout=0.0).train()[0].dtype == torch.float32
    assert load(MASK, heldout=0.0, integers=True).train()[0].dtype == torch.bool


def test_frames_are_columns() -> None:
    frame = pd.DataFrame({"a": [0.5, 1.5, 2.5], "b": [1.0, 2.0, 3.0]})
    table, column = load((frame, frame["a"]), heldout=0.0).train()
    assert table.tolist() == [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]]
    assert column.tolist() == [0.5, 1.5, 2.5]
    assert torch.equal(load(frame, heldout=0.0).train()[0], table)


def test_what_is_passed_on_whole_has_the_dtype_and_the_device_of_the_columns() -> None:
    prior = np.linspace(0.0, 1.0, 3)
    prior.flags.writeable = False
    x, loc, count = load((np.arange(4.0), prior, np.arange(2, dtype=np.int32)), heldout=0.0).train()
    assert (x.dtype, loc.dtype, count.dtype) == (torch.float32, torch.float32, torch.int64)
    loc[0] = 5.0
    assert prior[0] == 0.0  # copied, as columns are
    words = np.array(["a", "b", "c"])
    assert load((X, words), heldout=0.0).train()[1] is words
    for data in (
        load((X, torch.ones(3)), heldout=0.4, dtype=torch.float64),
        load((X, torch.ones(3)), heldout=0.4).to(dtype=torch.float64),
    ):
        assert {value.dtype for value in (*data.train(), *data.heldout)} == {torch.float64}
    assert {value.device.type for value in load((X, torch.ones(3))).to("meta").train()} == {"meta"}


def test_order_and_last_batch() -> None:
    data = replace(load((torch.arange(7),), heldout=0.0), shuffle=False)
    assert [batch[0].tolist() for _, batch in data.batches(3, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert data.per_epoch(3) == 7
    data = replace(data, drop_last=True)
    assert [batch[0].tolist() for _, batch in data.batches(3, 3)] == [[0, 1, 2], [3, 4, 5]]
    assert (data.per_epoch(3), data.per_epoch(7), data.per_epoch(9)) == (6, 7, 7)
    shuffled = replace(data, shuffle=True)
    seen = [int(row) for _, batch in shuffled.batches(3, 3) for row in batch[0]]
    assert len(set(seen)) == 6 and seen != sorted(seen)
    assert load(data, heldout=None) is data


def test_the_rows_of_a_dictionary_are_those_of_its_first_column():
    args = (None, {"scale": torch.tensor(2.0), "x": torch.arange(4), "other": [torch.ones(3)]}, torch.zeros(4, 2))
    assert length_of(args) == 4
    cut = part(args, 1, 3)
    assert cut[1]["x"].tolist() == [1, 2]
    assert cut[2].shape == (2, 2)
    assert length_of(cut) == 2
