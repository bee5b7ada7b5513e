"""The result of a reader, and functions that readers share.

* `Raw` holds the parts of a data set as stored, `RawColumn` those of a further column of its batches.
* `labelled` gives a set its labels: kept apart, or in the batches too.
* `folder_file` and `folder_arrays` read the folder PYRO_VI_DATA.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pyro_vi.data.bounded import Array, read_archive
from pyro_vi.data.files import UNREADABLE
from pyro_vi.data.seeds import generator
from pyro_vi.data.spec import ColumnSpec
from pyro_vi.errors import InputError, first_line

LABELS = (False, True, int)
"""Values of the option ``labels``: see `labelled`."""


@dataclass(frozen=True)
class RawColumn:
    """A further column of a data set, each part (rows, *event_shape): whole numbers or floats."""

    spec: ColumnSpec
    train: Tensor
    heldout: Tensor


@dataclass(frozen=True)
class Raw:
    """Result of a reader: the training and the held-out part as stored, each (rows, *event_shape).

    If `levels` is set, a stored integer v means the intensity v / levels. If `binarize` is set too, v / levels is the
    probability of a 1. `labels` are those of `Data`; `others` are the further columns of the batch. `standard` holds what was
    subtracted from the values and what they were divided by.
    """

    train: Tensor
    heldout: Tensor
    support: str
    source: str
    levels: int | None = None
    binarize: bool = False
    image_shape: tuple[int, int] | None = None
    features: tuple[str, ...] = ()
    others: tuple[RawColumn, ...] = ()
    labels: Tensor | None = None
    heldout_labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    standard: tuple[Tensor, Tensor] | None = None


def labelled(
    raw: Raw, train: Tensor, heldout: Tensor, classes: tuple[str, ...], labels: int | bool, seed: int, name: str
) -> Raw:
    """Give a set its labels, (rows,), whole numbers that ``classes`` names.

    Args:
        raw: the set.
        train: labels of the training rows.
        heldout: labels of the held-out rows.
        classes: names of the classes.
        labels: False keeps the labels apart. True makes them a column of the batch. With a whole number, as many training rows
            of each class as it says, drawn with the seed, keep their label in the batch; the others have −1.
        seed: seed of these rows.
        name: name of the set in messages.

    Raises:
        InputError: a class has fewer training rows.
    """
    train, heldout = train.long(), heldout.long()
    raw = replace(raw, labels=train, heldout_labels=heldout, classes=classes)
    if labels is False:
        return raw
    known = train if labels is True else known_labels(train, int(labels), classes, seed, name)
    column = RawColumn(ColumnSpec("label", (), "class", classes), known, heldout)
    return replace(raw, others=(*raw.others, column))


def known_labels(labels: Tensor, count: int, classes: tuple[str, ...], seed: int, name: str) -> Tensor:
    """Return the labels of ``count`` rows of each class, drawn with the seed, and −1 for all others.

    Raises:
        InputError: a class has fewer rows.

    Example:
        >>> known_labels(torch.tensor([0, 1, 0, 1, 0]), 1, ("a", "b"), 0, "x").tolist()
        [-1, -1, 0, 1, -1]
    """
    known, order = torch.full_like(labels, -1), torch.randperm(len(labels), generator=generator(seed, 0, "labels"))
    for number, title in enumerate(classes):
        rows = order[labels[order] == number]
        if len(rows) < count:
            raise InputError(
                f"{name}: class {title!r} has {len(rows)} training rows, and labels={count} asks for more; "
                f"give at most {min(int((labels == n).sum()) for n in range(len(classes)))}"
            )
        known[rows[:count]] = number
    return known


def folder_file(name: str, relative: str) -> Path:
    """Return the path of a file in the folder PYRO_VI_DATA; raise InputError if it is not there."""
    root = os.environ.get("PYRO_VI_DATA", "")
    path = Path(root, relative)
    if not root or not path.is_file():
        state = f"has no {relative}" if root else "is not set"
        raise InputError(f"data set {name!r}: PYRO_VI_DATA {state}; set it to a folder that has {relative}")
    return path


def folder_arrays(name: str, relative: str, keys: tuple[str, ...]) -> list[Array]:
    """Return arrays of an .npz file in the folder PYRO_VI_DATA; raise InputError if they cannot be read."""
    path = folder_file(name, relative)
    try:
        arrays = read_archive(path, keys)
        return [arrays[key] for key in keys]
    except UNREADABLE as error:
        raise damaged(name, path, error) from error


def damaged(name: str, path: Path, error: Exception) -> InputError:
    """Make the error for a file that cannot be read."""
    return InputError(
        f"data set {name!r}: cannot read {path} ({first_line(error)}); replace the file by an intact copy"
    )
