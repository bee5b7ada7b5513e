"""The stored columns of one epoch after the other, where the values of the next are drawn while the present ones are used."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pyro_vi.data.dataset import Data

WORTH = 2**18
"""Fewest numbers that are worth a thread: they take two milliseconds."""


class Redrawn:
    """The columns that `Data.stored` gives, with the same bits; a thread draws those of the next epoch, until `close`.

    Example:
        >>> from pyro_vi.data import load
        >>> data = load("digits")
        >>> redrawn = Redrawn(data)
        >>> redrawn.stored(0, more=True)[0].equal(data.stored(0)[0]), redrawn.stored(1)[0].equal(data.stored(1)[0])
        (True, True)
        >>> redrawn.close()
    """

    def __init__(self, data: Data) -> None:
        self.data = data
        first: Any = data.columns[0] if data.columns and not data.mapped else None
        self._worth = data.binarize and first is not None and first.numel() >= WORTH
        self._pool: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[tuple[Any, ...]]] | None = None

    def stored(self, epoch: int, more: bool = False) -> tuple[Any, ...]:
        """Return the columns of an epoch; with ``more``, those of the next one are drawn meanwhile."""
        coming, self._next = self._next, None
        found = coming[1].result() if coming is not None and coming[0] == epoch else self.data.stored(epoch)
        if more and self._worth:
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="pyro_vi_redrawing")
            self._next = epoch + 1, self._pool.submit(self.data.stored, epoch + 1)
        return found

    def close(self) -> None:
        """End the thread, after the draws that it has begun."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._next = None
