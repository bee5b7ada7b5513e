"""Files and folders written whole: under a temporary name and renamed, so that an interrupted write loses nothing."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyro_vi.errors import InputError


def slug(text: str) -> str:
    """A name as a part of a path, with nothing in it that a shell minds.

    Example:
        >>> slug("iwae(num_particles=8)")
        'iwae_num_particles=8'
    """
    return re.sub(r"[^\w.=]+", "_", text).strip("_")


def make_folder(path: str | Path) -> Path:
    """Make a folder and see that it can be written.

    Raises:
        InputError: it cannot.
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
    """Write a file under a temporary name and rename it: whoever looks finds the old one or the new one, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)
    return path


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one go: numbers that are not finite become null, as JSON has none."""
    text = json.dumps(finite(value), indent=2, allow_nan=False) + "\n"
    write_through(path, lambda temporary: temporary.write_text(text))


def finite(value: Any) -> Any:
    """``value`` with None for each number that is not finite.

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
