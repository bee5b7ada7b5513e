"""Own tables, arrays and sequences: which columns are data, what is a label, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_toys import message, same

from pyro_vi.data.loading import load, with_data_options
from pyro_vi.errors import InputError, UsageError

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "a": RNG.normal(size=12),
        "kind": ["red", "blue", "red"] * 4,
        "b": RNG.normal(size=12) + 5,
        "place": ["x", "y"] * 6,
        "y": np.arange(12) * 0.5,
    }
)


def in_python(frame: Any, tmp_path: Path) -> tuple[Any, str]:
    return frame, ""


def in_csv(frame: Any, tmp_path: Path) -> tuple[Any, str]:
    frame.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv", str(tmp_path / "t.csv")


def in_parquet(frame: Any, tmp_path: Path) -> tuple[Any, str]:
    frame.to_parquet(tmp_path / "t.parquet")
    return tmp_path / "t.parquet", str(tmp_path / "t.parquet")


@pytest.mark.parametrize("given", [in_python, in_csv, in_parquet])
def test_a_table_has_columns_with_roles(given: Callable[..., tuple[Any, str]], tmp_path: Path) -> None:
    source, text = given(FRAME, tmp_path)
    data = load(source, label="kind", target="y", group="place", heldout=0.0, dtype=torch.float64)
    x, y, group = data.train()
    assert data.spec.features == ("a", "b")
    torch.testing.assert_close(x, torch.tensor(FRAME[["a", "b"]].to_numpy()))
    assert y.tolist() == FRAME["y"].tolist()
    assert group.dtype == torch.int64
    assert group.tolist() == [0, 1] * 6
    assert [(column.name, column.classes) for column in data.spec.others] == [("target", ()), ("group", ("x", "y"))]
    assert data.labels is not None
    assert (data.labels.tolist(), data.classes) == ([1, 0, 1] * 4, ("blue", "red"))
    if text:  # a run's configuration names the data and the choice
        again = load(f"{text}(label='kind', target='y', group='place')", heldout=0.0, dtype=torch.float64)
        assert same(again.train(), data.train())
    labelled = load(source, label="kind", columns=("b", "a"), labels=True, seed=3)
    parts = torch.cat([labelled.train()[0], labelled.heldout[0]])
    assert labelled.spec.features == ("b", "a")
    assert parts.mean(0)[0] > 3
    assert labelled.spec.others[0].classes == ("blue", "red")
    assert torch.equal(labelled.train()[1], labelled.labels)  # type: ignore[arg-type]
    assert load(source, label="kind", columns="a, b").spec.features == ("a", "b")


def test_missing_labels_are_not_known_and_whole_numbers_stay() -> None:
    frame = pd.DataFrame({"a": np.arange(6.0), "kind": ["u", None, "v", "u", None, "v"], "code": [3, 0, 1, 3, 0, 1]})
    data = load(frame[["a", "kind"]], label="kind", heldout=0.0)
    assert data.labels is not None
    assert data.labels.tolist() == [0, -1, 1, 0, -1, 1]
    data = load(frame[["a", "code"]], label="code", heldout=0.0)
    assert data.labels is not None
    assert (data.labels.tolist(), data.classes) == (frame["code"].tolist(), ("0", "1", "2", "3"))


def test_labels_beside_arrays(tmp_path: Path) -> None:
    x, y = RNG.normal(size=(10, 9, 8)), np.array([0, 1] * 5)
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    for data in (
        load(x, label=y, seed=1),
        load(tmp_path / "xy.npz", label="y", seed=1),
        load({"x": x, "y": y}, label="y", seed=1),
        load(torch.from_numpy(x).float(), label=torch.from_numpy(y), seed=1),
    ):
        assert data.labels is not None
        assert data.heldout_labels is not None
        assert data.spec.image_shape == (9, 8)
        assert data.spec.others == ()
        kept = [int(np.abs(x - row.numpy()).reshape(10, -1).max(1).argmin()) for row in data.columns[0]]  # type: ignore[union-attr]
        assert data.labels.tolist() == y[kept].tolist()
    assert load(x, label=y, labels=2).train()[1].tolist().count(-1) == 9 - 4


def test_new_values_are_standardised_as_the_training_rows() -> None:
    x = RNG.normal(size=(40, 3)) * [1, 10, 100] + 7
    raw, data = load(x, dtype=torch.float64), load(x, standardize=True, dtype=torch.float64)
    (train,) = raw.train()
    torch.testing.assert_close(data.train()[0], (train - train.mean(0)) / train.std(0, correction=0))
    torch.testing.assert_close(data.heldout[0], (raw.heldout[0] - train.mean(0)) / train.std(0, correction=0))
    torch.testing.assert_close(data.standardized(raw.heldout[0]), data.heldout[0])
    assert load(np.arange(20), standardize=True).spec.support == "real"
    (image,) = load(RNG.uniform(size=(20, 8, 8)) * [1.0] * 7 + [0.0], standardize=True).train()
    assert float(image.mean()) == pytest.approx(0, abs=1e-6)
    assert float(image.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_sequences_become_padded_columns_with_lengths(tmp_path: Path) -> None:
    lengths = [5, 3, 4, 5]
    pieces = [RNG.normal(size=(length, 2)) + 3 for length in lengths]
    data = load(pieces, heldout=0.0, dtype=torch.float64)
    x, found = data.train()
    assert x.shape == (4, 5, 2)
    assert found.tolist() == lengths
    assert all(torch.equal(row[:n], torch.from_numpy(p)) for row, n, p in zip(x, lengths, pieces, strict=True))
    assert not x[1, 3:].any()
    assert [column.name for column in data.spec.others] == ["lengths"]
    np.savez(tmp_path / "flat.npz", x=np.concatenate(pieces), lengths=np.array(lengths))
    wide = np.full((4, 5, 2), 9.0)
    for row, piece in zip(wide, pieces, strict=True):
        row[: len(piece)] = piece
    np.savez(tmp_path / "wide.npz", x=wide, lengths=np.array(lengths))
    for name in ("flat.npz", "wide.npz"):
        other = load(tmp_path / name, heldout=0.0, dtype=torch.float64)
        assert same(other.train(), data.train())
        assert other.spec.others[0].name == "lengths"
    scaled, _ = load(pieces, heldout=0.0, standardize=True, dtype=torch.float64).train()
    steps = torch.cat([row[:n] for row, n in zip(scaled, lengths, strict=True)])
    torch.testing.assert_close(steps.mean(0), torch.zeros(2).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(steps.std(0, correction=0), torch.ones(2).double())
    assert not scaled[1, 3:].any()


def test_a_target_of_words_is_their_numbers_with_their_names() -> None:
    frame = FRAME.assign(kind=["yes" if kind == "red" else "no" for kind in FRAME["kind"]])
    data = load(frame, columns="a,b", target="kind", heldout=0.0)
    (column,) = data.spec.others
    assert (column.name, column.support, column.classes) == ("target", "boolean", ("no", "yes"))
    assert data.train()[1].tolist() == [int(kind == "red") for kind in FRAME["kind"]]


def test_labels_beside_a_table_are_kept_apart_as_those_of_a_column_are() -> None:
    kinds = list(FRAME["kind"])
    beside, inside = load(FRAME[["a", "b"]], label=kinds), load(FRAME, columns="a,b", label="kind")
    assert beside.classes == inside.classes
    assert same((beside.labels, beside.heldout_labels), (inside.labels, inside.heldout_labels))


def test_groups_are_numbered_without_gaps_under_their_names() -> None:
    frame = pd.DataFrame({"a": np.arange(6.0), "y": np.ones(6), "g": [1010, 7, 7, 1010, 7, 12]})
    data = load(frame, target="y", group="g", heldout=0.0)
    assert data.train()[2].tolist() == [2, 0, 0, 2, 0, 1]
    assert data.spec.others[1].classes == ("7", "12", "1010")
    assert load(frame.assign(g=[2, 0, 1, 1, 0, 2]), target="y", group="g", heldout=0.0).train()[2].tolist() == [
        2,
        0,
        1,
        1,
        0,
        2,
    ]


@pytest.mark.parametrize(
    ("data", "options", "problem"),
    [
        (
            FRAME,
            {"label": "knd"},
            "the table: no column named 'knd'; did you mean 'kind'? Available: a, kind, b, place, y",
        ),
        (FRAME, {}, "the table: column 'kind' is not numeric; leave it out or code it as numbers"),
        (FRAME, {"columns": ("a", "c")}, "no column named 'c'"),
        (FRAME, {"columns": ()}, "columns=() is not allowed; give names, such as columns=('a', 'b')"),
        (FRAME, {"columns": ("a",), "label": "a"}, "column 'a' is asked for twice; give each column one role"),
        (
            pd.DataFrame({"a": [1.0, 2, 3], "y": ["no", None, "yes"]}),
            {"target": "y"},
            "column 'y': the target is missing in row 1, counted from 0; drop those rows",
        ),
        (
            pd.DataFrame({"a": [1.0, 2, 3], "y": pd.date_range("2020", periods=3)}),
            {"target": "y"},
            "the table: column 'y' is not numeric",
        ),
        (FRAME[["a"]], {"label": [1, 2]}, "the table: the labels have shape (2,), not "),
        (FRAME, {"target": 3}, "target=3 is not allowed; give the name of a column"),
        (FRAME, {"columns": "a", "labels": True}, "labels needs to know which column holds them; give label too"),
        (FRAME, {"columns": "a", "label": "kind", "labels": 0}, "labels=0 is not allowed; use True, False or a whole"),
        (FRAME, {"columns": "a", "label": "kind", "labels": 9}, "class 'blue' has "),
        (FRAME, {"standardise": True}, "load has no option 'standardise'; did you mean 'standardize'?"),
        (FRAME, {"standardize": 1}, "standardize=1 is not allowed; use True or False"),
        (FRAME[["kind", "y"]], {"label": "kind", "target": "y"}, "the table holds no numbers; save at least 2 rows"),
        (pd.concat([FRAME["a"], FRAME["a"]], axis=1), {}, "two columns have the name 'a'; give each a name of its own"),
        (
            pd.DataFrame({"a": [1.0, 2, 3], "g": ["u", None, "v"]}),
            {"group": "g"},
            "the group is missing in row 1, counted",
        ),
        (pd.DataFrame({"a": [1.0, 1, 1]}), {"standardize": True}, "column 'a' has one value in all training rows"),
        (
            np.zeros((9, 2)),
            {"standardize": True},
            "array: column 0 (counted from 0) has one value in all training rows",
        ),
        (
            np.zeros((9, 2)),
            {"columns": "a"},
            "an array has no named columns, so columns cannot be chosen; give a table",
        ),
        (np.zeros((9, 2)), {"label": "a"}, "an array has no named columns, so label cannot be chosen"),
        (
            np.zeros((9, 2)),
            {"label": np.zeros(8)},
            "array: the labels have shape (8,), not (9,); give one for each row",
        ),
        (np.zeros((900, 2)), {"label": np.arange(900) / 2}, "the label has 900 different values, too many for classes"),
        ({"x": np.zeros(9)}, {"label": "x"}, "array: 'x' is the only array, so that nothing is left to be fitted"),
        ({"x": np.zeros(9), "y": np.ones(9)}, {"label": "y", "labels": True}, "leave labels out, or label"),
        ((np.zeros(9), 3), {"target": "y"}, "an array has no named columns, so target cannot be chosen"),
        (None, {"standardize": True}, "there are no columns; leave standardize out"),
        ([np.zeros((3, 2)), np.zeros((0, 2))], {}, "sequence 1 (counted from 0) has no step; leave it out"),
    ],
    ids=str,
)
def test_refused_choices(data: Any, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        load(data, **options)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refused_lengths(tmp_path: Path) -> None:
    np.savez(tmp_path / "short.npz", x=np.zeros((7, 2)), lengths=np.array([3, 5]))
    assert "'x' has shape (7, 2), and the 2 lengths 'lengths' add up to 8; give" in message(
        load, tmp_path / "short.npz"
    )
    np.savez(tmp_path / "real.npz", x=np.zeros((7, 2)), lengths=np.array([3.0, 4.0]))
    assert "the lengths 'lengths' must be whole numbers of at least 1" in message(load, tmp_path / "real.npz")
    np.savez(tmp_path / "parts.npz", train=np.zeros((7, 2)), test=np.zeros((3, 2)))
    text = message(load, tmp_path / "parts.npz", label=np.zeros(7), error=UsageError)
    assert text == "parts.npz has a test part of its own, for which there are no labels; leave label out"


def test_options_become_part_of_the_name(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "my table.csv", index=False)
    path = str(tmp_path / "my table.csv")
    name = with_data_options(path, {"columns": "a,b", "label": "kind", "standardize": True})
    assert name == f"{path}(columns='a,b', label='kind', standardize=True)"
    data = load(name)
    assert (data.spec.features, data.classes) == (("a", "b"), ("blue", "red"))
    assert with_data_options("my table.csv", {"label": "kind"}) == "./my table.csv(label='kind')"
    assert with_data_options("digits", {}) == "digits"
    text = message(with_data_options, "wine(standardize=True)", {"standardize": True}, error=UsageError)
    assert text == "'wine(standardize=True)': the option 'standardize' is given twice; give it once"
