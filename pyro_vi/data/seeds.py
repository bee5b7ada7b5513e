"""Random generators for data, which depend on (seed, epoch, purpose) only, and the split that is made with them."""

import zlib

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.rows import Every, shuffled, without
from pyro_vi.errors import InputError


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """Return a CPU generator that is seeded by (seed, epoch, purpose); the global one is not touched.

    >>> a, b = generator(0, 1, "train"), generator(0, 1, "train")
    >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
    True
    """
    if seed < 0 or epoch < 0:
        raise InputError(f"the seed ({seed}) and the epoch ({epoch}) must not be negative; use whole numbers from 0")
    # crc32, because Python's own hash of a string differs from process to process.
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch, zlib.crc32(purpose.encode())))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def split(rows: int, heldout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows at random into a training and a held-out part; return the row numbers of each, in ascending order.

    The held-out part has floor(rows · heldout) rows. If heldout > 0, both parts have at least one row.

    Raises InputError unless 0 <= heldout < 1.

    >>> [len(part) for part in split(1797, 1 / 6, seed=0)]
    [1498, 299]
    """
    kept, rest = split_many(rows, heldout, seed, many=False)
    return kept[:], rest


def split_many(rows: int, heldout: float, seed: int, *, many: bool) -> tuple[Tensor | Every, Tensor]:
    """`split`; with ``many``, the numbers of very many training rows are not kept in memory: see `pyro_vi.data.rows`."""
    if not 0 <= heldout < 1:
        raise InputError(f"heldout={heldout} is not a fraction; use a number from 0 (nothing held out) to below 1")
    count = min(rows - 1, max(1, int(rows * heldout + 1e-9))) if heldout else 0
    order = shuffled(rows, generator(seed, 0, "split"), many=many)
    rest = order[:count].sort().values
    return order[count:].sort().values if isinstance(order, Tensor) else without(rows, rest), rest
