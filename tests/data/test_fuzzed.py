"""Whatever is in a file, it gives data or one clear line."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyro_vi.data.files import FILES
from pyro_vi.data.loading import load
from pyro_vi.data.sets.images import _idx
from pyro_vi.errors import InputError

X = np.arange(12.0).reshape(6, 2)
ROWS = pd.DataFrame({"a": X[:, 0], "b": ["x", "y"] * 3})


def saved(write: Callable[[Any], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


WHOLE = {
    ".npy": saved(lambda file: np.save(file, X)),
    ".npz": saved(lambda file: np.savez_compressed(file, x=X, y=np.arange(6), names=np.array(["a", "b"] * 3))),
    ".csv": ROWS.to_csv(index=False).encode(),
    ".parquet": saved(ROWS.to_parquet),
    ".gz": gzip.compress(np.array([2051, 2, 28, 28], ">u4").tobytes() + bytes(2 * 784)),
}
CELLS = st.sampled_from(
    ["", "1", "-2.5", "1e999", "nan", "a", '"', '"a,b"', "\x1b[2J", "\0", "True", "9" * 400, "é", " "]
)
TABLES = st.lists(st.lists(CELLS, min_size=1, max_size=4).map(",".join), max_size=5).map("\n".join).map(str.encode)
NUMBERS = st.sampled_from([-1, 0, 1, 6, 2**31, 2**64, 10**30])
DESCR = st.sampled_from(["<f8", ">f4", "|b1", "|O", "<U9", "|V0", "<M8[s]", "<c16", "f8,O", "no", ""]) | st.text(
    max_size=4
)
HEADERS = st.builds(
    lambda descr, shape, fortran: repr({"descr": descr, "fortran_order": fortran, "shape": tuple(shape)}),
    DESCR,
    st.lists(NUMBERS, max_size=4),
    st.booleans(),
) | st.text("({[]}),:'\"\\\n#1a", max_size=60)


def array(header: str, body: bytes) -> bytes:
    text = header.encode("latin1", "replace")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def mutated(content: bytes, changes: list[tuple[int, int]], end: int) -> bytes:
    found = bytearray(content[: max(0, len(content) - end)])
    for place, byte in changes:
        if found:
            found[place % len(found)] = byte
    return bytes(found)


def contents(suffix: str) -> st.SearchStrategy[bytes]:
    changes = st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=6)
    found = st.builds(mutated, st.just(WHOLE[suffix]), changes, st.sampled_from([0, 0, 0, 1, 7, 60]))
    if suffix == ".csv":
        return found | TABLES | st.binary(max_size=40)
    return found | st.builds(array, HEADERS, st.binary(max_size=64)) if suffix == ".npy" else found


def fuzz(suffix: str, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        if suffix == ".gz":
            _idx(path, "images")
        else:
            load(path)
    except InputError as error:
        assert str(error).isprintable()


def test_whole_files_are_read(tmp_path: Path) -> None:
    """So that the others are near to what is read."""
    for suffix in (".npy", ".npz", ".csv", ".parquet"):
        (tmp_path / f"x{suffix}").write_bytes(WHOLE[suffix])
        assert load(
            tmp_path / f"x{suffix}", **({} if suffix == ".npy" else {"label": "names" if suffix == ".npz" else "b"})
        )
    (tmp_path / "x.gz").write_bytes(WHOLE[".gz"])
    assert _idx(tmp_path / "x.gz", "images").shape == (2, 784)
    assert {*WHOLE} == {*FILES, ".gz"}


@pytest.mark.parametrize("suffix", WHOLE)
@pytest.mark.parametrize("examples", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_any_file_gives_data_or_one_line(suffix: str, examples: int, tmp_path: Path) -> None:
    health = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=health)
    @given(content=contents(suffix))
    def run(content: bytes) -> None:
        fuzz(suffix, tmp_path / f"x{suffix}", content)

    run()
