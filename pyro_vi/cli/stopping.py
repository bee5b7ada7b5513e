"""Commands that are stopped by Ctrl-C or SIGTERM: they end at the next step, and say how to go on."""

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyro_vi.errors import InputError, Terminated


@contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM in the block into an exception, as Python does with Ctrl-C."""

    def handle(number: int, frame: Any) -> None:
        raise Terminated

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, handle) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def stopped(error: KeyboardInterrupt, folder: str | None) -> int:
    """Print the command that continues the run in a folder, if there is one, and return the exit code of the signal."""
    from pyro_vi.fitting import given_of

    hint = ""
    with suppress(InputError):  # there is no run yet
        if folder is not None and given_of(Path(folder).expanduser()):
            hint = f"; continue with: pyro-vi resume {shlex.quote(folder)}"
    print(f"interrupted{hint}", file=sys.stderr)
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
