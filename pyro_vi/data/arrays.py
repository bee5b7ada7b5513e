"""Data from arrays: `from_columns` checks, describes and splits the columns of a person's own data."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_vi.data.columns import SUPPORTS, default_heldout, survey
from pyro_vi.data.dataset import Batch, Data, Stored
from pyro_vi.data.files import Array
from pyro_vi.data.mapped import Mapped, first
from pyro_vi.data.seeds import split
from pyro_vi.data.spec import ColumnSpec, DataSpec
from pyro_vi.errors import InputError

CLASSES = 256
"""Most values of a column of whole numbers that are named as classes."""
PIXELS = 8
"""Least height and width of what is taken for an image."""


def from_columns(
    name: str,
    columns: Mapping[str, Tensor | Array],
    source: str,
    seed: int,
    heldout: float | None,
    dtype: torch.dtype | None,
    test: Array | None = None,
    integers: bool = False,
) -> Data:
    """Make a `Data` from columns by label; ``test``, if given, is the held-out part of a single column.

    Raises:
        InputError: columns of different lengths, or values that no model can use.
    """
    if dtype is None:
        # A tensor's dtype was chosen; NumPy's and pandas' float64 is only their default.
        dtypes = [v.dtype for v in columns.values() if isinstance(v, Tensor) and v.is_floating_point()]
        dtype = dtypes[0] if dtypes else torch.get_default_dtype()
        for other in dtypes:
            dtype = torch.promote_types(dtype, other)
    surveyed = {
        label: survey(values, dtype, f"{name}: {label}", integers=integers) for label, values in columns.items()
    }
    whole = [column for column, _ in surveyed.values()]
    if len({len(column) for column in whole}) > 1:
        listed = ", ".join(f"{label} {len(column)}" for label, (column, _) in surveyed.items())
        raise InputError(f"{name}: columns differ in their number of rows ({listed}); give all of them the same rows")
    rows, shape = len(whole[0]), tuple(whole[0].shape[1:])
    if not rows:
        raise InputError(f"{name}: 0 rows cannot be fitted; give at least 2 rows")
    if rows < 2 and heldout != 0 and test is None:
        raise InputError(f"{name}: 1 row cannot be split; give at least 2 rows, or heldout=0")
    supports = next(iter(surveyed.values()))[1]
    if test is None:
        kept, rest = split(rows, default_heldout(whole) if heldout is None else heldout, seed)
        train: Stored = tuple(c.part(kept) if isinstance(c, Mapped) else c[kept.to(c.device)] for c in whole)
        held: Batch = tuple(column.index_select(0, rest.to(column.device)) for column in whole)
    else:
        tested, test_supports = survey(test, dtype, f"{name}: 'test'")
        if not len(tested) or tuple(tested.shape[1:]) != shape:
            raise InputError(
                f"{name}: 'test' has shape {tuple(tested.shape)} and 'train' {tuple(whole[0].shape)}; "
                "give both at least one row and rows of the same shape"
            )
        train, held, supports = (whole[0],), (first(tested, len(tested)),), supports & test_supports
    support = next(support for support in SUPPORTS if support in supports)  # the narrowest that contains both parts
    described = list(zip(surveyed, whole, (found for _, found in surveyed.values()), strict=True))
    others = tuple(_described(*one, number, whole[0]) for number, one in enumerate(described[1:], 1))
    series = any(column.name == "lengths" for column in others)
    image = None if series else _image(shape)
    spec = DataSpec(name, len(train[0]), shape, support, dtype, source, image, others=others)
    return Data(spec, seed, held, train, integers=integers, given=kept if test is None else None)


def _image(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The height and width of data whose shape is that of an image with at least `PIXELS` pixels in each, or with channels."""
    image = len(shape) == 2 or (len(shape) == 3 and shape[0] <= 4)
    return (shape[-2], shape[-1]) if image and min(shape[-2:]) >= PIXELS else None


def _described(label: str, column: Tensor | Mapped, supports: set[str], number: int, x: Tensor | Mapped) -> ColumnSpec:
    """Describe a further column; its name is that of a keyword argument, or else follows from its values."""
    shape = tuple(column.shape[1:])
    support = next(support for support in SUPPORTS if support in supports)
    least, most = 0, 0
    classes: tuple[str, ...] = ()
    if not column.dtype.is_floating_point and column.dtype != torch.bool and not shape:
        least, most = _range(column)
        if least == -1:
            support = "class"
        if least >= -1 and most < CLASSES:
            classes = tuple(str(value) for value in range(most + 1))
    elif column.dtype == torch.bool and not shape:
        classes = ("0", "1")
    if not label.startswith("argument "):
        name = label
    elif shape or number > 2:
        name = f"column {number + 1}"
    elif column.dtype.is_floating_point:
        name = "target" if number == 1 else f"column {number + 1}"
    elif len(x.shape) > 2 and least >= 1 and most == x.shape[1]:
        name, classes = "lengths", ()
    else:
        name = "label" if number == 1 else "group"
    return ColumnSpec(name, shape, support, classes)


def _range(column: Tensor | Mapped) -> tuple[int, int]:
    """The least and the greatest value of a column of whole numbers."""
    blocks = list(column.blocks() if isinstance(column, Mapped) else [column])
    return min(int(block.min()) for block in blocks), max(int(block.max()) for block in blocks)
