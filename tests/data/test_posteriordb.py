"""The five posteriors: their data, their reference draws, and the data sets that are made of them."""

import os
from pathlib import Path

import pytest
import torch
from data_toys import message

from pyro_vi.data import posteriordb
from pyro_vi.data.loading import load
from pyro_vi.errors import UsageError

needs_folder = pytest.mark.skipif("PYRO_VI_DATA" not in os.environ, reason="PYRO_VI_DATA is not set")


@needs_folder
@pytest.mark.parametrize(
    ("name", "size"), [("eight_schools", 10), ("kidiq", 3), ("arK", 7), ("gauss_mix", 5), ("sblrc", 6)]
)
def test_the_summary_is_that_of_the_draws(name: str, size: int) -> None:
    found = posteriordb.read(name)
    assert found.draws.shape == (10, 1000, size)
    assert len(found.names) == size
    flat = found.draws.flatten(0, 1)
    torch.testing.assert_close(found.mean, flat.mean(0))
    torch.testing.assert_close(found.sd, flat.std(0))
    torch.testing.assert_close(found.covariance, flat.mT.cov())
    data = load(name, dtype=torch.float64)
    assert data.num_heldout == 0
    assert "posteriordb" in data.spec.source


@needs_folder
def test_least_squares_on_the_data_sets_gives_the_means_of_the_draws() -> None:
    """The priors are flat, or nearly so: least squares is within a tenth of a standard deviation of the posterior mean."""
    for name, intercept in (("kidiq", True), ("arK", True), ("sblrc", False)):
        x, y = load(name, dtype=torch.float64).train()
        x = torch.cat([torch.ones(len(x), 1).double(), x], 1) if intercept else x
        found, reference = torch.linalg.lstsq(x, y.unsqueeze(1)).solution[:, 0], posteriordb.read(name)
        size = x.shape[1]
        assert ((found - reference.mean[:size]) / reference.sd[:size]).abs().max() < 0.1


def test_refused_posteriors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "no posterior named 'kidq'; did you mean 'kidiq'?"
    assert message(posteriordb.read, "kidq", error=UsageError).startswith(text)
    monkeypatch.setenv("PYRO_VI_DATA", str(tmp_path))
    relative = "posteriordb/kidiq-kidscore_momiq/reference_draws.npz"
    text = f"data set 'kidiq': PYRO_VI_DATA has no {relative}; set it to a folder that has {relative}"
    assert message(posteriordb.read, "kidiq") == message(load, "kidiq") == text
