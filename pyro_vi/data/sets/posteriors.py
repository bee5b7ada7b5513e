"""Readers of the data of posteriordb's posteriors as batches; the reference draws are in `pyro_vi.data.posteriordb`.

A posterior belongs to all of its data, so nothing is held out.
"""

import torch
from torch import Tensor

from pyro_vi.data import posteriordb
from pyro_vi.data.sets.raw import Raw, RawColumn
from pyro_vi.data.spec import ColumnSpec

_FROM = "posteriordb (BSD 3-clause); reference draws: pyro_vi.data.posteriordb.read"


def eight_schools(seed: int, heldout: float | None) -> Raw:
    """Read the eight schools: the effect of coaching in each, and its known standard error."""
    data = posteriordb.read("eight_schools").data
    return _whole(data["y"], f"eight schools (Rubin 1981), {_FROM}('eight_schools')", "sigma", data["sigma"])


def kidiq(seed: int, heldout: float | None) -> Raw:
    """Read the test scores of children, with the IQ of their mothers, which is not centred, as the one column of x."""
    data = posteriordb.read("kidiq").data
    source = f"test scores of children (Gelman and Hill 2007), {_FROM}('kidiq')"
    return _whole(data["mom_iq"].unsqueeze(1), source, "target", data["kid_score"], ("mom_iq",))


def ark(seed: int, heldout: float | None) -> Raw:
    """Read the autoregression: x has the five values before each value, the last one first; the target is the value."""
    y = posteriordb.read("arK").data["y"]
    past = torch.stack([y[4 - k : -1 - k] for k in range(5)], 1)
    features = tuple(f"lag {k}" for k in range(1, 6))
    return _whole(past, f"simulated autoregression of order 5, {_FROM}('arK')", "target", y[5:], features)


def gauss_mix(seed: int, heldout: float | None) -> Raw:
    """Read the numbers of a mixture of two normals."""
    y = posteriordb.read("gauss_mix").data["y"]
    return Raw(y, y[:0], "real", f"simulated mixture of two normals, {_FROM}('gauss_mix')")


def sblrc(seed: int, heldout: float | None) -> Raw:
    """Read the regression on five correlated columns."""
    data = posteriordb.read("sblrc").data
    features = tuple(f"x{k}" for k in range(1, 6))
    return _whole(data["X"], f"simulated regression, {_FROM}('sblrc')", "target", data["y"], features)


def _whole(x: Tensor, source: str, name: str, column: Tensor, features: tuple[str, ...] = ()) -> Raw:
    described = RawColumn(ColumnSpec(name, (), "real"), column, column[:0])
    return Raw(x, x[:0], "real", source, features=features, others=(described,))
