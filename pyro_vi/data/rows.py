"""Row numbers that are computed when they are needed: of a file with very many rows, a list of them would fill the memory.

* `Every` are all rows, `Without` all but a few, and `Shuffled` a random order of them.
* `shuffled` gives an order, `without` the rows that are not held out, and `parts` the pieces of an order.

Up to `MANY` rows, all of them are tensors.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MANY = 2**24
"""Number of rows above which their numbers are not kept: 128 MB for each list of them."""

ROUNDS = 6
_MASK = 2**32 - 1


@dataclass(frozen=True, eq=False)
class Every:
    """The row numbers 0, ..., size − 1; part of them by a slice or by an index, as of a tensor."""

    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: "slice | Tensor") -> Tensor:
        if isinstance(index, slice):
            start, stop, step = index.indices(self.size)
            index = torch.arange(start, max(start, stop), step)
        return self.at(index)

    def at(self, index: Tensor) -> Tensor:
        """Return the row numbers at places of this list."""
        return index.long()


@dataclass(frozen=True, eq=False)
class Without(Every):
    """The numbers of ``size`` rows: all but those that are left out, which are in ascending order."""

    left_out: Tensor

    def at(self, index: Tensor) -> Tensor:
        # The i-th row that is left out comes after left_out[i] − i rows that are not.
        before = self.left_out - torch.arange(len(self.left_out))
        return index + torch.searchsorted(before, index.contiguous(), right=True)


@dataclass(frozen=True, eq=False)
class Shuffled(Every):
    """A random order of 0, ..., size − 1, which is computed at any place without the others.

    It is a Feistel network on two halves of b bits, 4^b ≥ size, that is applied again until the number is below size ("cycle
    walking": Black and Rogaway 2002, Ciphers with arbitrary finite domains). With random functions, four rounds give an order
    that cannot be told from a random one (Luby and Rackoff 1988, doi:10.1137/0217022). Here they are six rounds of the mixing
    function of MurmurHash3, with a random key of 32 bits each.

    Attributes:
        keys: a whole number below 2^32 for each round.

    Example:
        >>> order = Shuffled(5, (1, 2, 3, 4, 5, 6))
        >>> sorted(order[:].tolist())
        [0, 1, 2, 3, 4]
    """

    keys: tuple[int, ...]

    def at(self, index: Tensor) -> Tensor:
        bits = max(1, (max(1, self.size - 1).bit_length() + 1) // 2)
        found = self._network(index.long(), bits)
        outside = found >= self.size
        while bool(outside.any()):
            found[outside] = self._network(found[outside], bits)
            outside = found >= self.size
        return found

    def _network(self, number: Tensor, bits: int) -> Tensor:
        half = 2**bits - 1
        left, right = number >> bits, number & half
        for key in self.keys:
            left, right = right, left ^ (_mixed(right ^ key) & half)
        return left << bits | right


def shuffled(size: int, generator: torch.Generator, *, many: bool) -> "Tensor | Shuffled":
    """Return a random order of 0, ..., size − 1; with ``many``, one that is not kept in memory if it is longer than `MANY`."""
    if not many or size <= MANY:
        return torch.randperm(size, generator=generator)
    keys = torch.randint(2**32, (ROUNDS,), generator=generator)
    return Shuffled(size, tuple(keys.tolist()))


def without(size: int, left_out: Tensor) -> Without:
    """Return the rows that are not left out; those that are have ascending numbers.

    Example:
        >>> without(6, torch.tensor([0, 3]))[:].tolist()
        [1, 2, 4, 5]
    """
    return Without(size - len(left_out), left_out)


def parts(order: "Tensor | Every", count: int, size: int) -> Iterator[Tensor]:
    """Yield the first ``count`` numbers of an order in pieces of ``size``, the last of which may have fewer.

    Example:
        >>> [part.tolist() for part in parts(Every(9), 5, 2)]
        [[0, 1], [2, 3], [4]]
    """
    for start in range(0, count, size):
        yield order[start : min(start + size, count)]


def _mixed(value: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 with 32 bits. A product of two numbers below 2^32 may overflow; its low bits are right."""
    value = value ^ value >> 16
    value = value * 0x85EBCA6B & _MASK
    value = value ^ value >> 13
    value = value * 0xC2B2AE35 & _MASK
    return value ^ value >> 16
