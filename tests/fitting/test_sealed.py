"""Sealed files: what was written comes back, and nothing else is parsed."""

import io
import random
import zipfile

import pytest
import torch
from forging import RUN, sealed

from pyro_vi.fitting.sealed import SEAL, Damaged, read_sealed, write_sealed

STATE = {"pair": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True)}, "step": 3, "x": [1.5, None, "é"]}


@pytest.fixture
def path(tmp_path):
    write_sealed(tmp_path / "it.pt", STATE, RUN, "checkpoint")
    return tmp_path / "it.pt"


def test_what_was_written_comes_back_and_torch_can_read_it_too(path):
    for found in (read_sealed(path, RUN, "checkpoint"), read_sealed(path, None, "checkpoint"), torch.load(path)):
        assert found.keys() == STATE.keys() and (found["step"], found["x"]) == (3, [1.5, None, "é"])
        assert all(torch.equal(found["pair"][name], value) for name, value in STATE["pair"].items())


def test_every_flipped_bit_is_found(path):
    content = path.read_bytes()
    for position in random.Random(0).sample(range(len(content)), 150):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(Damaged):
            read_sealed(path, RUN, "checkpoint")
    for position in range(len(content) - SEAL - 22, len(content)):  # the end of the archive, and the seal
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(Damaged):
            read_sealed(path, RUN, "checkpoint")


def test_every_length_but_the_right_one_is_found(path):
    content = path.read_bytes()
    for length in (*range(0, len(content), 97), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(Damaged, match="it is empty" if not length else "has no checksum: it was cut off"):
            read_sealed(path, RUN, "checkpoint")
    path.write_bytes(content + b"\0")
    with pytest.raises(Damaged, match="has no checksum"):
        read_sealed(path, RUN, "checkpoint")


def test_other_files_are_found(path):
    with pytest.raises(Damaged, match="it is of another run"):
        read_sealed(path, RUN[::-1], "checkpoint")
    with pytest.raises(Damaged, match="it is not the snapshot-3 that was written"):
        read_sealed(path, RUN, "snapshot-3")
    with path.open("r+b") as file:
        file.seek(-SEAL + 8, io.SEEK_END)
        file.write(b"02")
    with pytest.raises(Damaged, match="it has format 2, of a later pyro_vi"):
        read_sealed(path, RUN, "checkpoint")
    torch.save({**STATE, "step": 10**9}, path)
    with pytest.raises(Damaged, match="it has no checksum: it was cut off, or pyro_vi did not write it"):
        read_sealed(path, RUN, "checkpoint")


def test_a_part_of_a_tensor_is_written_alone(tmp_path):
    whole = torch.zeros(100_000)
    state = {"part": whole[:3], "again": whole[:3], "many": torch.ones(1).expand(5)}
    write_sealed(tmp_path / "it", state, RUN, "x")
    assert (tmp_path / "it").stat().st_size < 5000
    found = read_sealed(tmp_path / "it", RUN, "x")
    assert {name: value.tolist() for name, value in found.items()} == {
        "part": 3 * [0],
        "again": 3 * [0],
        "many": 5 * [1],
    }


def archive(content: bytes, change) -> bytes:
    """A file of torch's with other entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            new.writestr(*change(entry.filename, old.read(entry)))
    return buffer.getvalue()


def test_a_file_takes_no_more_memory_than_it_is_long(tmp_path, monkeypatch):
    """Packed zeros, a tensor that claims to be larger than its values, and one value that is claimed to be many."""
    path, buffer = tmp_path / "it", io.BytesIO()
    torch.save({"pair": {"a": torch.zeros(10)}}, buffer)
    content, zeros = buffer.getvalue(), bytes(2**24)

    def packed(name, data):
        return name, zeros if name.endswith("data/0") else data, zipfile.ZIP_DEFLATED

    sealed(path, archive(content, packed))
    assert path.stat().st_size < 2**17
    with monkeypatch.context() as patch, pytest.raises(Damaged, match="it would take more memory than it is long"):
        patch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was parsed"))
        read_sealed(path, RUN, "checkpoint")

    def claimed(name, data):
        assert not name.endswith("data.pkl") or data.count(b"K\n") == 2  # the length of the memory, and the shape
        return name, data.replace(b"K\n", b"J\x00\x00\x00\x10") if name.endswith("data.pkl") else data

    sealed(path, archive(content, claimed))
    with pytest.raises(Damaged, match="torch cannot read it"):
        read_sealed(path, RUN, "checkpoint")
    buffer = io.BytesIO()
    torch.save({"pair": {"a": torch.zeros(1).expand(10**12)}}, buffer)
    sealed(path, buffer.getvalue())
    with pytest.raises(Damaged, match="it claims larger tensors than it holds"):
        read_sealed(path, RUN, "checkpoint")
