"""How many threads a computation is worth."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

WORTH = 2**24
"""Parameters × rows from which a second thread pays. Below, threads spend their time waiting for each other: a step of a
64-64-8 VAE takes 1.5 ms on one thread, and on a busy machine 70 ms on two."""


@contextmanager
def fitting_threads(module: torch.nn.Module, batch: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within the block torch computes on one thread if the module and the batch are small; afterwards as before."""
    before = torch.get_num_threads()
    work = sum(p.numel() for p in module.parameters()) * len(batch[0])
    if work < WORTH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
