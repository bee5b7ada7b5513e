"""The reader of word counts."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.files import UNREADABLE
from pyro_vi.data.sets.raw import Raw, damaged, folder_arrays, folder_file

_FOLDER = "20newsgroups_bow"


def newsgroups(seed: int, heldout: float | None, *, heldout_part: str = "test") -> Raw:
    """Read the 20 Newsgroups: how often each of 3072 words occurs in a document; ``features`` are the words.

    Args:
        heldout_part: the part that is held out: "test", "valid", or the halves "test_h1" and "test_h2" of the test documents,
            for document completion: topics from one half, the perplexity of the other.
    """
    words = _vocabulary(folder_file("20ng", f"{_FOLDER}/vocab.txt"))
    train, held = (_dense(part, len(words)) for part in ("train", heldout_part))
    source = (
        "20 Newsgroups as word counts, 3072 words (Dieng, Ruiz and Blei 2020, arXiv:1907.04907, MIT; "
        "Usenet articles of 1993 without a stated licence)"
    )
    return Raw(train, held, "nonnegative_integer", source, features=words)


def _vocabulary(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").split())
    except UNREADABLE as error:
        raise damaged("20ng", path, error) from error


def _dense(part: str, words: int) -> Tensor:
    """The counts of a part, (documents, words), as int16: 69 MB for the training documents."""
    relative = f"{_FOLDER}/20ng_bow.npz"
    keys = tuple(f"{part}_{name}" for name in ("indptr", "indices", "counts"))
    starts, indices, counts = folder_arrays("20ng", relative, keys)
    path = folder_file("20ng", relative)
    try:
        dense = np.zeros((len(starts) - 1, words), np.int16)
        dense[np.repeat(np.arange(len(dense)), np.diff(starts)), indices] = counts
    except (IndexError, ValueError) as error:
        raise damaged("20ng", path, error) from error
    return torch.from_numpy(dense)
