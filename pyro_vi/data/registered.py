"""The registered data sets: one reader for each, and `DATASETS`, the table of them.

A reader returns a `Raw` with values as stored (uint8 for images). To add a data set, write its reader and add an entry to
`DATASETS`.
"""

import gzip
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.files import UNREADABLE, Array
from pyro_vi.data.seeds import split
from pyro_vi.data.spec import ColumnSpec
from pyro_vi.errors import InputError, UsageError, first_line
from pyro_vi.support import check_options, unknown

MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"


MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
}


_BOOL = (True, False)


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
    probability of a 1. `labels` are those of `Data`; `others` are the further columns of the batch.
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


def _read_digits(seed: int, heldout: float | None, *, binarize: bool | None = None, standardize: bool = False) -> Raw:
    """Read the digits of scikit-learn.

    Args:
        binarize: redraw each pixel as 0 or 1 in every epoch, by its intensity; by default so, unless ``standardize``.
        standardize: real values with mean 0 and standard deviation 1 in each pixel, without the pixels that never vary.
    """
    from sklearn.datasets import load_digits  # imported here because it takes a second

    source = "optical recognition of handwritten digits (Alpaydin and Kaynak 1998, UCI, CC BY 4.0), in scikit-learn"
    values = torch.from_numpy(load_digits().data.astype(np.uint8))
    train, test = (values[rows] for rows in split(len(values), 1 / 6 if heldout is None else heldout, seed))
    if not standardize:
        return _intensities(train, test, binarize is not False, 16, (8, 8), source)
    if binarize:
        raise UsageError("data set 'digits': binarize=True and standardize=True exclude each other; leave one out")
    varies = train.amin(0) != train.amax(0)
    train, test = train[:, varies].double(), test[:, varies].double()
    loc, scale = train.mean(0), train.std(0, correction=0)
    return Raw((train - loc) / scale, (test - loc) / scale, "real", source)


def _read_mnist(seed: int, heldout: float | None, *, binarize: bool = True) -> Raw:
    """Read MNIST.

    Args:
        binarize: redraw each pixel as 0 or 1 in every epoch, by its intensity; else intensities from 0 to 1.
    """
    parts = [_idx_images(_mnist_file(name)) for name in MNIST_SHA256]
    source = "MNIST (LeCun, Cortes and Burges 1998, from NIST data; usually described as CC BY-SA 3.0)"
    return _intensities(parts[0], parts[1], binarize, 255, (28, 28), source)


def _read_mnist_static(seed: int, heldout: float | None, *, heldout_part: str = "test") -> Raw:
    """Read MNIST in a fixed binarisation.

    Args:
        heldout_part: the part that is held out.
    """
    relative = "mnist_static_binarized/binarized_mnist_packed.npz"
    arrays = _folder_arrays("mnist_static", relative, ("train", heldout_part))
    train, test = (torch.from_numpy(np.unpackbits(array, axis=1)) for array in arrays)
    source = "MNIST with Larochelle's fixed binarisation (Salakhutdinov and Murray 2008); no separate licence stated"
    return Raw(train, test, "boolean", source, image_shape=(28, 28))


def _read_omniglot(seed: int, heldout: float | None, *, binarize: bool = True, heldout_part: str = "test") -> Raw:
    """Read OMNIGLOT.

    Args:
        binarize: redraw each pixel as 0 or 1 in every epoch, by its intensity; else intensities from 0 to 1.
        heldout_part: the part that is held out.
    """
    images, part = _folder_arrays("omniglot", "omniglot/omniglot_28.npz", ("images", "split"))
    flat = images.reshape(len(images), -1)
    train, test = (torch.from_numpy(flat[part == number]) for number in (0, {"valid": 1, "test": 2}[heldout_part]))
    # The resizing and the split are this project's, so held-out numbers are not comparable with those on chardata.mat.
    source = "OMNIGLOT (Lake, Salakhutdinov and Tenenbaum 2015, MIT), area-averaged to 28 x 28, own split"
    return _intensities(train, test, binarize, 255, (28, 28), source)


def _intensities(
    train: Tensor, heldout: Tensor, binarize: bool, levels: int, image_shape: tuple[int, int], source: str
) -> Raw:
    support = "boolean" if binarize else "unit_interval"
    return Raw(train, heldout, support, source, levels, binarize, image_shape)


def _mnist_file(name: str) -> Path:
    root = os.environ.get("PYRO_VI_DATA")
    if root and (Path(root) / "mnist").is_dir():
        return Path(root) / "mnist" / name
    import pooch

    try:
        cache = Path(pooch.os_cache("pyro_vi")) / "mnist"
        return Path(pooch.retrieve(MNIST_URL + name, f"sha256:{MNIST_SHA256[name]}", fname=name, path=cache))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong sha256 is a ValueError
        if (response := getattr(error, "response", None)) is not None:
            response.close()  # pooch leaves a refused connection open
        what = f"data set 'mnist': cannot download {MNIST_URL}{name} ({first_line(error)})"
        raise InputError(f"{what}; set PYRO_VI_DATA to a folder that has mnist/{name}") from error


def _idx_images(path: Path) -> Tensor:
    try:
        with gzip.open(path) as file:
            content = file.read()
        magic, *shape = np.frombuffer(content[:16], ">u4").tolist()
        if magic != 2051 or len(shape) != 3:
            raise ValueError("not an IDX file of images")
        pixels = np.frombuffer(content, np.uint8, offset=16).reshape(shape[0], shape[1] * shape[2])
    except UNREADABLE as error:
        what = f"data set 'mnist': cannot read {path} ({first_line(error)})"
        raise InputError(f"{what}; put the original {path.name} there") from error
    return torch.from_numpy(pixels.copy())  # a copy, because torch cannot hold a read-only buffer


def _folder_arrays(name: str, relative: str, keys: tuple[str, ...]) -> list[Array]:
    root = os.environ.get("PYRO_VI_DATA", "")
    path = Path(root, relative)
    if not root or not path.is_file():
        state = f"has no {relative}" if root else "is not set"
        raise InputError(f"data set {name!r}: PYRO_VI_DATA {state}; set it to a folder that has {relative}")
    try:
        # Opened here because np.load leaves a damaged file open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return [arrays[key] for key in keys]
    except UNREADABLE as error:
        what = f"data set {name!r}: cannot read {path} ({first_line(error)})"
        raise InputError(f"{what}; replace the file by an intact copy") from error


@dataclass(frozen=True)
class DataSet:
    """Entry of the table: the reader, called as `read(seed, heldout, **options)`, and the values each option may have.

    `own_split` is True if the data come with a held-out part.
    """

    description: str
    read: Callable[..., Raw]
    options: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    own_split: bool = True


DATASETS: dict[str, DataSet] = {
    "digits": DataSet(
        "1797 handwritten digits, 8 x 8, redrawn as 0/1 each epoch; comes with scikit-learn",
        _read_digits,
        {"binarize": _BOOL, "standardize": _BOOL},
        own_split=False,
    ),
    "mnist": DataSet(
        "70000 handwritten digits, 28 x 28, redrawn as 0/1 each epoch; PYRO_VI_DATA or downloaded (11 MB)",
        _read_mnist,
        {"binarize": _BOOL},
    ),
    "mnist_static": DataSet(
        "MNIST with Larochelle's fixed binarisation, 28 x 28; from PYRO_VI_DATA",
        _read_mnist_static,
        {"heldout_part": ("test", "valid")},
    ),
    "omniglot": DataSet(
        "31115 or 24345 drawings of characters, 28 x 28, redrawn as 0/1 each epoch; from PYRO_VI_DATA",
        _read_omniglot,
        {"binarize": _BOOL, "heldout_part": ("test", "valid")},
    ),
}


def find(name: str, options: Mapping[str, object]) -> DataSet:
    """Return an entry of `DATASETS`, after a check of the options' names and values.

    Raises UsageError for an unknown name or option, or a value that the option does not allow.

    >>> find("digits", {"binarize": False}).own_split
    False
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    known = DATASETS[name].options
    check_options(f"data set {name!r}", options, known)
    for option, value in options.items():
        if not any(type(value) is type(allowed) and value == allowed for allowed in known[option]):
            allowed_values = " or ".join(repr(allowed) for allowed in known[option])
            raise UsageError(f"data set {name!r}: {option}={value!r} is not allowed; use {allowed_values}")
    return DATASETS[name]
