"""Atomic writing: a file is written under a temporary name and then renamed, so that an interruption loses nothing."""

import errno
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyro_vi.errors import InputError

FULL = 2**20
"""Free bytes below which a disk counts as full."""

AGAIN = "make room for it and start again"
RESTORE = "put it back, or start again in another folder"


def slug(text: str) -> str:
    """Turn a name into a part of a path, without characters that are special to a shell.

    Example:
        >>> slug("iwae(num_particles=8)")
        'iwae_num_particles=8'
    """
    return re.sub(r"[^\w.=]+", "_", text).strip("_")


def make_folder(path: str | Path) -> Path:
    """Make a folder and check that files can be written to it.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"the folder '{path}' cannot be written ({error.strerror}); choose another with --out"
        ) from error
    return folder


def write_through(path: Path, write: Callable[[Path], Any], *, keep: Path | None = None, then: str = AGAIN) -> Path:
    """Write a file under a temporary name and rename it: a reader finds the old file or the new one, never half of one.

    Args:
        path: the file.
        write: writes the content to the path that it is called with.
        keep: where the old file is kept, if there is one.
        then: what to do if the disk is full.

    Raises:
        InputError: the file cannot be written, for example because the disk is full; an old file is as it was.
    """
    # Each thread has a name of its own, so that two writers cannot mix their bytes.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        write(temporary)
        if keep is not None and path.exists():
            keep_as(path, keep)
        os.replace(temporary, path)
    except BaseException as error:
        found = unwritable(path, error, then)  # before the temporary file is gone, which may be what fills the disk
        with suppress(OSError):
            temporary.unlink()
        if found is not None:
            raise found from error
        raise
    return path


def unwritable(path: Path, error: BaseException, then: str = AGAIN) -> InputError | None:
    """Return the error of one line for a file that could not be written, or None if the reason is another one."""
    cause, number = (error.strerror, error.errno) if isinstance(error, OSError) else (None, None)
    if cause is None and isinstance(error, Exception) and not isinstance(error, InputError):
        # torch and HDF5 do not say that the disk is full.
        with suppress(OSError):
            if shutil.disk_usage(path.parent).free < FULL:
                cause = os.strerror(errno.ENOSPC)
    if cause is None:
        return None
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        then = then.replace("make room for it", "make it writable", 1)
    elif number is not None and not path.parent.is_dir():
        return InputError(f"the folder '{path.parent}' is gone, so '{path.name}' cannot be written; {RESTORE}")
    return InputError(f"'{path}' cannot be written ({cause}); {then}")


def remove_temporary(folder: Path) -> None:
    """Remove what a process that was killed left half written; call it where no other process writes into the folder."""
    for path in folder.glob("*.tmp"):
        if re.search(r"\.\d+-\d+\.tmp$", path.name):
            with suppress(OSError):
                path.unlink()


def keep_as(path: Path, kept: Path) -> None:
    """Give a file a second name, of a file that is replaced, so that there is no moment without a file of the first."""
    temporary = kept.with_name(f"{kept.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        os.link(path, temporary)
        os.replace(temporary, kept)
    except OSError:  # a file system without links
        os.replace(path, kept)
    finally:
        with suppress(OSError):  # it is there still if both names were of one file
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically; numbers that are not finite become null, because JSON has none."""
    text = json.dumps(finite(value), indent=2, allow_nan=False) + "\n"
    write_through(path, lambda temporary: temporary.write_text(text))


def finite(value: Any) -> Any:
    """Return ``value`` with None in place of each number that is not finite.

    Example:
        >>> finite({"a": [1.0, float("nan")]})
        {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
