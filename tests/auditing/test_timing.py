"""Costs: peaks of known allocations, and times of scripted and of known calls."""

import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from pyro_vi.auditing import timing as module
from pyro_vi.auditing.timing import costs, peak_bytes

KB = 1000
NOISE = 64
"""Bytes of the scalar tensors that torch makes of Python numbers."""


def block(kilobytes: int) -> torch.Tensor:
    return torch.zeros(kilobytes * KB, dtype=torch.uint8)


def freed_temporaries() -> torch.Tensor:
    for _ in range(5):
        first = block(300)
        del first
    return block(100)


def overlapping() -> torch.Tensor:
    first, second = block(300), block(200)
    del first
    third = block(50)
    return second[:1] + third[:1]


def peak_in_the_middle() -> None:
    block(10)
    held = [block(100) for _ in range(4)]
    held.clear()
    block(20)


@pytest.mark.parametrize(
    ("call", "kilobytes"), [(freed_temporaries, 300), (overlapping, 500), (peak_in_the_middle, 400), (lambda: None, 0)]
)
def test_peak_of_known_allocations(call, kilobytes):
    assert 0 <= peak_bytes(call) - kilobytes * KB <= NOISE


def test_peak_of_a_backward_pass():
    """Of y = Σ exp x: exp x is kept for the backward pass, where it meets the gradient."""
    x = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
    assert 0 <= peak_bytes(lambda: x.exp().sum()) - 8 * KB <= NOISE
    assert 0 <= peak_bytes(lambda: torch.autograd.grad(x.exp().sum(), x)) - 16 * KB <= NOISE

    def kept_three() -> Any:
        one = x.exp()
        two = one.exp()
        return torch.autograd.grad(two.exp().sum(), x)  # three of them, and one gradient

    assert 0 <= peak_bytes(kept_three) - 32 * KB <= NOISE


def test_what_was_there_before_does_not_count():
    before = block(500)
    assert 0 <= peak_bytes(lambda: before[:KB] + 1) - KB <= NOISE


def test_the_profiler_is_off_after_a_call_that_fails():
    def fails() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        peak_bytes(fails)
    assert peak_bytes(lambda: block(3)) == 3 * KB


class Script:
    """A timer whose times are written down: the first is the look at how long a call takes."""

    def __init__(self, times: dict[str, list[float]]) -> None:
        self.times, self.asked = times, []

    def __call__(self, text: str, **options: Any) -> Any:
        name = options["globals"]["call"]()
        times = iter(self.times[name])

        class Timer:
            def timeit(inner, number: int) -> Any:
                self.asked.append((name, number))
                return type("Measurement", (), {"median": next(times)})

        return Timer()


def test_median_spread_and_error_of_scripted_times(monkeypatch):
    """Nine rounds in turns; quartiles of 1..9 are 3 and 7. For normal times σ = IQR / 1.349, error √(π / 2) σ / √9."""
    script = Script({"a": [0.001, 5, 1, 9, 2, 8, 3, 7, 4, 6], "b": [1.0, *[0.5] * 9]})
    monkeypatch.setattr(module, "Timer", script)
    found = costs({"a": lambda: "a", "b": lambda: "b"}, seconds=0.9, rounds=9)
    assert (found["a"].seconds, found["a"].spread) == (5, 4)
    assert found["a"].error == pytest.approx(math.sqrt(math.pi / 2) * 4 / 1.349 / 3, rel=1e-3)
    assert (found["b"].seconds, found["b"].spread, found["b"].error) == (0.5, 0, 0)
    # As many calls as fill the time, at least one; and in turns.
    assert script.asked[:2] == [("a", 1), ("b", 1)]
    assert script.asked[2:] == [("a", 100), ("b", 1)] * 9


def busy(seconds: float) -> None:
    """Keep the processor for that long."""
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        pass


@pytest.mark.parametrize("threads", [1, 2])
def test_times_of_known_calls(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        calls = {"short": lambda: busy(0.001), "long": lambda: busy(0.003)}
        found = costs(calls, seconds=0.03)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    # No call is faster than what it does.
    assert found["short"].seconds >= 0.001
    assert found["long"].seconds >= 0.003
    assert all(one.spread >= 0 and one.error >= 0 for one in found.values())


@pytest.mark.slow
def test_on_one_thread_it_is_the_processors_time():
    """Which other work on the machine hardly moves: a call that only waits takes next to none."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = costs({"waits": lambda: time.sleep(0.02)}, seconds=1e-9)
    finally:
        torch.set_num_threads(before)
    assert found["waits"].seconds < 0.01


def test_threads_are_unchanged_after_a_call_that_fails():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        costs({"fails": lambda: 1 / 0})
    assert torch.get_num_threads() == before


def test_costs_keep_names_and_measure_memory():
    found = costs({"two": lambda: block(2), "five": lambda: block(5)}, seconds=0.01)
    assert list(found) == ["two", "five"]
    assert [one.peak_bytes for one in found.values()] == [2 * KB, 5 * KB]
    assert np.isfinite([one.seconds for one in found.values()]).all()
