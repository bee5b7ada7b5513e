"""New rows become what the programs take: all of them, in the units, the order and the codes of the data of the fit."""

import numpy as np
import pandas as pd
import pytest
import torch
from data_toys import message

from pyro_vi.data import load, numbered, rows_like

X = torch.arange(60.0).reshape(20, 3)


def frame(rows=20):
    x = X.numpy()[:rows]
    kinds = [["u", "v"][i % 2] for i in range(rows)]
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": x[:, 2], "county": kinds, "kind": kinds[::-1]})


def test_columns_of_a_table_have_the_roles_and_the_codes_of_the_run():
    data = load(frame(), target="y", group="county", label="kind", labels=True)
    new = frame(7)[["kind", "county", "y", "b", "a"]].iloc[[1, 3, 5]]
    x, y, group, label = rows_like(data, new)
    assert x.tolist() == X[[1, 3, 5], :2].tolist() and y.tolist() == X[[1, 3, 5], 2].tolist()
    assert group.tolist() == [1, 1, 1] and label.tolist() == [1, 1, 1]  # "v" is 1, though it is alone here
    assert rows_like(data, new.drop(columns="kind"))[3].tolist() == [-1, -1, -1]  # labels may be unknown
    assert "no column 'y'" in message(rows_like, data, new.drop(columns="y"))
    assert "'county' holds 'w', which the data of the run do not have" in message(
        rows_like, data, new.assign(county="w")
    )
    assert "a column of the new table is not numeric" in message(rows_like, data, new.assign(a="w"))


def test_arguments_come_into_their_places():
    data = load((X, X[:, 0].long(), None, {"weight": X[:, 1]}))
    new = (X[:4] + 1, X[:4, 0].long(), None, {"weight": X[:4, 1]})
    x, y, none, more = rows_like(data, new)
    assert (
        torch.equal(x, new[0])
        and torch.equal(y, new[1])
        and none is None
        and torch.equal(more["weight"], new[3]["weight"])
    )
    assert "the programs take 3 columns" in message(rows_like, data, X)
    assert "new rows have shape (4, 2)" in message(rows_like, data, (X[:4, :2], *new[1:]))
    assert "give whole numbers" in message(rows_like, data, (X[:4], X[:4, 0] + 0.5, None, new[3]))


def test_sequences_are_padded_to_the_length_of_the_run_and_standardised():
    sequences = [torch.arange(2.0 * n).reshape(n, 2) for n in (3, 5, 4, 5, 2, 3, 4, 5, 2, 1)]
    data = load(sequences, standardize=True)
    x, lengths = rows_like(data, [sequences[4], sequences[1]])
    loc, scale = data.standard
    assert x.shape == (2, 5, 2) and lengths.tolist() == [2, 5]
    assert torch.allclose(x[0, :2].double(), (sequences[4].double() - loc) / scale) and bool((x[0, 2:] == 0).all())
    assert "a sequence has 6 steps, and those of the run at most 5" in message(rows_like, data, [torch.zeros(6, 2)] * 2)


def test_supports_and_levels_are_those_of_the_run(tmp_path):
    binary = load("digits(binarize=True)")
    assert "outside the support 'boolean'" in message(rows_like, binary, np.full((2, 64), 0.5))
    (x,) = rows_like(binary, np.ones((2, 64), bool))
    assert x.dtype == binary.spec.dtype and bool((x == 1).all())
    assert len(rows_like(load("digits", seed=3), "digits")[0]) == 1797  # all rows of a data set
    np.savez(tmp_path / "two.npz", train=X.numpy(), test=X.numpy()[:2])
    assert len(rows_like(load(X), tmp_path / "two.npz")[0]) == 22


def test_data_in_other_units_are_brought_into_those_of_the_run():
    data, other = load(X, standardize=True), load(X * 2, standardize=True, heldout=0.0)
    assert torch.allclose(rows_like(data, other)[0], data.standardized(X * 2), atol=1e-5)
    assert torch.allclose(data.in_units(data.standardized(X)), X, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "text"), [(None, "hold their data themselves"), (numbered(load(X)), "none for new ones")]
)
def test_programs_that_take_no_new_rows_say_so(data, text):
    assert text in message(rows_like, load(data), X)
