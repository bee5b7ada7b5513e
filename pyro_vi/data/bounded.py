"""Bounded reading of files: what a header claims is compared with the file, before any memory is taken for it.

* `most` is the number of bytes to which a compressed file may unpack.
* `read_array` and `read_archive` read .npy and .npz files, `read_idx` gzipped IDX files; `check_lines` and `check_parquet` look
  at tables before they are read.

All raise `InputError`, or ValueError with the reason if a file is damaged. No function reads pickled objects.
"""

import gzip
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vi.errors import InputError, first_line
from pyro_vi.support import shown

Array = np.ndarray[Any, np.dtype[Any]]

UNPACKED, RATIO = 2**26, 100
"""Bytes to which any compressed file may unpack; a larger one may unpack to RATIO times its own size."""
ARRAYS, COLUMNS, LINE = 10_000, 2**16, 2**24
"""Most arrays of an archive, most columns of a table in text, and most characters of its first line."""
OBJECTS = "holds Python objects, or is damaged, and is not read; save plain numbers with numpy.save"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def most(size: int) -> int:
    """Return the most bytes to which a compressed file of a size may unpack.

    Example:
        >>> most(1000) == 2**26, most(10**9)
        (True, 100000000000)
    """
    return max(UNPACKED, RATIO * size)


def check_header(stream: Any, size: int, name: str) -> None:
    """Read the header of a .npy file, and compare what it claims with the file.

    Args:
        stream: the file, at its start; afterwards at the first number.
        size: bytes of the file.
        name: its name in messages.

    Raises:
        InputError: the file holds pickled objects.
        ValueError: the header is damaged, or claims more numbers than the file has.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> np.save(file, np.zeros(4))
        >>> check_header(io.BytesIO(file.getvalue()), 152, "x.npy")
        Traceback (most recent call last):
        ValueError: its header claims 4 numbers of 8 bytes, which the file does not have
    """
    start = stream.read(np.lib.format.MAGIC_LEN)
    if not start:
        raise ValueError("No data left in file")
    if not start.startswith(np.lib.format.MAGIC_PREFIX):
        raise InputError(f"{name} {OBJECTS}")
    version = (*start[-2:],)
    if len(version) != 2 or version not in _HEADERS:
        raise ValueError(f"version {'.'.join(map(str, version))} of its format is not that of plain numbers")
    try:
        shape, _, dtype = _HEADERS[version](stream)
    except Exception as error:  # NumPy parses the header as Python, and raises whatever that raises
        raise ValueError(f"its header is damaged: {first_line(error)}") from error
    if dtype.hasobject:
        raise InputError(f"{name} {OBJECTS}")
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"its header claims the shape {shown(shape)}")
    count = math.prod(shape)
    if (count and not dtype.itemsize) or (not count and shape[0]):
        raise ValueError("it has rows without numbers")
    if count * dtype.itemsize > size - stream.tell():
        raise ValueError(f"its header claims {count} numbers of {dtype.itemsize} bytes, which the file does not have")


def read_array(path: Path) -> Array:
    """Read a .npy file; raise InputError or ValueError if it holds anything but one array."""
    with open(path, "rb") as stream:
        if stream.read(4) == b"PK\x03\x04":
            raise InputError(f"{path.name} holds several arrays; rename it to {path.stem}.npz")
        stream.seek(0)
        check_header(stream, path.stat().st_size, path.name)
        stream.seek(0)
        found: Array = np.lib.format.read_array(stream, allow_pickle=False)
        return found


def read_archive(path: Path, keys: Sequence[str] | None = None) -> dict[str, Array]:
    """Read the arrays of an .npz file by name; raise InputError or ValueError if it holds anything else.

    Args:
        path: the file.
        keys: names of the arrays that are read, by default all.
    """
    with open(path, "rb") as stream:
        if stream.read(6) == np.lib.format.MAGIC_PREFIX:
            raise InputError(f"{path.name} holds one plain array; rename it to {path.stem}.npy")
        with zipfile.ZipFile(stream) as archive:
            return _members(archive, path, keys)


def _members(archive: zipfile.ZipFile, path: Path, keys: Sequence[str] | None) -> dict[str, Array]:
    entries, size = archive.infolist(), path.stat().st_size
    if len(entries) > ARRAYS:
        raise InputError(f"{path.name} holds {len(entries)} arrays; give at most {ARRAYS}")
    if any(entry.compress_type not in _METHODS for entry in entries):
        raise InputError(f"{path.name} is compressed in another way than by NumPy; save it with numpy.savez_compressed")
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    refuse_packed(path, sum(entry.file_size for entry in entries), most(size) if packed else size)
    found: dict[str, Array] = {}
    for entry in entries:
        label = entry.filename.removesuffix(".npy")
        if label == entry.filename or label in found:
            what = "twice" if label in found else "which is no array"
            raise InputError(f"{path.name} holds {shown(entry.filename)}, {what}; save it again with numpy.savez")
        if keys is not None and label not in keys:
            continue
        with archive.open(entry) as member:
            check_header(member, entry.file_size, path.name)
        with archive.open(entry) as member:
            found[label] = np.lib.format.read_array(member, allow_pickle=False)
            member.read()  # to its end, where its checksum is compared
    return found


def refuse_packed(path: Path, claimed: int, limit: int) -> None:
    """Raise InputError if a file would unpack to more bytes than a limit."""
    if claimed > limit:
        raise InputError(
            f"{path.name} has {_megabytes(path.stat().st_size)} and would unpack to {_megabytes(claimed)} (allowed: "
            f"{_megabytes(limit)}); if you trust it, unpack it yourself, and save the numbers with numpy.save"
        )


def read_idx(path: Path, magic: int, dims: int) -> Array:
    """Read a gzipped IDX file of bytes, (rows, ...).

    Args:
        path: the file.
        magic: the number that it begins with.
        dims: number of its dimensions.

    Raises:
        ValueError: it is no such file, or has another number of bytes than its header claims.
    """
    start = 4 + 4 * dims
    with gzip.open(path) as file:
        header = file.read(start)
        found, *shape = np.frombuffer(header[: len(header) // 4 * 4], ">u4").tolist() or [0]
        if found != magic or len(shape) != dims:
            raise ValueError("not an IDX file of this kind")
        count = math.prod(shape)
        refuse_packed(path, count, most(path.stat().st_size))
        content = file.read(count + 1)
    if len(content) != count:
        raise ValueError(f"its header claims {count} bytes, which it does not have")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()  # torch cannot hold a read-only buffer


def check_lines(path: Path) -> str:
    """Return the first line of a table in text; raise InputError if it is too long, or has too many cells."""
    with open(path, encoding="utf-8-sig") as stream:
        line = stream.readline(LINE + 1)
    if len(line) > LINE or line.count(",") >= COLUMNS:
        raise InputError(f"{path.name}: the first line has more than {COLUMNS} cells; save the numbers with numpy.save")
    return line


def check_parquet(path: Path) -> None:
    """Raise InputError if a parquet file would unpack to too much: packed pages, rows that repeat, or words that do."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    limit = most(path.stat().st_size)
    with pq.ParquetFile(path) as file:
        meta, schema = file.metadata, file.schema_arrow
        groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
        # Not the sizes of columns: pyarrow ends the process where it cannot read what a file says of a column.
        pages = sum(group.total_byte_size for group in groups)
        rows = max(meta.num_rows, sum(group.num_rows for group in groups))
        refuse_packed(path, max(pages, 8 * rows * meta.num_columns), limit)
    kinds = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
    texts = [field.name for field in schema if field.type in kinds]
    if not texts:
        return
    length = 0
    with pq.ParquetFile(path, read_dictionary=texts) as file:  # each word once
        for batch in file.iter_batches(columns=texts):
            for column in batch.columns:
                words = pc.binary_length(column.dictionary) if pa.types.is_dictionary(column.type) else None
                each = pc.binary_length(column) if words is None else words.take(column.indices)
                length += pc.sum(each.cast(pa.int64())).as_py() or 0
    refuse_packed(path, length, limit)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB"
