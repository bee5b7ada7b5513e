"""Readers of series: music and river flow. Series of different length are padded with zeros, beside their lengths."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.files import UNREADABLE
from pyro_vi.data.sets.raw import Raw, RawColumn, damaged, folder_arrays, folder_file
from pyro_vi.data.spec import ColumnSpec

_NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
LOWEST = 21
"""MIDI number of the lowest key of a piano."""


def jsb(seed: int, heldout: float | None, *, heldout_part: str = "test") -> Raw:
    """Read the chorales of Bach as piano rolls: x (steps, 88), 1 for each key that sounds in a quarter note, and the lengths.

    Args:
        heldout_part: the part that is held out.
    """
    parts = ("train", heldout_part)
    keys = tuple(f"{part}_{name}" for part in parts for name in ("roll_packed", "lengths"))
    found = folder_arrays("jsb", "jsb_chorales/jsb_chorales_quarter.npz", keys)
    rolls = [torch.from_numpy(np.unpackbits(found[i], axis=1)) for i in (0, 2)]
    lengths = [torch.from_numpy(found[i].astype(np.int64)) for i in (1, 3)]
    # Both parts have one number of steps, because some guides have numbers for each step.
    steps = max(int(part.max()) for part in lengths)
    train, held = (padded(list(r.split(n.tolist())), steps)[0] for r, n in zip(rolls, lengths, strict=True))
    source = (
        "chorales of J. S. Bach in quarter notes (Boulanger-Lewandowski, Bengio and Vincent 2012, arXiv:1206.6392, and their "
        "split; public domain, no licence of the encoding stated)"
    )
    names = tuple(f"{_NOTES[k % 12]}{k // 12 - 1}" for k in range(LOWEST, LOWEST + 88))
    return Raw(train, held, "boolean", source, features=names, others=(lengths_column(*lengths),))


def nile(seed: int, heldout: float | None, *, standardize: bool = False) -> Raw:
    """Read the flow of the Nile: one series, x of shape (1, 100, 1), in 10^8 cubic metres a year, 1871 to 1970.

    Args:
        standardize: mean 0 and standard deviation 1 over the years.
    """
    path = folder_file("nile", "nile/nile.csv")
    try:
        rows = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        flow = torch.from_numpy(rows[:, 1])
    except (*UNREADABLE, IndexError) as error:
        raise damaged("nile", Path(path), error) from error
    standard = (flow.mean().reshape(1), flow.std(correction=0).reshape(1))
    series = flow.reshape(1, -1, 1)
    source = "annual flow of the Nile at Aswan (Cobb 1978; Balke 1993), from R's datasets (GPL-3)"
    if standardize:
        series = (series - standard[0]) / standard[1]
    return Raw(series, series[:0], "real", source, features=("flow",), standard=standard if standardize else None)


def padded(sequences: list[Tensor], steps: int | None = None) -> tuple[Tensor, Tensor]:
    """Return sequences (length, ...) padded with zeros at their ends, (sequences, steps, ...), and their lengths.

    Args:
        sequences: at least one of them; all have the same shape besides their lengths.
        steps: number of steps, by default the length of the longest sequence.

    Example:
        >>> x, lengths = padded([torch.tensor([1.0, 2.0]), torch.tensor([3.0])])
        >>> x.tolist(), lengths.tolist()
        ([[1.0, 2.0], [3.0, 0.0]], [2, 1])
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    first = sequences[0]
    x = first.new_zeros((len(sequences), int(lengths.max()) if steps is None else steps, *first.shape[1:]))
    for row, sequence in zip(x, sequences, strict=True):
        row[: len(sequence)] = sequence
    return x, lengths


def lengths_column(train: Tensor, heldout: Tensor) -> RawColumn:
    """The column of the lengths of sequences."""
    return RawColumn(ColumnSpec("lengths", (), "nonnegative_integer"), train, heldout)
