"""Descriptions of data, from which models are built.

* `DataSpec` describes one datum (shape, support, dtype), with a `ColumnSpec` for each further column of the batch. New values
  are checked against it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vi.data.columns import check_finite, count_and_row
from pyro_vi.errors import InputError

_ALLOWED = {
    "boolean": "only 0 and 1",
    "unit_interval": "0 to 1",
    "nonnegative_integer": "whole numbers from 0",
    "real": "any finite number",
}


@dataclass(frozen=True)
class ColumnSpec:
    """Description of a further column of a batch: what a row has besides the datum itself.

    Attributes:
        name: "label", "target", "lengths" or "group"; of other columns, their name, or "column 2" and so on.
        event_shape: shape of one value, without the dimension of the rows.
        support: "boolean", "nonnegative_integer", "real", or "class": whole numbers below the number of classes, and −1 where
            the class is not known.
        classes: names of the values of a column of whole numbers, by value; empty where they are too many.

    >>> ColumnSpec("label", (), "class", ("no", "yes")).classes[1]
    'yes'
    """

    name: str
    event_shape: tuple[int, ...]
    support: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSpec:
    """Description of one datum: of the first column, and of the further columns of a batch.

    Attributes:
        name: name of the data set in messages and reports.
        num_data: number of training data.
        event_shape: shape of one datum, without the dimension of the rows.
        support: "boolean", "unit_interval", "nonnegative_integer" or "real".
        dtype: floating dtype of the values.
        source: origin and licence, in one line.
        image_shape: (height, width) if a datum is an image, flat or not.
        features: names of the columns of a table, or of the words of a vocabulary; empty if they have no names.
        others: a description of each further column of the batch.
        levels: L, if values from 0 to 1 are whole numbers over L.

    >>> DataSpec("array", 100, (3,), "real", torch.float32, "an array").check(torch.zeros(5, 3))
    """

    name: str
    num_data: int
    event_shape: tuple[int, ...]
    support: str
    dtype: torch.dtype
    source: str
    image_shape: tuple[int, int] | None = None
    features: tuple[str, ...] = ()
    others: tuple[ColumnSpec, ...] = ()
    levels: int | None = None

    def check(self, values: Tensor) -> None:
        """Check that values, (rows, *event_shape), could be data of this kind.

        Raises InputError for another shape, for NaN or infinity, and for values outside the support.
        """
        if not values.ndim or tuple(values.shape[1:]) != self.event_shape:
            wanted = ("rows", *self.event_shape)
            raise InputError(
                f"{self.name}: values have shape {tuple(values.shape)}, not ({', '.join(map(str, wanted))}); "
                "give rows like those of the training data"
            )
        check_finite(values, self.name)
        if self.support == "real":
            return
        if self.support == "boolean":
            outside = (values != 0) & (values != 1)
        elif self.support == "unit_interval":
            outside = (values < 0) | (values > 1)
        else:
            outside = (values < 0) | (values != values.floor() if values.is_floating_point() else False)
        if outside.any():
            raise InputError(
                f"{self.name}: {count_and_row(outside)} outside the support {self.support!r} "
                f"({_ALLOWED[self.support]}); scale or encode the values like the training data"
            )
