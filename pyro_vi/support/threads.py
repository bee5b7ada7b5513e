"""The number of threads for a fit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

WORTH = 2**24
"""Parameters × rows from which a second thread pays off. Below it, threads mostly wait for each other: a step of a 64-64-8
VAE takes 1.5 ms on one thread, but 70 ms on two threads of a busy machine."""


@contextmanager
def fitting_threads(module: torch.nn.Module, batch: Sequence[Any]) -> Iterator[None]:
    """Run the block on one torch thread if the module and the batch are small; restore the number of threads afterwards."""
    before = torch.get_num_threads()
    rows = next((len(a) for a in batch if isinstance(a, torch.Tensor) and a.dim()), 1)
    work = sum(p.numel() for p in module.parameters()) * rows
    if work < WORTH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
