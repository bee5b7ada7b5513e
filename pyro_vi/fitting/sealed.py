"""Files of tensors and plain values with a checksum, which is compared before anything in the file is parsed.

A sealed file is what ``torch.save`` writes, with a seal as the comment at the end of its zip archive. So ``torch.load(path,
weights_only=True)`` reads it, too. The seal has the version of the format, the run that the file belongs to, and a BLAKE2b
digest of run, kind of file and content: it does not fit a file that was damaged, exchanged, or taken from another run.

* `write_sealed` and `read_sealed` write and read such a file.
* `Damaged` says why a file is not read.
"""

import copy
import hashlib
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pyro_vi.fitting.plausible import too_much

MARK, FORMAT = b"pyro_vi", 1
RUN, DIGEST = 16, 64
"""Characters of the name of a run, and of a digest."""

VERSION = len(MARK) + 1
RUN_AT = VERSION + 3
SEAL = RUN_AT + RUN + 1 + DIGEST + 1
"""Bytes of a seal, and where the version of the format and the run begin in it."""

END, END_BYTES = b"PK\x05\x06", 22
"""Signature and length of the record that ends a zip archive; its last two bytes are the length of the comment."""


class Damaged(Exception):
    """A sealed file that is not read; the text says why, as in "it is empty"."""


def write_sealed(path: Path, state: Mapping[str, Any], run: str, kind: str) -> None:
    """Write tensors and plain values with a seal, and wait until they are on the disk.

    Args:
        path: the file.
        state: tensors and plain values.
        run: the name of the run, of 16 characters.
        kind: what the file holds; it must be the same when the file is read.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        digesting: Any = _Digesting(file, run, kind)
        try:
            torch.save(_owned(dict(state), {}), digesting)
        except Exception as error:
            if digesting.error is not None:  # torch replaces it by the zip writer's
                raise digesting.error from error
            raise
        seal = _seal(FORMAT, run, digesting.digest.hexdigest())
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", SEAL) + seal)
        file.flush()
        os.fsync(file.fileno())


def read_sealed(path: Path, run: str | None, kind: str) -> dict[str, Any]:
    """Return what `write_sealed` wrote. No code in the file is run, and no more memory is taken than the file is long.

    Args:
        path: the file.
        run: the name of the run, or None if any will do.
        kind: what the file holds.

    Raises:
        Damaged: it is not what was written.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        _verify(file, run, kind)
        file.seek(0)
        try:
            _refuse_packed(file)
            file.seek(0)
            state = torch.load(file, weights_only=True, map_location="cpu")
        except Damaged:
            raise
        except Exception as error:  # of any kind: what is in the file decides
            raise Damaged(f"torch cannot read it ({type(error).__name__})") from error
        size = file.seek(0, os.SEEK_END)
    if not isinstance(state, dict):
        raise Damaged("it holds no state of a run")
    if wrong := too_much(state, size):
        raise Damaged(wrong)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(state)}
    if sum(storages.values()) > size or any(not _whole(t) for t in tensors_in(state)):
        raise Damaged("it claims larger tensors than it holds")
    return state


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from tensors_in(item)


class _Digesting:
    """A file that is written from start to end, with the digest of what is written and the first error."""

    def __init__(self, file: BinaryIO, run: str, kind: str) -> None:
        self.file, self.digest = file, _digest(run, kind)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()


def _digest(run: str, kind: str) -> Any:
    return hashlib.blake2b(f"{run} {kind}\n".encode(), digest_size=DIGEST // 2)


def _seal(version: int, run: str, digest: str) -> bytes:
    return b"%s %02d %s %s" % (MARK, version, run.encode(), digest.encode()) + b"\n"


def _verify(file: BinaryIO, run: str | None, kind: str) -> None:
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise Damaged("it is empty")
    file.seek(max(0, size - SEAL - END_BYTES))
    tail = file.read(SEAL + END_BYTES)
    end, seal = tail[:END_BYTES], tail[END_BYTES:]
    if len(seal) < SEAL or not seal.startswith(MARK + b" "):
        raise Damaged("it has no checksum: it was cut off, or pyro_vi did not write it")
    version, found = (seal[i:j].decode("ascii", "replace") for i, j in ((VERSION, RUN_AT - 1), (RUN_AT, RUN_AT + RUN)))
    if version.isdigit() and int(version) > FORMAT:
        raise Damaged(f"it has format {int(version)}, of a later pyro_vi")
    if run is not None and found != run:
        raise Damaged("it is of another run, or its checksum was damaged")
    digest, left = _digest(found, kind), size - SEAL - 2
    file.seek(0)
    while left > 0:
        block = file.read(min(2**20, left))
        digest.update(block)
        left -= len(block) or left
    digest.update(b"\0\0")  # the length of the comment, as torch wrote it
    if seal != _seal(FORMAT, found, digest.hexdigest()) or end[:4] != END or end[-2:] != struct.pack("<H", SEAL):
        raise Damaged(f"it is not the {kind} that was written: its checksum differs")
    file.seek(0)


def _refuse_packed(file: BinaryIO) -> None:
    """Refuse an archive whose entries are larger than the file: torch never packs them."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        size = file.seek(0, os.SEEK_END)
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
            raise Damaged("it would take more memory than it is long")


def _whole(tensor: Tensor) -> bool:
    """True if a tensor has as many values as its memory holds."""
    return tensor.layout is not torch.strided or tensor.numel() * tensor.element_size() <= (
        tensor.untyped_storage().nbytes()
    )


def _owned(value: Any, seen: dict[Any, Tensor]) -> Any:
    """Return the state with tensors that hold their own values only: not a part of a larger one, nor one value many times."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or (
            value.is_contiguous() and value.numel() * value.element_size() == value.untyped_storage().nbytes()
        ):
            return value
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if key not in seen:
            seen[key] = value.detach().contiguous().clone(memory_format=torch.contiguous_format)
        return seen[key]
    if isinstance(value, dict):
        own = copy.copy(value)  # with the versions of modules, which a state dictionary has as an attribute
        own.update({key: _owned(item, seen) for key, item in value.items()})
        return own
    if isinstance(value, (list, tuple)):
        return type(value)([_owned(item, seen) for item in value]) if type(value) in (list, tuple) else value
    return value
