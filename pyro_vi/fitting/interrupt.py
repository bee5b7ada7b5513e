"""Delay of Ctrl-C and of SIGTERM until a step is done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro_vi.errors import Terminated


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """Delay SIGINT (Ctrl-C) and SIGTERM until the block is done, so that state is saved between steps and not during one.

    The block receives a list, which is not empty once a signal has arrived. `KeyboardInterrupt` or `Terminated` is raised when
    the block ends; a second signal raises it at once. A handler of SIGTERM that was there before is called first. Outside the
    main thread the block runs unchanged, because Python delivers no signals there.
    """
    arrived: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if arrived:
            raise _error(number)
        arrived.append(number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            # None: a handler that was not set by Python, which cannot be put back by it
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if arrived:
        handler = before[signal.Signals(arrived[0])]
        if arrived[0] == signal.SIGTERM and callable(handler):
            handler(arrived[0], None)
        raise _error(arrived[0])


def _error(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
