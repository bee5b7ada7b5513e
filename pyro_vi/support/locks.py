"""Locks of folders: one process or thread at a time writes into a folder."""

import os
import weakref
from contextlib import suppress
from pathlib import Path

from pyro_vi.errors import InputError, UsageError

try:
    import fcntl
except ImportError:  # on Windows folders are not locked
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"

NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""Flag to open a file that is no link: what the folder of a stranger links to would be overwritten."""

_held: "weakref.WeakSet[Lock]" = weakref.WeakSet()


class Lock:
    """A lock on a folder, from now until `release`.

    The lock is the operating system's, on a file that holds the number of the process. So the lock of a process that was killed
    is free again, whatever the file says.

    Raises:
        UsageError: another process, or another fit of this one, holds the lock.
        InputError: the file of the lock cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._file = folder / NAME, -1
        while fcntl is not None and self._file < 0:
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
            except OSError as error:
                raise InputError(f"'{self.path}' cannot be opened ({error.strerror}); choose another folder") from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(file, 20).decode(errors="replace").strip()
                os.close(file)
                who = f"process {holder}" if holder and holder != str(os.getpid()) else "another fit"
                raise UsageError(
                    f"'{folder}' is in use by {who}; wait until it is done, or choose another folder"
                ) from None
            except OSError:  # a file system without locks
                os.close(file)
                return
            if _is(file, self.path):  # and not one that its holder has just removed
                os.truncate(file, 0)
                os.write(file, str(os.getpid()).encode())
                self._file = file
                _held.add(self)
            else:
                os.close(file)

    def release(self) -> None:
        """Give the folder free; a second call does nothing."""
        if self._file >= 0:
            with suppress(OSError):
                self.path.unlink()
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.release()


def _forget() -> None:
    """Leave the locks to the parent of a process that was forked: the child would hold them after the parent's end."""
    for lock in list(_held):
        if lock._file >= 0:
            os.close(lock._file)
            lock._file = -1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False
