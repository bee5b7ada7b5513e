"""Ctrl-C is held back to the end of a block, once."""

import os
import signal
import threading

import pytest

from pyro_vi.fitting.interrupt import Terminated, deferred_interrupt

main = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals are for the main thread"
)


@main
def test_ctrl_c_is_held_back_to_the_end_of_the_block():
    before, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as pressed:
        assert not pressed
        os.kill(os.getpid(), signal.SIGINT)
        assert pressed
        done.append(True)
    assert done and signal.getsignal(signal.SIGINT) is before


@main
def test_a_second_ctrl_c_is_not_held_back():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        done.append(True)
    assert not done


@main
def test_another_error_in_the_block_is_not_hidden():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="mine"), deferred_interrupt():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_done():
    seen = []

    def work():
        with deferred_interrupt() as pressed:
            seen.append(pressed)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[]] and signal.getsignal(signal.SIGINT) is before


@main
def test_sigterm_is_held_back_too_and_the_handler_before_is_called():
    done, before = [], signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), deferred_interrupt() as arrived:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(list(arrived))
    assert done == [[signal.SIGTERM]] and signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGTERM, lambda number, frame: done.append(number))
    try:
        with pytest.raises(Terminated), deferred_interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done[1:] == [signal.SIGTERM]
