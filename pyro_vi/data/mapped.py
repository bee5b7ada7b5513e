"""Columns of large arrays whose rows stay in their file and are read on demand.

* `mapped_file` opens a .npy file that is too large to copy. `Mapped` takes the place of a tensor and reads rows; `first`
  returns the first rows of either.
* `ahead` reads the next batches in a thread while the current one is used.
"""

import dataclasses
import math
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.bounded import check_header
from pyro_vi.data.files import Array, Columns
from pyro_vi.data.rows import Every, parts
from pyro_vi.errors import InputError

T = TypeVar("T")


R = TypeVar("R")


FILE_BYTES = 2**28  # 256 MB: smaller files are faster from memory; copies of larger ones (stored, cast, split) fill it


_NUMBERS = 2**22  # numbers checked or read at a time: 16 MB as float32


_GAP = 4096  # bytes: reading a gap of this size between two rows costs less than another call


_AHEAD = 2  # batches read in advance: one in use, one ready, one being read


_THREAD = "pyro_vi_ahead"


@dataclass(frozen=True, eq=False)
class Mapped:
    """A column whose rows are read from a C-ordered array in a file on demand, then cast and moved; no row is kept.

    It has those methods of a tensor that gathering rows needs, so that the same code serves both.

    Attributes:
        path: path of the file.
        identity: device and inode of the file: another file that replaces it would otherwise be read silently.
        start: byte of the file at which its first row starts.
        stored: dtype of the numbers in the file.
        event_shape: shape of one row.
        chosen: row numbers, in the file, of the rows of this column, in order; of very many rows they are not kept.
        casts: every dtype that a tensor in its place would have been cast to, in order, because each cast rounds.
        device: device of the rows that `index_select` returns.
    """

    path: str
    identity: tuple[int, int]
    start: int
    stored: np.dtype[Any]
    event_shape: tuple[int, ...]
    chosen: Tensor | Every
    casts: tuple[torch.dtype, ...] = ()
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self.event_shape))

    @property
    def dtype(self) -> torch.dtype:
        return self.casts[-1] if self.casts else to_tensor(np.empty(0, self.stored), self.path).dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Mapped":
        """Return the same rows with another dtype, or on another device."""
        casts = self.casts if dtype in (None, self.dtype) else (*self.casts, dtype)
        return dataclasses.replace(self, casts=casts, device=torch.device(device or self.device))

    def part(self, index: Tensor | Every) -> "Mapped":
        """Return the indexed rows as a new column, without reading them."""
        if type(self.chosen) is Every and isinstance(index, Every):
            return dataclasses.replace(self, chosen=index)
        return dataclasses.replace(self, chosen=self.chosen[index[:].cpu()])

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return the indexed rows, (len(index), *event_shape), on the device."""
        assert dim == 0
        return self.read(index.cpu()).to(self.device)

    def blocks(self) -> Iterator[Tensor]:
        """Yield all rows in order, in blocks, on the CPU."""
        for part in parts(self.chosen, len(self), rows_in_block(self.event_shape)):
            yield self._read(part)

    def read(self, index: Tensor) -> Tensor:
        """Return the indexed rows on the CPU; a reading thread calls it, and leaves the device to the computing thread.

        Raises InputError if the file can no longer be read.
        """
        pieces = torch.split(self.chosen[index], rows_in_block(self.event_shape))
        if len(pieces) == 1:
            return self._read(pieces[0])
        found = torch.empty((len(index), *self.event_shape), dtype=self.dtype, device="cpu")
        for into, part in zip(torch.split(found, len(pieces[0])), pieces, strict=True):
            into.copy_(self._read(part))
        return found

    def _read(self, chosen: Tensor) -> Tensor:
        raw = self._bytes(chosen.numpy()).view(self.stored).reshape(-1, *self.event_shape)
        found = to_tensor(raw, self.path)
        for dtype in self.casts:
            found = found.to(dtype)
        return found

    def _bytes(self, chosen: Array) -> Array:
        # Rows are read with pread and not through the mapping: mapped pages count as this process's memory until they are
        # dropped, and a truncated file raises SIGBUS. Times in ms for 1024 shuffled rows of 16 kB out of 4 GB, from the
        # disk and from the page cache: pread 150 and 4, mapping 760 and 8 (the kernel reads around each fault). If the
        # reads are announced first, so that the disk works on all of them at once: pread 25-43 and 5, mapping 26-58 and
        # 8-14.
        size = self.stored.itemsize * math.prod(self.event_shape)
        found = np.empty((len(chosen), size), np.uint8)
        order = np.argsort(chosen, kind="stable")
        rows = chosen[order]
        # Rows near each other are read in one call, together with the gap between them. No span is longer than a block.
        apart = (np.diff(rows) - 1) * size > _GAP
        apart |= np.diff(rows // rows_in_block(self.event_shape)) != 0
        edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(rows)]
        spans = [(i, j, int(rows[i]), int(rows[j - 1]) + 1) for i, j in pairwise(edges) if i < j]
        with self._opened() as file:
            if len(spans) > 1 and hasattr(os, "posix_fadvise"):
                for _, _, first, last in spans:
                    os.posix_fadvise(file, self.start + first * size, (last - first) * size, os.POSIX_FADV_WILLNEED)
            for i, j, first, last in spans:
                if j - i == 1:
                    self._fill(file, found[order[i]], first * size)
                    continue
                span = np.empty((last - first, size), np.uint8)
                self._fill(file, span, first * size)
                found[order[i:j]] = span[rows[i:j] - first]
        return found

    def _fill(self, file: int, into: Array, offset: int) -> None:
        view = into.reshape(-1).data
        while view:  # one call reads at most 2 GB, and may read less
            count = os.preadv(file, [view], self.start + offset)
            if not count:
                raise InputError(f"{self.path} was cut short after it was loaded; restore it, and load it again")
            view, offset = view[count:], offset + count

    @contextmanager
    def _opened(self) -> Iterator[int]:
        # Opened for each batch: this takes microseconds, and no open descriptor is copied with the column or leaked.
        try:
            file = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                if _identity(file) != self.identity:
                    raise InputError(f"{self.path} was replaced after it was loaded; load the data again")
                yield file
            finally:
                os.close(file)
        except OSError as error:
            raise InputError(f"cannot read {self.path} ({error.strerror}); restore it, and load it again") from error


def first(column: Tensor | Mapped, rows: int) -> Tensor:
    """Return the first rows of a column; a view if it is a tensor."""
    return column[:rows] if isinstance(column, Tensor) else column.index_select(0, torch.arange(min(rows, len(column))))


def mapped_file(path: Path) -> Columns | None:
    """Return the column of a .npy file that is too large to copy; None if `read_file` should read or reject the file."""
    try:
        if path.suffix.lower() != ".npy" or not path.is_file() or path.stat().st_size <= FILE_BYTES:
            return None
        with open(path, "rb") as stream:
            check_header(stream, path.stat().st_size, path.name)
        return Columns({"the array": np.lib.format.open_memmap(path, mode="r")})
    except (ValueError, OSError):
        return None


def ahead(read: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R], None, None]:
    """Yield each item with ``read(item)``, in order; a thread reads the next ones meanwhile and ends with the generator.

    Exceptions of `read` are raised here.

    >>> list(ahead(abs, [-1, -2]))
    [(-1, 1), (-2, 2)]
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix=_THREAD)
    coming = ((item, pool.submit(read, item)) for item in items)
    try:
        waiting = deque(islice(coming, _AHEAD))
        while waiting:
            waiting.extend(islice(coming, 1))
            item, future = waiting.popleft()
            yield item, future.result()
    finally:
        # An abandoned generator may be garbage-collected in the thread itself, which cannot wait for its own end.
        own = threading.current_thread().name.startswith(_THREAD)
        pool.shutdown(wait=not own, cancel_futures=True)


def to_tensor(values: Array, what: str) -> Tensor:
    """Return a NumPy array as a tensor, which shares its memory if no conversion is needed.

    Raises InputError for whole numbers that torch cannot represent.
    """
    # torch has neither foreign byte orders nor long doubles, and supports the wider unsigned integers only in part.
    kind = values.dtype.kind
    common = {"b": np.bool_, "u": np.uint8 if values.dtype.itemsize == 1 else np.int64, "i": np.int64}
    if kind == "u" and values.size and int(values.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{what} holds numbers above 2**63; give smaller ones, or floats")
    wide = np.float64 if values.dtype.itemsize > 8 else values.dtype.newbyteorder("=")
    return torch.from_numpy(np.ascontiguousarray(values, common.get(kind, wide)).reshape(values.shape))


def mapped_column(values: Array) -> Mapped | None:
    """Return an array as a column in its file; None if it must be copied (byte order, order of axes, copy-on-write)."""
    base: Any = values
    while isinstance(base, np.ndarray):
        base = base.base
    path, mode, offset = (getattr(values, name, None) for name in ("filename", "mode", "offset"))
    plain = values.flags.c_contiguous and values.dtype.isnative and values.dtype.kind in "biuf" and values.ndim
    if not (plain and values.size and values.dtype.itemsize <= 8 and hasattr(os, "preadv")):
        return None
    if not isinstance(base, mmap.mmap) or path is None or offset is None or mode == "c":
        return None
    # A slice keeps the offset of the whole array, so its start is computed from its address.
    inside = values.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    start = offset - offset % mmap.ALLOCATIONGRANULARITY + inside
    try:
        with open(path, "rb") as stream:
            identity = _identity(stream.fileno())
        column = Mapped(str(path), identity, start, values.dtype, values.shape[1:], Every(len(values)))
        ends = np.asarray(values)[[0, -1]]
        same = column._bytes(np.array([0, len(values) - 1])).tobytes() == ends.tobytes()
    except (OSError, InputError):
        return None
    return column if same else None  # another file may have the path by now


def rows_in_block(event_shape: tuple[int, ...]) -> int:
    """Number of rows that are read or checked together."""
    return max(1, _NUMBERS // max(1, math.prod(event_shape)))


def _identity(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_dev, status.st_ino
