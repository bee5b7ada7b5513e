"""Ctrl-C held back until a step is done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """Hold back Ctrl-C until the block is done, so that a state is saved between steps and not in the midst of one.

    The list that is given is no longer empty once Ctrl-C was pressed; KeyboardInterrupt is raised when the block ends. A
    second Ctrl-C is not held back. Outside the main thread nothing is done, as Python delivers no signals there.
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
