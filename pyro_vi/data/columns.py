"""Columns of people's own data: whether their numbers can be used, and the floats that stored numbers mean.

* `survey` takes an array or a tensor, refuses values that no model could use, and says which supports hold them.
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


HELDOUT_ROWS, HELDOUT_BYTES = 10_000, 2**28  # of mapped data by default: they are held in memory


_DRAWN = 4096  # rows drawn at a time: bounds memory, and lets the first rows be drawn without the others


def survey(values: Tensor | Array, dtype: torch.dtype, what: str) -> tuple[Tensor | Mapped, set[str]]:
    """The column in a dtype, and the supports that hold it; all rows are looked at once, block by block.

    Raises InputError unless the values are a dense (rows, ...) of finite numbers that the dtype has.
    """
    column = (mapped_column(values) if isinstance(values, np.memmap) else None) or _in_memory(values, what)
    size = rows_in_block(tuple(column.shape[1:]))
    fits, supports = True, set(SUPPORTS)
    bad, first_bad, row = 0, 0, 0
    for block in column.blocks() if isinstance(column, Mapped) else torch.split(column, size):
        wrong = ~block.isfinite()
        if wrong.any():
            first_bad = first_bad if bad else row + _first_row(wrong)
            bad += int(wrong.sum())
        fits = fits and (block.dtype == dtype or _survives(block, dtype))
        supports = {support for support in supports if _holds(support, block)}
        row += len(block)
    if bad:
        raise InputError(f"{what}: {_told(bad, first_bad)} NaN or infinite; drop or fill those rows")
    if not fits:
        raise InputError(f"{what} holds numbers that {dtype} cannot; load with dtype=torch.float64, or rescale them")
    return column.to(dtype=dtype) if isinstance(column, Mapped) else column.to(dtype, copy=True), supports


def default_heldout(columns: Sequence[Tensor | Mapped]) -> float:
    """The held-out fraction of columns of equal length."""
    if not any(isinstance(column, Mapped) for column in columns):
        return 0.1
    size = sum(math.prod(column.shape) * column.dtype.itemsize for column in columns)
    return min(0.1, HELDOUT_ROWS / len(columns[0]), HELDOUT_BYTES / size)


def check_finite(values: Tensor, what: str) -> None:
    """Refuse NaN and infinity, with the first row that has one."""
    bad = ~values.isfinite()
    if bad.any():
        raise InputError(f"{what}: {count_and_row(bad)} NaN or infinite; drop or fill those rows")


def count_and_row(bad: Tensor) -> str:
    """How many are bad, and the first row with one: the subject and the verb of a sentence."""
    return _told(int(bad.sum()), _first_row(bad))


def draw(stored: Tensor, levels: int, blocks: torch.Generator, rows: int) -> Tensor:
    """The first rows of 0/1 draws with probability v / levels, exactly: u < v with u uniform on 0, ..., levels - 1."""
    drawn = [
        torch.randint(levels, tuple(block.shape), dtype=torch.uint8, generator=blocks).to(block.device) < block
        for block in torch.split(stored[: -(-rows // _DRAWN) * _DRAWN], _DRAWN)
    ]
    return torch.cat(drawn)[:rows].to(torch.uint8)


def floats(values: Tensor, dtype: torch.dtype, levels: int | None) -> Tensor:
    """What stored numbers stand for."""
    return values.to(dtype) if levels is None else values.to(dtype) / levels


def _in_memory(values: Tensor | Array, what: str) -> Tensor:
    """A dense tensor of numbers, (rows, ...)."""
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


def _survives(values: Tensor, dtype: torch.dtype) -> bool:
    cast = values.to(dtype)
    return bool(cast.isfinite().all() if values.is_floating_point() else (cast.to(values.dtype) == values).all())


def _holds(support: str, values: Tensor) -> bool:
    if support == "boolean":
        return bool(((values == 0) | (values == 1)).all())
    return support == "real" or (not values.is_floating_point() and bool((values >= 0).all()))


def _first_row(bad: Tensor) -> int:
    return int(bad.reshape(len(bad), -1).any(1).nonzero()[0])


def _told(count: int, row: int) -> str:
    return f"{count} value{'s' * (count != 1)} (first in row {row}, counted from 0) {'are' if count != 1 else 'is'}"
