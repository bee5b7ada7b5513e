"""Readers of tables that come with scikit-learn, and of points that it draws: real columns with names.

A class is a label, kept apart unless it is asked for; a number that depends on the columns is a target.
"""

from typing import Any

import torch
from torch import Tensor

from pyro_vi.data.seeds import split
from pyro_vi.data.sets.raw import Raw, RawColumn, labelled
from pyro_vi.data.spec import ColumnSpec
from pyro_vi.errors import InputError

HELDOUT = 0.1


def wine(seed: int, heldout: float | None, *, standardize: bool = False, labels: int = False) -> Raw:
    """Read the wines: 13 measurements of each; the labels are the three cultivars.

    Args:
        standardize: mean 0 and standard deviation 1 in each column of the training rows.
        labels: give the labels to the model too; a number says how many rows of each class are labelled, the others are −1.
    """
    from sklearn.datasets import load_wine

    source = "chemical analysis of wines (Forina and Aeberhard 1991, UCI, CC BY 4.0), in scikit-learn"
    return _classified("wine", load_wine(), source, seed, heldout, standardize, labels)


def breast_cancer(seed: int, heldout: float | None, *, standardize: bool = False, labels: int = False) -> Raw:
    """Read the breast tumours: 30 measurements of cell nuclei of each; the labels are malignant and benign.

    Args:
        standardize: mean 0 and standard deviation 1 in each column of the training rows.
        labels: give the labels to the model too; a number says how many rows of each class are labelled, the others are −1.
    """
    from sklearn.datasets import load_breast_cancer

    source = (
        "Wisconsin diagnostic breast cancer (Wolberg, Street and Mangasarian 1995, UCI, CC BY 4.0), in scikit-learn"
    )
    return _classified("breast_cancer", load_breast_cancer(), source, seed, heldout, standardize, labels)


def iris(seed: int, heldout: float | None, *, standardize: bool = False, labels: int = False) -> Raw:
    """Read the irises: four lengths of each flower; the labels are the three species.

    Args:
        standardize: mean 0 and standard deviation 1 in each column of the training rows.
        labels: give the labels to the model too; a number says how many rows of each class are labelled, the others are −1.
    """
    from sklearn.datasets import load_iris

    # scikit-learn says that two of its rows differ from UCI's, and agree with Fisher's paper.
    source = "irises of Anderson (Fisher 1936; UCI, CC BY 4.0, two rows as in the paper), in scikit-learn"
    return _classified("iris", load_iris(), source, seed, heldout, standardize, labels)


def diabetes(seed: int, heldout: float | None, *, standardize: bool = False, target: bool = False) -> Raw:
    """Read the diabetes patients: ten measurements of each.

    Args:
        standardize: mean 0 and standard deviation 1 in each column of the training rows; the target keeps its unit.
        target: give the progression of the disease after a year, 25 to 346, to the model too.
    """
    from sklearn.datasets import load_diabetes

    source = "442 diabetes patients (Efron, Hastie, Johnstone and Tibshirani 2004; no licence stated), in scikit-learn"
    found = load_diabetes(scaled=False)
    kept, rest = split(len(found.data), HELDOUT if heldout is None else heldout, seed)
    values, y = torch.from_numpy(found.data), torch.from_numpy(found.target).double()
    raw = _table("diabetes", values[kept], values[rest], tuple(found.feature_names), source, standardize)
    if not target:
        return raw
    column = RawColumn(ColumnSpec("target", (), "real"), y[kept], y[rest])
    return Raw(**{**vars(raw), "others": (column,)})


def moons(
    seed: int,
    heldout: float | None,
    *,
    rows: int = 1000,
    noise: float = 0.1,
    standardize: bool = False,
    labels: int = False,
) -> Raw:
    """Draw points on two half circles in the plane, with noise; the labels are the half circles.

    Args:
        rows: number of points.
        noise: standard deviation of the noise.
        standardize: mean 0 and standard deviation 1 in each column of the training rows.
        labels: give the labels to the model too; a number says how many rows of each class are labelled, the others are −1.
    """
    from sklearn.datasets import make_moons

    points, half = make_moons(rows, noise=noise, random_state=seed)
    kept, rest = split(rows, HELDOUT if heldout is None else heldout, seed)
    values, known = torch.from_numpy(points), torch.from_numpy(half)
    source = f"two half circles with noise {noise}, drawn by scikit-learn with seed {seed}"
    raw = _table("moons", values[kept], values[rest], ("x", "y"), source, standardize)
    return labelled(raw, known[kept], known[rest], ("upper", "lower"), labels, seed, "moons")


def _classified(
    name: str, found: Any, source: str, seed: int, heldout: float | None, standardize: bool, labels: int
) -> Raw:
    kept, rest = split(len(found.data), HELDOUT if heldout is None else heldout, seed)
    values, known = torch.from_numpy(found.data), torch.from_numpy(found.target)
    raw = _table(name, values[kept], values[rest], tuple(found.feature_names), source, standardize)
    return labelled(raw, known[kept], known[rest], tuple(map(str, found.target_names)), labels, seed, name)


def _table(name: str, train: Tensor, heldout: Tensor, features: tuple[str, ...], source: str, standardize: bool) -> Raw:
    features = tuple(map(str, features))
    if not standardize:
        return Raw(train, heldout, "real", source, features=features)
    standard = moments(train, name, features)
    train, heldout = ((part - standard[0]) / standard[1] for part in (train, heldout))
    return Raw(train, heldout, "real", source, features=features, standard=standard)


def moments(values: Tensor, name: str, features: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column of (rows, columns), in float64.

    Raises:
        InputError: a column never varies.

    Example:
        >>> moments(torch.tensor([[1.0], [3.0]]), "x", ())
        (tensor([2.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    values = values.double()
    loc, scale = values.mean(0), values.std(0, correction=0)
    # A column of equal numbers may have a deviation of rounding errors.
    fixed = (values.amax(0) == values.amin(0)).reshape(-1).nonzero().flatten().tolist()
    if fixed:
        which = repr(features[fixed[0]]) if features else f"{fixed[0]} (counted from 0)"
        raise InputError(
            f"{name}: column {which} has one value in all training rows and cannot be standardised; leave it out"
        )
    return loc, scale
