"""Data from arrays: `from_columns` checks, describes, splits and standardises the columns of a person's own data.

`series_of` makes padded columns of sequences of different length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.chosen import Choice, tensor_of
from pyro_vi.data.columns import SUPPORTS, default_heldout, survey
from pyro_vi.data.dataset import Batch, Data, Stored
from pyro_vi.data.files import Columns
from pyro_vi.data.mapped import Mapped, first
from pyro_vi.data.seeds import split_many
from pyro_vi.data.sets.raw import known_labels
from pyro_vi.data.sets.series import padded
from pyro_vi.data.sets.tables import moments
from pyro_vi.data.spec import ColumnSpec, DataSpec
from pyro_vi.errors import InputError

CLASSES = 256
"""Most values of a column of whole numbers that are named as classes."""
PIXELS = 8
"""Least height and width of what is taken for an image."""


def from_columns(
    name: str,
    given: Columns,
    source: str,
    seed: int,
    heldout: float | None,
    dtype: torch.dtype | None,
    integers: bool,
    choice: Choice,
) -> Data:
    """Make a `Data` from columns.

    Args:
        name: name of the data set.
        given: the columns; a test part is the held-out part of a single column.
        source: origin, in one line.
        seed: seed of the split.
        heldout: fraction of the rows to hold out; None for the default.
        dtype: floating dtype; None for that of the tensors.
        integers: whole numbers and truth values stay what they are.
        choice: what to do with the labels, and whether to standardise the first column.

    Raises:
        InputError: columns of different lengths, or values that no model can use.
    """
    columns, test = given.train, given.test
    if dtype is None:
        # A tensor's dtype was chosen; NumPy's and pandas' float64 is only their default.
        dtypes = [v.dtype for v in columns.values() if isinstance(v, Tensor) and v.is_floating_point()]
        dtype = dtypes[0] if dtypes else torch.get_default_dtype()
        for other in dtypes:
            dtype = torch.promote_types(dtype, other)
    surveyed = {
        label: survey(values, dtype, f"{name}: {label}", integers=integers or label in given.whole)
        for label, values in columns.items()
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
        fraction = default_heldout(whole) if heldout is None else heldout
        kept, rest = split_many(rows, fraction, seed, many=any(isinstance(column, Mapped) for column in whole))
        train: Stored = tuple(c.part(kept) if isinstance(c, Mapped) else c[kept[:].to(c.device)] for c in whole)
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
    names = {"group": given.groups, "target": given.targets}
    others = tuple(_described(*one, number, whole[0], names) for number, one in enumerate(described[1:], 1))
    series = any(column.name == "lengths" for column in others)
    image = None if series else _image(shape)
    spec = DataSpec(name, len(train[0]), shape, support, dtype, source, image, features=given.features, others=others)
    asked = {role: getattr(choice, role) for role in ("target", "group", "label")}
    roles = {role: column for role, column in asked.items() if isinstance(column, str)}
    data = Data(spec, seed, held, train, integers=integers, given=kept if test is None else None, roles=roles)
    if choice.standardize:
        data = _standardized(data)
    labels = tensor_of(given.labels)
    return data if labels is None else _labelled(data, labels, (kept[:], rest), given.classes, choice.labels)


def series_of(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return padded sequences (rows, steps, ...) and their lengths, from arrays of which one is ``lengths``; None if none is.

    The other array holds the sequences one after another, (steps of all, ...), or each in a row of its own, padded.

    Raises:
        InputError: lengths that do not fit the array.

    Example:
        >>> found = series_of({"'x'": np.arange(3.0), "'lengths'": np.array([1, 2])})
        >>> found["'x'"].tolist()
        [[0.0, 0.0], [1.0, 2.0]]
    """
    names = [key for key in given if key.strip("'") == "lengths"]
    if len(names) != 1 or len(given) != 2:
        return None
    (key,) = names
    label = next(name for name in given if name != key)
    lengths, x = np.asarray(given[key]), np.asarray(given[label])
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not len(lengths) or not x.ndim or lengths.min() < 1:
        raise InputError(f"the lengths {key} must be whole numbers of at least 1, one for each sequence")
    total = int(lengths.sum())
    if x.ndim > 1 and len(x) == len(lengths) and lengths.max() <= x.shape[1]:
        inside = np.arange(x.shape[1]) < lengths[:, None]
        x = np.where(inside.reshape(*inside.shape, *(1,) * (x.ndim - 2)), x, np.zeros((), x.dtype))
        return {label: x, key: lengths.astype(np.int64)}
    if len(x) != total:
        raise InputError(
            f"{label} has shape {x.shape}, and the {len(lengths)} lengths {key} add up to {total}; "
            "give the sequences one after another, or each in a row, padded"
        )
    pieces = [torch.from_numpy(piece.copy()) for piece in np.split(x, np.cumsum(lengths)[:-1])]
    return {label: padded(pieces)[0], key: lengths.astype(np.int64)}


def sequences_in(values: Sequence[Any]) -> list[Tensor] | None:
    """Return a list of arrays as sequences, if they differ in their first dimension only; None if they are something else."""
    if len(values) < 2 or not all(isinstance(v, Tensor | np.ndarray) and v.ndim for v in values):
        return None
    found = [v if isinstance(v, Tensor) else torch.from_numpy(np.ascontiguousarray(v)) for v in values]
    if len({len(v) for v in found}) == 1 or len({(tuple(v.shape[1:]), v.dtype) for v in found}) > 1:
        return None
    if not all(len(v) for v in found):
        row = next(k for k, v in enumerate(found) if not len(v))
        raise InputError(f"sequence {row} (counted from 0) has no step; leave it out")
    return found


def _standardized(data: Data) -> Data:
    """The same data with mean 0 and standard deviation 1: of each column of a table, each number of a step, or all numbers."""
    x = data.columns[0]
    if isinstance(x, Mapped):
        raise InputError(
            f"{data.spec.name}: standardize=True would copy a file that is read row by row; save it standardised"
        )
    position = next((i for i, column in enumerate(data.spec.others, 1) if column.name == "lengths"), None)
    inside = None if position is None else _inside(x, data.columns[position])
    numbers = x if inside is None else x[inside]  # of a series, (steps of all, *numbers of a step)
    together = numbers.dim() != 2
    found = moments(
        numbers.reshape(-1, 1) if together else numbers, data.spec.name, () if together else data.spec.features
    )
    loc, scale = (part.reshape(()) for part in found) if together else found
    data = replace(data, spec=replace(data.spec, support="real"), standard=(loc, scale))
    parts = []
    for batch in (data.columns, data.heldout):
        assert isinstance(batch[0], Tensor)
        first = data.standardized(batch[0])
        if position is not None:  # padded steps are 0
            first = first * _inside(first, batch[position]).reshape(*first.shape[:2], *(1,) * (first.dim() - 2))
        parts.append((first, *batch[1:]))
    return replace(data, columns=parts[0], heldout=parts[1])


def _inside(x: Tensor, lengths: Any) -> Tensor:
    """True for the steps of (rows, steps, ...) that are no padding."""
    return torch.arange(x.shape[1], device=x.device) < lengths.to(x.device).unsqueeze(1)


def _labelled(
    data: Data, labels: Tensor, parts: tuple[Tensor, Tensor], classes: tuple[str, ...], asked: int | bool
) -> Data:
    """The same data with labels, apart or in the batch."""
    train, heldout = (labels[rows] for rows in parts)
    data = replace(data, labels=train, heldout_labels=heldout, classes=classes)
    if asked is False:
        return data
    known = train if asked is True else known_labels(train, int(asked), classes, data.seed, data.spec.name)
    column = ColumnSpec("label", (), "class", classes)
    return replace(
        data,
        spec=replace(data.spec, others=(*data.spec.others, column)),
        columns=(*data.columns, known.to(data.columns[0].device)),
        heldout=(*data.heldout, heldout.to(data.columns[0].device)),
    )


def _image(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The height and width of data whose shape is that of an image with at least `PIXELS` pixels in each, or with channels."""
    image = len(shape) == 2 or (len(shape) == 3 and shape[0] <= 4)
    return (shape[-2], shape[-1]) if image and min(shape[-2:]) >= PIXELS else None


def _described(
    label: str,
    column: Tensor | Mapped,
    supports: set[str],
    number: int,
    x: Tensor | Mapped,
    names: Mapping[str, tuple[str, ...]],
) -> ColumnSpec:
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
        name, classes = label.strip("'"), names.get(label) or classes
        classes = () if name == "lengths" else classes
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
