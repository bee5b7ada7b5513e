"""The cost of one evaluation: time, with its spread, and peak memory."""

import math
import time
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer

from pyro_vi.support.private import Missing
from pyro_vi.support.torch_internals import allocations


@dataclass(frozen=True)
class Cost:
    """The cost of one call.

    Attributes:
        seconds: median over rounds.
        spread: interquartile range over rounds.
        error: standard error of the median.
        peak_bytes: the most bytes of new tensors that lived at once; NaN where this torch does not record them.
    """

    seconds: float
    spread: float
    error: float
    peak_bytes: int | float


def costs(calls: Mapping[str, Callable[[], Any]], *, seconds: float = 0.2, rounds: int = 15) -> dict[str, Cost]:
    """Time and memory of several calls, measured in turns, so that drift of the machine affects all equally.

    Args:
        calls: what to measure, by name; each is run once before, uncounted.
        seconds: about how long each call is measured in all.
        rounds: turns; the spread and the error are over these.

    The timer is that of `torch.utils.benchmark`, on as many threads as torch uses now.

    Example:
        >>> found = costs({"one": lambda: torch.ones(1000) + 1}, seconds=0.01)["one"]
        >>> found.seconds > 0, 8000 <= found.peak_bytes < 9000
        (True, True)
    """
    threads = torch.get_num_threads()
    # The processor time of one thread is the time on an idle machine, even if this machine is busy.
    clock = time.thread_time if threads == 1 and not torch.cuda.is_initialized() else timeit.default_timer
    timers, numbers = {}, {}
    for name, call in calls.items():
        call()
        timers[name] = Timer("call()", globals={"call": call}, num_threads=threads, timer=clock)
        numbers[name] = max(1, round(seconds / rounds / max(timers[name].timeit(1).median, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer.timeit(numbers[name]).median)
    result = {}
    for name, call in calls.items():
        low, middle, high = np.quantile(times[name], (0.25, 0.5, 0.75))
        # For normal times the standard deviation is IQR / 1.349, and the error of the median 1.253 of that of the mean.
        error = 1.253 * (high - low) / 1.349 / math.sqrt(rounds)
        result[name] = Cost(float(middle), float(high - low), float(error), peak_bytes(call))
    return result


def peak_bytes(call: Callable[[], Any]) -> int | float:
    """The most bytes that live at once of the tensors that ``call`` makes, on the CPU and on the GPU.

    NaN where this torch does not record what lives on the CPU.
    """
    on_gpu = torch.cuda.is_initialized()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    try:
        peak = max(accumulate(allocations(call), initial=0))
    except Missing:
        return math.nan
    return peak + (torch.cuda.max_memory_allocated() - before if on_gpu else 0)
