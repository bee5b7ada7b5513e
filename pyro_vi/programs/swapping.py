"""Other tensors in the place of those of a module, for a block."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from pyro_vi.support.torch_internals import tensors_of


@contextmanager
def swapped(program: nn.Module, values: Mapping[int, torch.Tensor]) -> Iterator[Callable[[int], torch.Tensor]]:
    """Within the block, replace each tensor of ``program`` whose ``id`` is a key of ``values`` by the value.

    Tensors are matched by identity and not by name, because one parameter may have several names: in networks with tied
    weights, or in a guide that holds its model (where `torch.func.functional_call` leaves a wrong tensor behind).

    The block receives a function from a key to the tensor that is in its place now: the value, or another tensor if the
    program has assigned one.
    """
    places = [
        (held, name, value)
        for module in program.modules()
        for held in tensors_of(module)
        for name, value in held.items()
        if value is not None and id(value) in values
    ]
    for held, name, value in places:
        held[name] = values[id(value)]

    def now(key: int) -> torch.Tensor:
        return next(held[name] for held, name, value in places if id(value) == key)  # type: ignore[return-value]

    try:
        yield now
    finally:
        for held, name, value in places:
            held[name] = value
