"""Files as someone could write them who means harm."""

import os
import struct
from pathlib import Path
from typing import Any

from pyro_vi.fitting.sealed import SEAL, _digest, _seal

RUN = "0123456789abcdef"


def sealed(path: Path, content: bytes, kind: str = "checkpoint", run: str = RUN) -> None:
    """Write any content with a right seal."""
    digest = _digest(run, kind)
    digest.update(content)
    path.write_bytes(content[:-2] + struct.pack("<H", SEAL) + _seal(1, run, digest.hexdigest()))


def unsealed(content: bytes) -> bytes:
    """The content of a file without its seal."""
    return content[: -SEAL - 2] + b"\0\0"


class Bomb:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)
