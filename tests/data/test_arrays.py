"""The description of a person's own columns: labels, targets, lengths and groups, and what is an image."""

from typing import Any

import numpy as np
import pytest
import torch

from pyro_vi.data import ColumnSpec, load

X, SERIES = torch.randn(12, 3), torch.randn(12, 5, 2)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ((X, torch.arange(12) % 3), ColumnSpec("label", (), "nonnegative_integer", ("0", "1", "2"))),
        ((X, torch.arange(12) % 3 - 1), ColumnSpec("label", (), "class", ("0", "1"))),
        ((X, torch.arange(12) % 2 == 0), ColumnSpec("label", (), "boolean", ("0", "1"))),
        ((X, torch.arange(12) * 100), ColumnSpec("label", (), "nonnegative_integer")),
        ((X, torch.randn(12)), ColumnSpec("target", (), "real")),
        ((X, torch.randn(12, 2)), ColumnSpec("column 2", (2,), "real")),
        ((SERIES, torch.arange(12) % 5 + 1), ColumnSpec("lengths", (), "nonnegative_integer")),
        ((SERIES, torch.arange(12) % 4 + 1), ColumnSpec("label", (), "nonnegative_integer", ("0", "1", "2", "3", "4"))),
        ({"x": X, "kind": torch.arange(12) % 2}, ColumnSpec("kind", (), "boolean", ("0", "1"))),
    ],
)
def test_further_columns_are_described(data: Any, wanted: ColumnSpec) -> None:
    found = load(data)
    assert found.spec.others == (wanted,)
    assert found.to(dtype=torch.float64).spec.others == (wanted,)
    assert found.labels is None


def test_a_third_column_of_whole_numbers_is_a_group() -> None:
    others = load((X, torch.randn(12), torch.arange(12) % 2)).spec.others
    assert [column.name for column in others] == ["target", "group"]


@pytest.mark.parametrize(
    ("shape", "image"), [((28, 20), (28, 20)), ((3, 8, 9), (8, 9)), ((8, 7), None), ((5, 8, 8), None), ((64,), None)]
)
def test_images_are_known_by_their_shape(shape: tuple[int, ...], image: tuple[int, int] | None) -> None:
    assert load(np.zeros((4, *shape))).spec.image_shape == image


def test_a_sequence_with_lengths_is_no_image() -> None:
    lengths = torch.tensor([9, 3, 4, 9])
    assert load((torch.zeros(4, 9, 8), lengths)).spec.image_shape is None
