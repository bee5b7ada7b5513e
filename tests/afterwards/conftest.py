"""A fit whose posterior, evidence and decoder have a closed form, in memory and in a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from catalogue import columns
from closed_forms import PPCA

import pyro_vi
from pyro_vi import OpenedRun, Run


@pytest.fixture(scope="session")
def run() -> Run:
    """In float64, of an array: 54 rows are fitted, 6 held out."""
    options = {"steps": 12, "lr": 0.05, "seed": 3, "compile": False, "progress": False}
    return pyro_vi.fit(PPCA, "exact", columns(60) @ torch.diag(torch.tensor([3.0, 1.0, 0.5]).double()), **options)


@pytest.fixture(scope="session")
def opened(run: Run) -> OpenedRun:
    return pyro_vi.open(run)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit of a file beside it, with new rows in another file."""
    place = tmp_path_factory.mktemp("place")
    np.save(place / "data.npy", columns(60).numpy())
    np.save(place / "new.npy", columns(41, seed=1).numpy())
    options = {"steps": 4, "seed": 3, "compile": False, "progress": False, "out": place / "run"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        pyro_vi.fit(PPCA, "exact", "data.npy", **options)
    return place / "run"
