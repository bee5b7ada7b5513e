"""Whose code a run folder may run.

The configuration of a run names its programs. If they are files or modules of packages, opening the run runs their code. A run
that this user made carries a signature, a keyed BLAKE2b digest of its configuration, and goes on by itself. Any other run
is refused until the user says that its code may run, as Jupyter does with notebooks.

* `own_mark` signs a configuration; `refuse_foreign` checks the programs that a folder names.
"""

import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pyro_vi.errors import UsageError
from pyro_vi.support import parse

BYTES = 32


def own_mark(config: Mapping[str, Any]) -> str | None:
    """Return the signature of a configuration with a checksum; None if it names no code, or there is no key to sign with.

    The key is made when it is first needed: ``pyro_vi/key`` in the folder XDG_STATE_HOME, by default ``~/.local/state``.
    """
    key = _key(make=True) if any(_is_code(config.get(kind)) for kind in ("model", "guide")) else None
    return None if key is None else _signature(config, key)


def refuse_foreign(path: Path, config: Mapping[str, Any], programs: Mapping[str, Any], trust: bool) -> None:
    """Refuse to run code that the folder of another user names.

    Args:
        path: the folder.
        config: its configuration.
        programs: what it names, a text or several, by ``"model"`` and ``"guide"``.
        trust: the user has said that the code may run.

    Raises:
        UsageError: the run was not made by this user, and names a file or a package; the message says which.
    """
    code = {kind: name for kind, names in programs.items() for name in _several(names) if _is_code(name)}
    if not code or trust or _is_own(config):
        return
    listed = " and ".join(f"{kind} '{parse(name)[0]}'" for kind, name in code.items())
    raise UsageError(
        f"the run in '{path}' was not made by you on this machine, and would run the code of its {listed}; if you trust that "
        "code, say so: --trust, or trust=True in Python"
    )


def _is_own(config: Mapping[str, Any]) -> bool:
    found, key = config.get("signature"), _key(make=False)
    return key is not None and isinstance(found, str) and hmac.compare_digest(found, _signature(config, key))


def _signature(config: Mapping[str, Any], key: bytes) -> str:
    return blake2b(str(config["checksum"]).encode(), key=key, digest_size=BYTES).hexdigest()


def _is_code(name: Any) -> bool:
    try:
        return isinstance(name, str) and ":" in parse(name)[0]
    except UsageError:  # the name of a Python object, by which nothing is found
        return False


def _several(names: Any) -> Iterable[Any]:
    return names if isinstance(names, (list, tuple)) else [*names.values()] if isinstance(names, dict) else [names]


def _key(*, make: bool) -> bytes | None:
    path = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state", "pyro_vi", "key")
    with suppress(OSError, RuntimeError):  # there is no home, or it cannot be written
        path = path.expanduser()
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = path.with_name(f"key.{secrets.token_hex(8)}")
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(BYTES))
            with suppress(FileExistsError):  # another process was faster
                os.link(temporary, path)
            temporary.unlink()
        found = path.read_bytes()
        return found if len(found) == BYTES else None
    return None
