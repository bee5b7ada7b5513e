"""Delay of Ctrl-C until a step is done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """Delay Ctrl-C until the block is done, so that state is saved between steps and not during one.

    The block receives a list, which is not empty once Ctrl-C was pressed. KeyboardInterrupt is raised when the block ends; a
    second Ctrl-C raises it at once. Outside the main thread the block runs unchanged, because Python delivers no signals
    there.
    """
    pressed: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, handle) if main else None
    try:
        yield pressed
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
