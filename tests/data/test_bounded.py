"""Files from strangers: no code in them is run, and what a header claims is compared with the file before it takes memory."""

import gzip
import io
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_toys import message
from forging import Bomb

from pyro_vi.data.bounded import RATIO, UNPACKED, read_archive, read_idx
from pyro_vi.data.loading import load


def npy(shape: str, descr: str = "'<f8'", body: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return raw(header, body)


def raw(header: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


FOUR = npy("(4,)", body=np.arange(4.0).tobytes())
TOO_MANY = "which the file does not have)"
CLAIMS = {
    "long.npy": (npy("(1000000000000,)", body=bytes(80)), f"header claims 1000000000000 numbers of 8 bytes, {TOO_MANY}"),
    "longer.npy": (npy(f"({10**40},)"), TOO_MANY),
    "short.npy": (npy("(4,)", body=bytes(31)), f"header claims 4 numbers of 8 bytes, {TOO_MANY}"),
    "words.npy": (npy("(1,)", "'<U100000000'"), TOO_MANY),
    "negative.npy": (npy("(-5, -2)", body=bytes(80)), "header claims the shape (-5, -2)"),
    "empty.npy": (npy("(1000000000000, 0)"), "rows without numbers"),
    "nothing.npy": (npy("(1000000000000,)", "'|V0'"), "rows without numbers"),
    "open.npy": (raw(b"(" * 9000), "header is damaged"),
    "quotes.npy": (raw(b"{'descr': '''"), "header is damaged"),
    "call.npy": (raw(b"__import__('os').abort()"), "header is damaged"),
    "version.npy": (b"\x93NUMPY\x09\x00" + bytes(50), "version 9.0 of its format"),
    "long.npz": (archive({"x.npy": npy("(1000000000000,)")}), f"header claims 1000000000000 numbers of 8 bytes, {TOO_MANY}"),
    "text.npz": (archive({"x.txt": b"hello"}), "holds 'x.txt', which is no array"),
    "packed.npz": (archive({"x.npy": FOUR}, zipfile.ZIP_LZMA), "is compressed in another way than by NumPy"),
    "many.npz": (archive({f"{i}.npy": b"" for i in range(10_001)}), "holds 10001 arrays; give at most 10000"),
    "bomb.npz": (archive({"x.npy": npy("(9000000,)", body=bytes(72_000_000))}), "and would unpack to 72 MB (allowed: 67.1"),
    "wide.csv": (b"1" + b",1" * 65536 + b"\n", "the first line has more than 65536 cells"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLAIMS)
def test_a_header_that_claims_too_much_is_one_line(name: str, tmp_path: Path) -> None:
    content, text = CLAIMS[name]
    (tmp_path / name).write_bytes(content)
    assert text in message(load, tmp_path / name)


def test_no_name_in_an_archive_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(archive({"../../x.npy": FOUR, "/tmp/\x1b[31m.npy": FOUR}))
    found = read_archive(path)
    assert [*found] == ["../../x", "/tmp/\x1b[31m"] and found["../../x"].tolist() == [0, 1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]


def test_one_array_of_many_is_read_and_the_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(archive({"a.npy": npy("(10,)"), "b.npy": FOUR}))
    assert {name: x.tolist() for name, x in read_archive(tmp_path / "x.npz", ["b"]).items()} == {"b": [0, 1, 2, 3]}


def test_pickles_are_not_read(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Bomb(marker)))
    marker.rmdir()  # so the bomb is one
    bomb = np.array([Bomb(marker)] * 2, dtype=object)
    np.save(tmp_path / "x.npy", bomb, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=bomb)
    pair = np.empty(2, dtype=[("a", float), ("b", object)])
    pair["b"] = bomb
    np.save(tmp_path / "pair.npy", pair, allow_pickle=True)
    pd.to_pickle(bomb, tmp_path / "bare.npy")
    for name in ("x.npy", "x.npz", "pair.npy", "bare.npy"):
        assert "holds Python objects, or is damaged, and is not read" in message(load, tmp_path / name)
    assert not marker.exists()


def test_idx_files(tmp_path: Path) -> None:
    path, header = tmp_path / "x.gz", np.array([2051, 2, 1, 3], ">u4").tobytes()
    path.write_bytes(gzip.compress(header + bytes(range(6))))
    assert read_idx(path, 2051, 3).tolist() == [[[0, 1, 2]], [[3, 4, 5]]]
    for content, text in (
        (header + bytes(5), "claims 6 bytes, which it does not have"),
        (header + bytes(7), "claims 6 bytes, which it does not have"),
        (header[:15], "not an IDX file"),
        (np.array([2051, 2**32 - 1, 2**32 - 1, 2**32 - 1], ">u4").tobytes(), "would unpack to 7.92e+22 MB"),
    ):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match=re.escape(text)):
            read_idx(path, 2051, 3)


def test_parquet_files_that_repeat_their_rows(tmp_path: Path) -> None:
    rows = UNPACKED // 8 + 1
    pd.DataFrame({"x": np.zeros(rows, np.int8)}).to_parquet(tmp_path / "x.parquet")
    assert "x.parquet has 0.0" in (said := message(load, tmp_path / "x.parquet")) and "would unpack to 67.1 MB" in said
    pd.DataFrame({"x": range(4000), "y": 4000 * ["word" * 5000]}).to_parquet(tmp_path / "y.parquet")
    assert "would unpack to 80 MB (allowed: 67.1 MB)" in message(load, tmp_path / "y.parquet")
    pd.DataFrame({"x": range(4), "y": [*"abab"]}).to_parquet(tmp_path / "z.parquet")
    assert load(tmp_path / "z.parquet", label="y", heldout=0).classes == ("a", "b")


PEAK = """
import resource, sys
from pyro_vi.data.loading import load
load("digits")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load(sys.argv[1])
except ValueError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes are Linux's unit of the peak memory")
@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_bomb_takes_no_memory(kind: str, tmp_path: Path) -> None:
    """2.4 GB of zeros in 2.3 MB, and 10^8 rows in less."""
    path = tmp_path / f"x.{kind}"
    if kind == "npz":
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
            file.open("x.npy", "w", force_zip64=True) as member,
        ):
            member.write(npy("(300000000,)"))
            for _ in range(2400):
                member.write(bytes(10**6))
    else:
        pd.DataFrame({"x": np.zeros(10**8, np.int8)}).to_parquet(path)
    assert path.stat().st_size < 2.4e9 / RATIO / 9
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    kilobytes, said = done.stdout.split(maxsplit=1)
    assert "would unpack to" in said and int(kilobytes) < 60_000
