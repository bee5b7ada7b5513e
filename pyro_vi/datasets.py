"""Where data come from: the registered data sets, and the files that people bring.

Roles, in the order data flow:

* `generator` and `split`: random numbers that depend on (seed, epoch, purpose) only, and the split made with them.
* `Raw`: what the reader of a data set returns, values as stored (uint8 for pictures).
* one `_read_...` function per data set, and `DATASETS`, the table of them.
* one `_..._file` function per kind of file, `FILES`, the table of them, and `read_file`.

`pyro_vi.data` makes batches of floats out of either. To add a data set, write its reader and an entry of `DATASETS`.
"""

import gzip
import importlib.util
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vi.errors import InputError, UsageError, first_line
from pyro_vi.specs import check_options, unknown

Array = np.ndarray[Any, np.dtype[Any]]

MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
}
_BOOL = (True, False)
_UNREADABLE = (ValueError, OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile)


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each (seed, epoch, purpose); the global one is left alone.

    >>> a, b = generator(0, 1, "train"), generator(0, 1, "train")
    >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
    True
    """
    if seed < 0 or epoch < 0:
        raise InputError(f"the seed ({seed}) and the epoch ({epoch}) must not be negative; use whole numbers from 0")
    # crc32, as Python's own hash of a string differs from process to process.
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch, zlib.crc32(purpose.encode())))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def split(rows: int, heldout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers of the training and the held-out part: a seeded permutation, each part in the data's own order.

    The held-out part has floor(rows · heldout) rows; where heldout > 0, both parts have at least one row.

    Raises InputError unless 0 <= heldout < 1.

    >>> [len(part) for part in split(1797, 1 / 6, seed=0)]
    [1498, 299]
    """
    if not 0 <= heldout < 1:
        raise InputError(f"heldout={heldout} is not a fraction; use a number from 0 (nothing held out) to below 1")
    count = min(rows - 1, max(1, int(rows * heldout + 1e-9))) if heldout else 0
    order = torch.randperm(rows, generator=generator(seed, 0, "split"))
    return order[count:].sort().values, order[:count].sort().values


@dataclass(frozen=True)
class Raw:
    """What a reader returns: both parts as (rows, *event_shape), as stored.

    Where `levels` is set, a stored integer v stands for the intensity v / levels; with `binarize` for a 1 that has that
    probability.
    """

    train: Tensor
    heldout: Tensor
    support: str
    source: str
    levels: int | None = None
    binarize: bool = False
    image_shape: tuple[int, int] | None = None


# ---- the registered data sets


def _read_digits(seed: int, heldout: float | None, *, binarize: bool | None = None, standardize: bool = False) -> Raw:
    from sklearn.datasets import load_digits  # takes a second to import: only where it is needed

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
    parts = [_idx_images(_mnist_file(name)) for name in MNIST_SHA256]
    source = "MNIST (LeCun, Cortes and Burges 1998, from NIST data; usually described as CC BY-SA 3.0)"
    return _intensities(parts[0], parts[1], binarize, 255, (28, 28), source)


def _read_mnist_static(seed: int, heldout: float | None, *, heldout_part: str = "test") -> Raw:
    relative = "mnist_static_binarized/binarized_mnist_packed.npz"
    arrays = _folder_arrays("mnist_static", relative, ("train", heldout_part))
    train, test = (torch.from_numpy(np.unpackbits(array, axis=1)) for array in arrays)
    source = "MNIST with Larochelle's fixed binarisation (Salakhutdinov and Murray 2008); no separate licence stated"
    return Raw(train, test, "boolean", source, image_shape=(28, 28))


def _read_omniglot(seed: int, heldout: float | None, *, binarize: bool = True, heldout_part: str = "test") -> Raw:
    images, part = _folder_arrays("omniglot", "omniglot/omniglot_28.npz", ("images", "split"))
    flat = images.reshape(len(images), -1)
    train, test = (torch.from_numpy(flat[part == number]) for number in (0, {"valid": 1, "test": 2}[heldout_part]))
    # The resizing and the split are this project's: held-out numbers do not compare with those on chardata.mat.
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
    except _UNREADABLE as error:
        what = f"data set 'mnist': cannot read {path} ({first_line(error)})"
        raise InputError(f"{what}; put the original {path.name} there") from error
    return torch.from_numpy(pixels.copy())  # a copy, as torch cannot hold a read-only buffer


def _folder_arrays(name: str, relative: str, keys: tuple[str, ...]) -> list[Array]:
    root = os.environ.get("PYRO_VI_DATA", "")
    path = Path(root, relative)
    if not root or not path.is_file():
        now = f"has no {relative} now" if root else "is not set"
        raise InputError(f"data set {name!r}: PYRO_VI_DATA {now}; set it to a folder that has {relative}")
    try:
        # Opened here, as np.load leaves a damaged file open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return [arrays[key] for key in keys]
    except _UNREADABLE as error:
        what = f"data set {name!r}: cannot read {path} ({first_line(error)})"
        raise InputError(f"{what}; replace the file by an intact copy") from error


@dataclass(frozen=True)
class DataSet:
    """An entry of the table: `read(seed, heldout, **options)`, and which values each option may have."""

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
    """The entry of `DATASETS`, its options checked by name and value.

    Raises UsageError for a name, an option or a value that there is not.

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
            raise UsageError(f"data set {name!r}: {option}={value!r} is not possible; use {allowed_values}")
    return DATASETS[name]


# ---- files that people bring


@dataclass(frozen=True)
class Columns:
    """Labelled arrays of one file, each (rows, ...), and the test part where the file has one."""

    train: dict[str, Array]
    test: Array | None = None
    note: str = ""


def read_file(path: Path) -> Columns:
    """Read a .npy, .npz, .csv or .parquet file; pickled objects are refused.

    Raises InputError where the file is missing, a folder, of another kind, unreadable, or not numeric.
    """
    suffix = path.suffix.lower()
    if os.path.isdir(path):
        raise InputError(f"{str(path)!r} is a folder; name one file in it: {', '.join(FILES)}")
    if suffix not in FILES:
        raise InputError(f"cannot read {str(path)!r}: unknown kind of file {suffix!r}; use one of {', '.join(FILES)}")
    if not os.path.isfile(path):
        raise InputError(f"there is no file {str(path)!r}; check the path (relative paths start at {Path.cwd()})")
    try:
        return FILES[suffix](path)
    except InputError:
        raise
    except _UNREADABLE as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"{path.name} holds Python objects, or is damaged, and is not read; save plain numbers with numpy.save"
            ) from error
        raise InputError(f"cannot read {path.name} ({first_line(error)}); save it again as {suffix}") from error


def _npy_file(path: Path) -> Columns:
    with open(path, "rb") as stream:
        array = np.load(stream, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise InputError(f"{path.name} holds several arrays; rename it to {path.stem}.npz")
    return Columns({"the array": array})


def _npz_file(path: Path) -> Columns:
    with open(path, "rb") as stream:
        file = np.load(stream, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise InputError(f"{path.name} holds one plain array; rename it to {path.stem}.npy")
        arrays = {name: file[name] for name in file.files}
    if not arrays:
        raise InputError(f"{path.name} holds no array; save at least one with numpy.savez")
    if not {"train", "test"} <= set(arrays):
        return Columns({repr(name): array for name, array in arrays.items()})
    others = ", ".join(name for name in arrays if name not in ("train", "test"))
    note = f" (arrays 'train' and 'test'; left out: {others})" if others else ""
    return Columns({"'train'": arrays["train"]}, arrays["test"], note)


def _csv_file(path: Path) -> Columns:
    import pandas as pd

    kind: dict[str, Any] = {"encoding": "utf-8-sig", "skipinitialspace": True}
    # Two rows, as that refuses a second one longer than the header; pandas would take its first cell for an index.
    first = pd.read_csv(path, header=None, nrows=2, dtype=str, **kind).iloc[0]
    is_name = pd.to_numeric(first, errors="coerce").isna() & first.notna() & ~first.str.lower().isin(["true", "false"])
    # A table written from an unnamed array is headed 0,1,2,...: not a datum.
    counts = len(first) > 2 and first.tolist() == [str(number) for number in range(len(first))]
    has_header = counts or bool(is_name.any())
    if has_header and bool(first.isna().any()):
        # What pandas writes by default; taken as data, the row numbers would be fitted silently.
        raise InputError(f"{path.name}: a column has no name (row numbers?); name it, or save with index=False")
    return _frame(path, pd.read_csv(path, header=0 if has_header else None, low_memory=False, **kind))


def _parquet_file(path: Path) -> Columns:
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"reading {path.name} needs pyarrow; install it with: pip install 'pyro-vi[parquet]'")
    import pandas as pd
    import pyarrow

    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error
    return _frame(path, frame)


def _frame(path: Path, frame: Any) -> Columns:
    from pandas.api import types

    if not frame.size:
        raise InputError(f"{path.name} holds no numbers; save at least 2 rows of them")
    for name, column in frame.items():
        if not types.is_numeric_dtype(column.dtype) or types.is_complex_dtype(column.dtype):
            raise InputError(
                f"{path.name}: column {str(name)!r} is not numeric; leave it out or code it as numbers "
                "(cells apart by commas, decimal points)"
            )
    values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    whole = all(types.is_integer_dtype(dtype) or types.is_bool_dtype(dtype) for dtype in frame.dtypes)
    return Columns({"the table": values.astype(np.int64) if whole and np.isfinite(values).all() else values})


FILES: dict[str, Callable[[Path], Columns]] = {
    ".npy": _npy_file,
    ".npz": _npz_file,
    ".csv": _csv_file,
    ".parquet": _parquet_file,
}
