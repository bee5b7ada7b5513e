"""Row numbers for guides that have parameters for each row of the data.

A guide with a true attribute ``row_numbers`` is called with the numbers of the batch's rows as a further, last argument. The
model does not get them. A class of such guides is made as ``Guide(model, example_batch, num_data, **options)``, with an example
that has no numbers.

* `takes_row_numbers` recognises such a guide; `pyro_vi.data.arguments.numbered` makes the data for it.
* `ignore_numbers` lets another program take batches with row numbers; `without_numbers` gives the arguments of its methods.
"""

from typing import Any

from torch import nn

from pyro_vi.data import Batch
from pyro_vi.programs.lookup import Source, with_options


def takes_row_numbers(guide: Source) -> bool:
    """True for a guide, given by name or as a program, that is called with row numbers.

    Example:
        >>> takes_row_numbers("per_datum"), takes_row_numbers("diag_normal")
        (True, False)
    """
    found = with_options(guide, "guide")[0]
    return bool(getattr(found, "row_numbers", False))


class _First:
    """A hook of a module: it takes the first arguments only."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, module: nn.Module, args: Batch) -> Batch:
        return args[: self.count]


def ignore_numbers(program: nn.Module, count: int) -> None:
    """Let a program take ``count`` arguments and ignore those after them.

    A hook leaves the module what it is: its parameters keep their names, and its methods can be called.
    """
    program.register_forward_pre_hook(_First(count))
    program._arguments = count  # type: ignore[assignment]


def without_numbers(model: Any, args: Batch) -> Batch:
    """Return the arguments that a model takes, without row numbers."""
    count = getattr(model, "_arguments", None)
    return args if count is None else args[:count]
