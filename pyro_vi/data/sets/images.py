"""Readers of images: handwritten digits and characters, faces, silhouettes.

Every reader returns a `Raw` of flat images, with values as stored (uint8).
"""

import gzip
import importlib.util
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data.bounded import read_idx
from pyro_vi.data.seeds import split
from pyro_vi.data.sets.raw import Raw, folder_arrays, labelled
from pyro_vi.errors import InputError, UsageError, first_line

MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"


MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
DIGITS = tuple("0123456789")


def digits(
    seed: int, heldout: float | None, *, binarize: bool | None = None, standardize: bool = False, labels: int = False
) -> Raw:
    """Read the digits of scikit-learn.

    Args:
        binarize: redraw each pixel as 0 or 1 in every epoch, by its intensity; by default so, unless ``standardize``.
        standardize: real values with mean 0 and standard deviation 1 in each pixel, without the pixels that never vary.
        labels: give the labels to the model too; a number says how many rows of each class are labelled, the others are −1.
    """
    source = "optical recognition of handwritten digits (Alpaydin and Kaynak 1998, UCI, CC BY 4.0), in scikit-learn"
    values, target = _sklearn_digits()
    kept, rest = split(len(values), 1 / 6 if heldout is None else heldout, seed)
    train, test = values[kept], values[rest]
    if not standardize:
        raw = _intensities(train, test, binarize is not False, 16, (8, 8), source)
    elif binarize:
        raise UsageError("data set 'digits': binarize=True and standardize=True exclude each other; leave one out")
    else:
        varies = train.amin(0) != train.amax(0)
        train, test = train[:, varies].double(), test[:, varies].double()
        loc, scale = train.mean(0), train.std(0, correction=0)
        raw = Raw((train - loc) / scale, (test - loc) / scale, "real", source, standard=(loc, scale))
    return labelled(raw, target[kept], target[rest], DIGITS, labels, seed, "digits")


def mnist(seed: int, heldout: float | None, *, binarize: bool = True, labels: int = False) -> Raw:
    """Read MNIST.

    Args:
        binarize: redraw each pixel as 0 or 1 in every epoch, by its intensity; else intensities from 0 to 1.
        labels: give the labels to the model too; a number says how many rows of each class are labelled, the others are −1.
    """
    images, targets = [_mnist_file(name) for name in MNIST_SHA256][:2], [_mnist_file(name) for name in MNIST_SHA256][2:]
    parts = [_idx(path, "images") for path in images]
    source = "MNIST (LeCun, Cortes and Burges 1998, from NIST data; usually described as CC BY-SA 3.0)"
    raw = _intensities(parts[0], parts[1], binarize, 255, (28, 28), source)
    if labels is False and not all(path.is_file() for path in targets):
        return raw
    known = [_idx(path, "labels") for path in targets]
    if [len(part) for part in known] != [len(part) for part in parts]:
        raise InputError(
            f"data set 'mnist': {len(parts[0])} and {len(parts[1])} images have {len(known[0])} and {len(known[1])} labels; "
            "put the four original files there"
        )
    return labelled(raw, known[0], known[1], DIGITS, labels, seed, "mnist")


def mnist_static(seed: int, heldout: float | None, *, heldout_part: str = "test") -> Raw:
    """Read MNIST in a fixed binarisation.

    Args:
        heldout_part: the part that is held out.
    """
    relative = "mnist_static_binarized/binarized_mnist_packed.npz"
    arrays = folder_arrays("mnist_static", relative, ("train", heldout_part))
    train, test = (torch.from_numpy(np.unpackbits(array, axis=1)) for array in arrays)
    source = "MNIST with Larochelle's fixed binarisation (Salakhutdinov and Murray 2008); no separate licence stated"
    return Raw(train, test, "boolean", source, image_shape=(28, 28))


def omniglot(
    seed: int, heldout: float | None, *, binarize: bool = True, labels: int = False, heldout_part: str = "test"
) -> Raw:
    """Read OMNIGLOT; the labels are the 50 alphabets.

    Args:
        binarize: redraw each pixel as 0 or 1 in every epoch, by its intensity; else intensities from 0 to 1.
        labels: give the labels to the model too; a number says how many rows of each class are labelled, the others are −1.
        heldout_part: the part that is held out.
    """
    keys = ("images", "split", "alphabet", "alphabet_names")
    images, part, alphabet, names = folder_arrays("omniglot", "omniglot/omniglot_28.npz", keys)
    flat = images.reshape(len(images), -1)
    train, test = (part == number for number in (0, {"valid": 1, "test": 2}[heldout_part]))
    # The resizing and the split are this project's, so held-out numbers are not comparable with those on chardata.mat.
    source = "OMNIGLOT (Lake, Salakhutdinov and Tenenbaum 2015, MIT), area-averaged to 28 x 28, own split"
    raw = _intensities(torch.from_numpy(flat[train]), torch.from_numpy(flat[test]), binarize, 255, (28, 28), source)
    known = torch.from_numpy(alphabet.astype(np.int64))
    classes = tuple(map(str, names))
    return labelled(
        raw, known[torch.from_numpy(train)], known[torch.from_numpy(test)], classes, labels, seed, "omniglot"
    )


def frey(seed: int, heldout: float | None, *, binarize: bool = False, heldout_part: str = "test") -> Raw:
    """Read the Frey faces.

    Args:
        binarize: redraw each pixel as 0 or 1 in every epoch, by its intensity; else intensities from 0 to 1.
        heldout_part: the part that is held out.
    """
    keys = ("images", "train_idx", f"{heldout_part}_idx")
    images, *indices = folder_arrays("frey", "frey_faces/frey_faces.npz", keys)
    flat = images.reshape(len(images), -1)
    train, test = (torch.from_numpy(flat[rows]) for rows in indices)
    source = (
        "Frey Faces (B. Frey and S. Roweis; no licence stated), own random split (frames near each other are alike)"
    )
    return _intensities(train, test, binarize, 255, (28, 20), source)


def caltech(
    seed: int, heldout: float | None, *, invert: bool = False, labels: int = False, heldout_part: str = "test"
) -> Raw:
    """Read the Caltech 101 Silhouettes.

    Args:
        invert: 1 on the silhouette, as in much of the literature on VAEs; else 1 on the background, as in the file.
        labels: give the labels to the model too; a number says how many rows of each class are labelled, the others are −1.
        heldout_part: the part that is held out.
    """
    relative = "caltech101_silhouettes/caltech101_silhouettes_28_split1.npz"
    parts = ("train", heldout_part)
    keys = (*parts, *(f"{part}_labels" for part in parts), "classnames")
    *arrays, names = folder_arrays("caltech", relative, keys)
    train, test = (torch.from_numpy(np.unpackbits(array, axis=1) ^ np.uint8(invert)) for array in arrays[:2])
    known = [torch.from_numpy(array.astype(np.int64)) - 1 for array in arrays[2:]]
    source = (
        "Caltech 101 Silhouettes, split 1 (Marlin, Swersky, Chen and de Freitas 2010; no licence stated), "
        f"1 = {'silhouette' if invert else 'background'}"
    )
    raw = Raw(train, test, "boolean", source, image_shape=(28, 28))
    return labelled(raw, known[0], known[1], tuple(map(str, names)), labels, seed, "caltech")


def _sklearn_digits() -> tuple[Tensor, Tensor]:
    """Images and labels of `sklearn.datasets.load_digits`, from its file: to import scikit-learn takes a second."""
    package = importlib.util.find_spec("sklearn")
    path = Path(((package and package.submodule_search_locations) or [""])[0], "datasets", "data", "digits.csv.gz")
    if path.is_file():
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float64)
        data, target = table[:, :-1], table[:, -1].astype(np.int64)
    else:
        from sklearn.datasets import load_digits

        data, target = load_digits(return_X_y=True)
    return torch.from_numpy(data.astype(np.uint8)), torch.from_numpy(target)


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


def _idx(path: Path, what: str) -> Tensor:
    """Read an IDX file: flat images (rows, pixels), or labels (rows,)."""
    try:
        if what == "labels":
            return torch.from_numpy(read_idx(path, 2049, 1))
        values = read_idx(path, 2051, 3)
        if values.shape[1:] != (28, 28):
            raise ValueError(f"its images have {values.shape[1]} x {values.shape[2]} pixels, not 28 x 28")
    except InputError:
        raise
    except Exception as error:  # of any kind: what is in the file decides
        said = f"data set 'mnist': cannot read {path} ({first_line(error)})"
        raise InputError(f"{said}; put the original {path.name} there") from error
    return torch.from_numpy(values.reshape(len(values), 784))
