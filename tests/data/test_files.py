"""Files that people bring give their arrays, and damaged ones one line each."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from data_toys import message, same

from pyro_vi.data import files
from pyro_vi.data.loading import load
from pyro_vi.errors import UsageError


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
    assert same(load(str(tmp_path / "xy.npz"), seed=2).train(), load((x, y), seed=2, integers=False).train())


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
    "semicolon.csv": (
        b"a;b\n1;2\n3;4\n",
        "semicolon.csv: the cells of the first line have semicolons between them; save",
    ),
    "comma.csv": (b"a;b\n1,5;2,5\n3;4\n", "comma.csv: the cells of the first line have semicolons between them; save"),
    "tabs.csv": (
        b"1.5\t2\n3\t4\n",
        "tabs.csv: the cells of the first line have tabs between them; save the table with",
    ),
    "twice.csv": (b"a,b,a\n1,2,3\n4,5,6\n", "twice.csv: two columns have the name 'a'; give each a name of its own"),
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


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    text = "reading x.parquet needs pyarrow; install it with: pip install 'pyro-vi[parquet]'"
    assert message(load, tmp_path / "x.parquet") == text
