"""The arguments of a program: which of them have a row for each datum, and what else it takes.

* `Arguments` is made by `split` from what a person hands over; it puts rows of the columns into their places again.
* `part` takes rows of arguments that are put together already; `fresh` copies their tensors; `changed` changes them.
* `numbered` adds the row numbers to the batches of data, for a guide that has parameters for each row.

A column is a tensor or array with as many rows as the first one. Everything else is passed on as it is: None, numbers, words,
tensors of another length, and what lists, tuples and dictionaries hold besides columns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.dataset import Batch, Data, length_of
from pyro_vi.data.files import Array
from pyro_vi.data.mapped import to_tensor


@dataclass(frozen=True)
class Place:
    """The place of a column in the arguments."""

    column: int


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of a program, with a `Place` for each column.

    Attributes:
        values: positional arguments.
        names: the names of the last arguments, if they are keyword arguments.
    """

    values: tuple[Any, ...]
    names: tuple[str, ...] = ()

    def fill(self, columns: Batch) -> Batch:
        """Return the arguments with rows of the columns in their places."""
        filled: Batch = _map(self.values, lambda v: columns[v.column] if isinstance(v, Place) else v)
        return filled

    def columns_of(self, filled: Batch) -> Batch:
        """Return the columns that `fill` put into their places."""
        found: dict[int, Any] = {}

        def look(place: Any, value: Any) -> None:
            if isinstance(place, Place):
                found[place.column] = value
            elif isinstance(place, dict):
                for key, item in place.items():
                    look(item, value[key])
            elif isinstance(place, (list, tuple)) and not hasattr(place, "_fields"):
                for item, inside in zip(place, value, strict=False):
                    look(item, inside)

        look(self.values, filled)
        return tuple(found[number] for number in sorted(found))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Arguments":
        """Return the same arguments with the tensors among them on another device, or with another floating dtype."""

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return Arguments(_map(self.values, moved), self.names)

    def tensors(self, dtype: torch.dtype) -> "Arguments":
        """Return the same arguments with arrays of numbers as tensors, of a floating dtype if they are floats."""

        def tensor(value: Any) -> Any:
            if not isinstance(value, np.ndarray) or not value.ndim or value.dtype.kind not in "biuf":
                return value
            made = to_tensor(np.array(value), "an argument")
            return made.to(dtype) if made.is_floating_point() else made

        return Arguments(_map(self.values, tensor), self.names)


def split(given: Batch | Mapping[str, Any]) -> tuple[Arguments, dict[str, Tensor | Array]]:
    """Return the arguments with places, and the columns by a label for messages.

    Args:
        given: positional arguments, or keyword arguments by name.

    Example:
        >>> arguments, columns = split((torch.ones(3, 2), None, {"weight": torch.zeros(3)}))
        >>> list(columns), arguments.fill((1, 2))
        (['argument 0', "argument 2['weight']"], (1, None, {'weight': 2}))
    """
    names = tuple(given) if isinstance(given, Mapping) else ()
    values = tuple(given.values()) if isinstance(given, Mapping) else given
    columns: dict[str, Tensor | Array] = {}
    rows: list[int] = []

    def look(value: Any, label: str) -> Any:
        if isinstance(value, dict):
            return {key: look(item, f"{label}[{key!r}]") for key, item in value.items()}
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            return type(value)(look(item, f"{label}[{number}]") for number, item in enumerate(value))
        value = _array(value)
        if not isinstance(value, Tensor | np.ndarray) or not value.ndim:
            return value
        rows.append(len(value))
        if len(value) != rows[0]:
            return value
        columns[label] = value
        return Place(len(columns) - 1)

    labels = names or [f"argument {number}" for number in range(len(values))]
    placed = tuple(look(value, label) for value, label in zip(values, labels, strict=True))
    return Arguments(placed, names), columns


def part(args: Batch, start: int, stop: int) -> Batch:
    """Return rows ``start`` to ``stop`` of arguments; what has another number of rows than the first column stays whole.

    Example:
        >>> part((torch.arange(3), torch.ones(2), None), 1, 3)
        (tensor([1, 2]), tensor([1., 1.]), None)
    """
    length = length_of(args)
    rows: Batch = _map(args, lambda v: v[start:stop] if isinstance(v, Tensor) and v.dim() and len(v) == length else v)
    return rows


def evenly(args: Batch, rows: int) -> tuple[Batch, list[int]]:
    """Return at most ``rows`` rows of arguments, evenly spaced, and their numbers.

    Example:
        >>> evenly((torch.arange(10), None), 3)
        ((tensor([0, 4, 9]), None), [0, 4, 9])
    """
    length = length_of(args)
    if rows >= length:
        return args, list(range(length))
    index = torch.linspace(0, length - 1, rows, dtype=torch.float64).round().long()
    taken: Batch = _map(
        args, lambda v: v[index.to(v.device)] if isinstance(v, Tensor) and v.dim() and len(v) == length else v
    )
    return taken, index.tolist()


def changed(args: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return arguments with each tensor among them changed.

    Example:
        >>> changed((torch.arange(3), None), lambda v: v.flip(0))
        (tensor([2, 1, 0]), None)
    """
    found: Batch = _map(args, lambda v: change(v) if isinstance(v, Tensor) else v)
    return found


def numbered(data: Data) -> Data:
    """Return the same data with the numbers of the rows as the last argument of each batch, from 0 to `num_data` − 1.

    Held-out rows have no number among those that are fitted, so they are left out. Values that are redrawn in each epoch are
    fixed, so that a number belongs to one datum. Data without columns stay as they are.

    Example:
        >>> from pyro_vi.data.loading import load
        >>> data = numbered(load(torch.ones(4, 2), heldout=0))
        >>> [index.tolist() == numbers.tolist() for index, (x, numbers) in data.batches(0, batch_size=3)]
        [True, True]
    """
    if not data.columns:
        return data
    labels = None if data.heldout_labels is None else data.heldout_labels[:0]
    return replace(data.fixed(), heldout=part(data.heldout, 0, 0), heldout_labels=labels, numbered=True)


def fresh(args: Batch) -> Batch:
    """Return arguments with copies of their tensors: a program may write into its batch, and the data stay as they are."""
    copied: Batch = _map(args, lambda v: v.clone() if isinstance(v, Tensor) else v)
    return copied


def _array(value: Any) -> Any:
    """Return a column of a DataFrame, or a DataFrame, as an array; other values as they are."""
    return (
        value.to_numpy() if type(value).__module__.split(".")[0] == "pandas" and hasattr(value, "to_numpy") else value
    )


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_map(item, change) for item in value)
    return change(value)
