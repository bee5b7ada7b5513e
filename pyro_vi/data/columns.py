"""Checks on columns of numbers, and conversion of stored numbers to floats.

* `survey` checks an array or a tensor for values that no model can use, and finds the supports that contain its values.
* `draw` and `floats` turn stored rows into the values that a program is called with.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.files import Array
from pyro_vi.data.mapped import Mapped, mapped_column, rows_in_block, to_tensor
from pyro_vi.errors import InputError

SUPPORTS = ("boolean", "nonnegative_integer", "real")  # narrowest first


# Default limits for the held-out rows of mapped data, which are kept in memory.
HELDOUT_ROWS, HELDOUT_BYTES = 10_000, 2**28


_DRAW_ROWS = 4096  # rows per block of draws: bounds memory


def survey(
    values: Tensor | Array, dtype: torch.dtype, what: str, *, integers: bool = False
) -> tuple[Tensor | Mapped, set[str]]:
    """Return the column cast to a dtype, and the supports that contain its values; every row is checked, block by block.

    Args:
        values: the column, (rows, ...).
        dtype: floating dtype to cast to.
        what: name of the column in messages.
        integers: leave whole numbers and truth values as they are.

    Raises:
        InputError: the values are not dense, real and finite, or the dtype cannot represent them.
    """
    column = (mapped_column(values) if isinstance(values, np.memmap) else None) or _in_memory(values, what)
    if integers and not column.dtype.is_floating_point:
        dtype = column.dtype
    size = rows_in_block(tuple(column.shape[1:]))
    representable, supports = True, set(SUPPORTS)
    bad, first_bad, row = 0, 0, 0
    for block in column.blocks() if isinstance(column, Mapped) else torch.split(column, size):
        wrong = ~block.isfinite()
        if wrong.any():
            first_bad = first_bad if bad else row + _first_row(wrong)
            bad += int(wrong.sum())
        representable = representable and (block.dtype == dtype or _representable(block, dtype))
        supports = {support for support in supports if _contains(support, block)}
        row += len(block)
    if bad:
        raise InputError(f"{what}: {_counted(bad, first_bad)} NaN or infinite; drop or fill those rows")
    if not representable:
        raise InputError(
            f"{what} holds numbers that {dtype} cannot represent; load with dtype=torch.float64, or rescale them"
        )
    return column.to(dtype=dtype) if isinstance(column, Mapped) else column.to(dtype, copy=True), supports


def default_heldout(columns: Sequence[Tensor | Mapped]) -> float:
    """Default held-out fraction of columns of equal length: 1/10, or less for mapped columns, to limit memory."""
    if not any(isinstance(column, Mapped) for column in columns):
        return 0.1
    size = sum(math.prod(column.shape) * column.dtype.itemsize for column in columns)
    return min(0.1, HELDOUT_ROWS / len(columns[0]), HELDOUT_BYTES / size)


def check_finite(values: Tensor, what: str) -> None:
    """Raise InputError if any value is NaN or infinite, naming the first row that has one."""
    bad = ~values.isfinite()
    if bad.any():
        raise InputError(f"{what}: {count_and_row(bad)} NaN or infinite; drop or fill those rows")


def count_and_row(bad: Tensor) -> str:
    """Start of a message on bad values: their number and the first row with one, as in "2 values (first in row 7, ...) are"."""
    return _counted(int(bad.sum()), _first_row(bad))


def draw(stored: Tensor, levels: int, generator: torch.Generator, rows: int) -> Tensor:
    """Draw 0/1 values for the first ``rows`` stored rows; a stored v gives 1 with probability exactly v / levels.

    A value is 1 if u < v, where u is uniform on 0, ..., levels - 1. The generator gives one u after the other, so that the
    first rows have the values that they have among all rows.
    """
    drawn = [
        torch.randint(levels, tuple(block.shape), dtype=torch.uint8, generator=generator).to(block.device) < block
        for block in torch.split(stored[:rows], _DRAW_ROWS)
    ]
    return torch.cat(drawn).to(torch.uint8)


def floats(values: Tensor, dtype: torch.dtype, levels: int | None) -> Tensor:
    """Convert stored numbers v to floats: v / levels, or v itself without levels."""
    return values.to(dtype) if levels is None else values.to(dtype) / levels


def _in_memory(values: Tensor | Array, what: str) -> Tensor:
    """Return the values as a dense tensor of real numbers, (rows, ...)."""
    if isinstance(values, np.ma.MaskedArray):
        raise InputError(f"{what} is a masked array; drop or fill the masked rows and give a plain array")
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "biuf":
            raise InputError(f"{what} holds {values.dtype}, not numbers; give whole or real numbers")
        values = values if values.flags.writeable else values.copy()  # torch cannot share a read-only buffer
        tensor = to_tensor(values, what)
    else:
        tensor = values.detach()
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise InputError(f"{what} is a sparse, quantised or complex tensor; give a dense one of real numbers")
    if not tensor.ndim:
        raise InputError(f"{what} is a single number; give an array with a row for each datum")
    return tensor


def _representable(values: Tensor, dtype: torch.dtype) -> bool:
    cast = values.to(dtype)
    return bool(cast.isfinite().all() if values.is_floating_point() else (cast.to(values.dtype) == values).all())


def _contains(support: str, values: Tensor) -> bool:
    if support == "boolean":
        return bool(((values == 0) | (values == 1)).all())
    return support == "real" or (not values.is_floating_point() and bool((values >= 0).all()))


def _first_row(bad: Tensor) -> int:
    return int(bad.reshape(len(bad), -1).any(1).nonzero()[0])


def _counted(count: int, row: int) -> str:
    return f"{count} value{'s' * (count != 1)} (first in row {row}, counted from 0) {'are' if count != 1 else 'is'}"
