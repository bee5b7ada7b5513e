"""Columns in lists and dictionaries."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vi


@pytest.mark.parametrize("given", [[torch.arange(6.0)], ({"x": torch.arange(6.0)},)], ids=["list", "dictionary"])
def test_columns_inside_of_an_argument_have_rows(given):
    """One datum a row: 6 rows, and the log-likelihood of the mean 2.5 under N(2.5, 1), per datum."""

    def model(held):
        x = held["x"] if isinstance(held, dict) else held[0]
        mean = pyro.param("mean", torch.tensor(2.5))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    run = pyro_vi.fit(model, lambda held: None, given, elbo="trace", heldout=0.0, steps=1, lr=1e-9, progress=False)
    assert run.data.spec.num_data == 6
    assert run.history[0]["loss"] == pytest.approx(-float(dist.Normal(2.5, 1.0).log_prob(torch.arange(6.0)).mean()))
