"""A fit that fails says at which step, and which parameter, site or datum is to blame."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, conjugate_model, marked, number, scalars, slope
from small_fits import (
    LINEAR,
    nothing,
)
from torch import Tensor

from pyro_vi import fit
from pyro_vi.data.loading import load
from pyro_vi.errors import FitError
from pyro_vi.fitting.failures import _finite


@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
def test_a_loss_that_is_not_finite_names_step_batch_site_and_datum(elbo, tmp_path):
    values = scalars(60)
    values[37] = 99.0
    data = load(values, heldout=0.0)
    rows = [index.tolist() for index, _ in data.batches(0, 10)]
    batch = next(i for i, index in enumerate(rows) if 37 in index)
    assert batch > 0
    with pytest.raises(FitError) as caught:
        fit(marked, slope, data, elbo=elbo, steps=6, batch_size=10, out=tmp_path / "run", progress=False)
    text = str(caught.value)
    assert f"the loss is nan at step {batch + 1} (epoch 0, batch {batch})" in text
    assert "log p of site 'x' is not finite for data 37;" in text
    assert "\n" not in text
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)  # nothing that was done is lost
    assert state["position"]["step"] == batch
    assert all(bool(value.isfinite().all()) for value in state["pair"].values())


def test_a_guide_density_that_is_not_finite_is_named_too():
    def guide(x: Tensor) -> None:
        a = pyro.param("a", number(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a * x, torch.where(x > 50, math.inf, 1.0)))

    values = scalars(8)
    values[3] = 99.0
    with pytest.raises(FitError, match=r"at step 1 \(epoch 0, batch 0\): KL of site 'z' is not finite for data 3;"):
        fit(conjugate_model, guide, load(values, heldout=0.0), steps=2, check=False, progress=False)


@pytest.mark.slow
def test_a_draw_that_fails_is_made_again_to_find_the_site():
    """One draw in twenty is beyond the model: another one would show nothing."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(torch.where(z > 1.6, math.nan, z), 1.0), obs=x)

    for seed in range(3):
        with pytest.raises(FitError, match=r"log p of site 'x' is not finite for data \d+;"):
            fit(model, slope, load(scalars(20)), steps=500, batch_size=1, lr=1e-6, seed=seed, progress=False)


def huge(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1e300)


def overflowing(x: Tensor) -> None:
    """The gradient in `a` is finite, but a step of 1e300 times it is not."""
    a = pyro.param("a", number(1.0))
    b = pyro.param("b", number(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(1e12 * a + b * 0, 1.0), obs=x)


def test_a_gradient_that_overflows_names_the_parameter(tmp_path):
    data = load(scalars(20), heldout=0.0)
    with pytest.raises(FitError) as caught:
        fit(overflowing, nothing, data, steps=50, optimizer=huge, out=tmp_path / "run", progress=False)
    assert "made parameter 'a' not finite" in str(caught.value)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()  # no checkpoint of parameters that are not finite


def test_a_gradient_that_overflows_at_the_last_step_is_found():
    with pytest.raises(
        FitError, match="the fit ends after step 1: an update overflowed and made parameter 'a' not finite"
    ):
        fit(overflowing, nothing, load(scalars(20), heldout=0.0), steps=1, optimizer=huge, progress=False)


def test_a_program_that_fails_on_such_parameters_says_after_which_step():
    """The exact guide factorises a matrix: torch's own error says nothing of the fit."""
    with pytest.raises(FitError, match=r"^the pair fails after step 1: .*cholesky"):
        fit(LINEAR, "exact", load(columns(50)), steps=20, batch_size=10, optimizer=huge, elbo="trace", progress=False)


def test_a_program_that_fails_at_a_step_names_it():
    def model(x: Tensor) -> None:
        if bool((x > 50).any()):
            raise RuntimeError("no such datum\nat all")
        m = pyro.param("m", number(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    values = scalars(1060)
    values[1037] = 99.0  # beyond the rows that records look at
    data = load(values, heldout=0.0)
    batch = next(i for i, (index, _) in enumerate(data.batches(0, 100)) if 1037 in index)
    assert batch > 0
    with pytest.raises(
        FitError,
        match=rf"^the pair fails at step {batch + 1} \(epoch 0, batch {batch}\): RuntimeError: no such datum \(test_f",
    ):
        fit(model, nothing, data, steps=200, batch_size=100, progress=False)


@pytest.mark.parametrize(
    "value, finite",
    [
        (torch.ones(3), True),
        (torch.tensor([1.0, math.nan]), False),
        (torch.tensor([math.inf, -math.inf]), False),
        (torch.full((4,), 3e38), True),  # the sum is infinite
        (torch.full((4,), 6e4, dtype=torch.float16), True),
        (torch.tensor([2**62, 2**62]), True),
        (torch.tensor([True]), True),
        (torch.zeros(0), True),
    ],
)
def test_what_is_finite_though_its_sum_may_not_be(value, finite):
    assert _finite(value) is finite
