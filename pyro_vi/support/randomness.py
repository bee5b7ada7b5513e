"""The random generators that programs may draw from: those of torch, NumPy and Python.

* `generators` returns their state, and `set_generators` restores it. All saving and restoring goes through these two.
* `torch_generators` returns the state of torch's alone, in a hundredth of the time.
* `kept_generators` does both around a block; `seed_generators` seeds all of them.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch


def generators() -> dict[str, Any]:
    """Return the state of every generator that a program may draw from, as tensors and plain numbers."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        **torch_generators(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }


def torch_generators() -> dict[str, Any]:
    """Return the state of torch's generators."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_generators(state: Mapping[str, Any]) -> None:
    """Restore a state that `generators` or `torch_generators` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" not in state:
        return
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


@contextmanager
def kept_generators() -> Iterator[None]:
    """Restore the state of the generators after the block.

    Example:
        >>> before = torch.get_rng_state()
        >>> with kept_generators():
        ...     _ = torch.rand(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    before = generators()
    try:
        yield
    finally:
        set_generators(before)


def seed_generators(seed: int) -> None:
    """Seed the generators of torch, NumPy and Python; NumPy gets the seed modulo 2³²."""
    if _accelerated():
        torch.manual_seed(seed)
    else:  # torch would write down for later that the generators of absent devices are to be seeded, with a stack trace
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@cache
def _accelerated() -> bool:
    """True if torch may have generators other than that of the CPU."""
    return torch.accelerator.is_available()
