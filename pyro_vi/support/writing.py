"""Atomic writing: a file is written under a temporary name and then renamed, so that an interruption loses nothing."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyro_vi.errors import InputError


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
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"the folder '{path}' cannot be written ({error.strerror}); choose another with --out"
        ) from error
    return folder


def write_through(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file under a temporary name and rename it: a reader finds the old file or the new one, never half of one.

    Args:
        path: the file.
        write: writes the content to the path that it is called with.
    """
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)
    return path


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
