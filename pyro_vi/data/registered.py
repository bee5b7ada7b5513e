"""The table of the registered data sets, `DATASETS`; `find` looks up a name and checks its options.

To add a data set, write its reader in `pyro_vi.data.sets`, and add an entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pyro_vi.data.sets import images, posteriors, robot, series, tables, words
from pyro_vi.data.sets.raw import LABELS, Raw
from pyro_vi.errors import UsageError
from pyro_vi.support import check_options, unknown

Values = tuple[object, ...]

_BOOL: Values = (True, False)
_TWO_PARTS: Values = ("test", "valid")
_TABLE: dict[str, Values] = {"standardize": _BOOL, "labels": LABELS}


@dataclass(frozen=True)
class DataSet:
    """Entry of the table: the reader, called as `read(seed, heldout, **options)`, and the values each option may have.

    Among these values, `int` stands for any whole number of at least 1, and `float` for any number of at least 0. `own_split`
    is True if the data come with a held-out part; `whole` is True if nothing of them is held out.
    """

    description: str
    read: Callable[..., Raw]
    options: Mapping[str, Values] = field(default_factory=dict)
    own_split: bool = True
    whole: bool = False


DATASETS: dict[str, DataSet] = {
    "digits": DataSet(
        "1797 handwritten digits, 8 x 8, redrawn as 0/1 each epoch; comes with scikit-learn",
        images.digits,
        {"binarize": _BOOL, **_TABLE},
        own_split=False,
    ),
    "mnist": DataSet(
        "70000 handwritten digits, 28 x 28, redrawn as 0/1 each epoch; PYRO_VI_DATA or downloaded (11 MB)",
        images.mnist,
        {"binarize": _BOOL, "labels": LABELS},
    ),
    "mnist_static": DataSet(
        "MNIST with Larochelle's fixed binarisation, 28 x 28; from PYRO_VI_DATA",
        images.mnist_static,
        {"heldout_part": _TWO_PARTS},
    ),
    "omniglot": DataSet(
        "31115 or 24345 drawings of characters, 28 x 28, redrawn as 0/1 each epoch; from PYRO_VI_DATA",
        images.omniglot,
        {"binarize": _BOOL, "labels": LABELS, "heldout_part": _TWO_PARTS},
    ),
    "frey": DataSet(
        "1765 frames of a face, 28 x 20, intensities from 0 to 1; from PYRO_VI_DATA",
        images.frey,
        {"binarize": _BOOL, "heldout_part": _TWO_PARTS},
    ),
    "caltech": DataSet(
        "6364 or 6407 silhouettes of 101 kinds of things, 28 x 28, 0/1; from PYRO_VI_DATA",
        images.caltech,
        {"invert": _BOOL, "labels": LABELS, "heldout_part": _TWO_PARTS},
    ),
    "wine": DataSet("178 wines, 13 measurements; comes with scikit-learn", tables.wine, _TABLE, own_split=False),
    "breast_cancer": DataSet(
        "569 tumours, 30 measurements; comes with scikit-learn", tables.breast_cancer, _TABLE, own_split=False
    ),
    "iris": DataSet("150 irises, 4 lengths; comes with scikit-learn", tables.iris, _TABLE, own_split=False),
    "diabetes": DataSet(
        "442 patients, 10 measurements, and a target; comes with scikit-learn",
        tables.diabetes,
        {"standardize": _BOOL, "target": _BOOL},
        own_split=False,
    ),
    "moons": DataSet(
        "points in the plane on two half circles with noise, drawn with the seed",
        tables.moons,
        {"rows": (int,), "noise": (float,), **_TABLE},
        own_split=False,
    ),
    "jsb": DataSet(
        "305 or 306 chorales of Bach, 88 keys in up to 160 steps, with lengths; from PYRO_VI_DATA",
        series.jsb,
        {"heldout_part": _TWO_PARTS},
    ),
    "robot": DataSet(
        "trajectories of a two-link arm, with lengths, simulated with the seed",
        robot.robot,
        {"sequences": (int,), "steps": (int,), "noise": (float,), "observe": robot.OBSERVED},
        own_split=False,
    ),
    "nile": DataSet(
        "one series: the flow of the Nile in 100 years; from PYRO_VI_DATA",
        series.nile,
        {"standardize": _BOOL},
        whole=True,
    ),
    "20ng": DataSet(
        "18745 or 11314 newsgroup posts, counts of 3072 words; from PYRO_VI_DATA",
        words.newsgroups,
        {"heldout_part": (*_TWO_PARTS, "test_h1", "test_h2")},
    ),
    "eight_schools": DataSet(
        "effects in 8 schools with known errors, a posterior with reference draws; from PYRO_VI_DATA",
        posteriors.eight_schools,
        whole=True,
    ),
    "kidiq": DataSet(
        "434 test scores on the mother's IQ, a posterior with reference draws; from PYRO_VI_DATA",
        posteriors.kidiq,
        whole=True,
    ),
    "arK": DataSet(
        "195 values on the five before each, a posterior with reference draws; from PYRO_VI_DATA",
        posteriors.ark,
        whole=True,
    ),
    "gauss_mix": DataSet(
        "1000 numbers from two normals, a posterior with reference draws; from PYRO_VI_DATA",
        posteriors.gauss_mix,
        whole=True,
    ),
    "sblrc": DataSet(
        "100 rows of a regression on 5 columns, a posterior with reference draws; from PYRO_VI_DATA",
        posteriors.sblrc,
        whole=True,
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
        if not any(_allows(allowed, value) for allowed in known[option]):
            raise UsageError(f"data set {name!r}: {option}={value!r} is not allowed; use {said(known[option])}")
    return DATASETS[name]


def said(values: Values) -> str:
    """The values of an option in words.

    >>> said((True, int))
    'True or a whole number of at least 1'
    """
    words = {int: "a whole number of at least 1", float: "a number of at least 0"}
    return " or ".join(words[v] if isinstance(v, type) else repr(v) for v in values)


def _allows(allowed: object, value: object) -> bool:
    if allowed is int:
        return type(value) is int and value >= 1
    if allowed is float:
        return type(value) in (int, float) and isinstance(value, int | float) and 0 <= value < float("inf")
    return type(value) is type(allowed) and value == allowed
