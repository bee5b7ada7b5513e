"""Moments with Pareto-smoothed weights against known posteriors: a normal target, a linear-Gaussian hierarchy."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import number, scalars
from torch import Tensor

from pyro_vi.diagnostics import moments
from pyro_vi.diagnostics.reweighting.smoothing import moments_with, smoothed


def standard(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(number(0.0), 1.0))
        pyro.sample("x", dist.Normal(number(0.0), 1.0), obs=x)


def shifted(x: Tensor) -> None:
    """q(z) = N(.3, x²)."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(number(0.3), x))


def test_a_shifted_guide_of_another_width_is_corrected_to_the_standard_normal() -> None:
    """Shift −.3 / s and ratio 1 / s; for s = .3 the shape of the weights is 1 − s² = .91, and nothing can be used."""
    s = torch.tensor([1.0, 0.8, 1.4, 0.3]).double()
    found = moments(standard, shifted, s, draws=20_000, rows=3)
    np.testing.assert_array_equal(found.trusted, [True, True, True, False])
    good = found.isel(datum=slice(3), number=0)
    width = s[:3].numpy()
    expected = {
        "guide_mean": 0.3,
        "guide_sd": width,
        "psis_mean": 0.0,
        "psis_sd": 1.0,
        "mean_shift": -0.3 / width,
        "sd_ratio": 1 / width,
    }
    for name, value in expected.items():
        assert (abs(good[name] - value) < 4 * good[f"{name}_se"]).all(), name
        assert (good[f"{name}_se"] < 0.05).all()
    assert found.verdict == "care"
    assert found.number.values.tolist() == ["z"]
    assert any("3 of 4 data" in text for text in found.sentences)
    assert any("rows 3" in text for text in found.sentences)


def test_the_errors_are_those_of_repeated_draws() -> None:
    """500 sets of 2000 draws of N(.3, .9²) for N(0, 1): the spread of each number is its mean standard error."""
    generator = torch.Generator().manual_seed(0)
    z = 0.3 + 0.9 * torch.randn(2000, 500, generator=generator, dtype=torch.float64)
    weight = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(0.3, 0.9).log_prob(z)
    found = moments_with(z.unsqueeze(-1), weight - weight.logsumexp(0))
    for name in ("guide_mean", "guide_sd", "psis_mean", "psis_sd", "mean_shift", "sd_ratio"):
        spread, stated = float(found[name].std(0)), float(found[f"{name}_se"].square().mean().sqrt())
        assert stated == pytest.approx(spread, rel=0.15), name


def test_smoothing_leaves_equal_weights_and_marks_those_that_are_no_numbers() -> None:
    weight = torch.zeros(1000, 3, dtype=torch.float64)
    weight[:, 1] = torch.nan
    weight[:, 2] = -0.5 * torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log()
    found, k = smoothed(weight)
    torch.testing.assert_close(found[:, :2].exp(), torch.full((1000, 2), 0.001).double())
    assert np.isnan(k[0])
    assert np.isinf(k[1])
    assert 0 < k[2] < 1
    torch.testing.assert_close(found.logsumexp(0), torch.zeros(3).double())


def hierarchy(x: Tensor) -> None:
    t = pyro.sample("t", dist.Normal(number(0.0), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(t, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def apart(x: Tensor) -> None:
    pyro.sample("t", dist.Normal(number(0.3), 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


def test_shared_latents_and_those_of_the_data_have_the_moments_of_the_joint_normal() -> None:
    """t, z_n | t ~ N(t, 1), x_n | z_n ~ N(z_n, 1): the precision of (t, z) is known."""
    x = torch.tensor([1.0, 0.8, 1.4, 0.3]).double()
    found = moments(hierarchy, apart, x, draws=20_000)
    precision = torch.diag(torch.tensor([5.0, 2.0, 2.0, 2.0, 2.0]).double())
    precision[0, 1:] = precision[1:, 0] = -1
    covariance = precision.inverse()
    mean, sd = (covariance @ torch.cat([torch.zeros(1), x])).numpy(), covariance.diagonal().sqrt().numpy()
    assert found.shared_khat < found.threshold
    for prefix, means, sds in (("shared_", mean[:1], sd[:1]), ("", mean[1:], sd[1:])):
        for name, value in (("psis_mean", means), ("psis_sd", sds)):
            number_found = found[f"{prefix}{name}"].values.reshape(-1)
            error = found[f"{prefix}{name}_se"].values.reshape(-1)
            assert (abs(number_found - value) < 4 * error).all(), name
            assert (error < 0.03).all()


def test_vectors_have_names_and_exact_guides_pass() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("c", dist.Bernoulli(number(0.5)))
            pyro.sample("x", dist.Normal(number(0.0), 1.0), obs=x)

    found = moments(model, pyro.poutine.block(model, hide=["x"]), scalars(5), draws=400, most=2)
    assert found.number.values.tolist() == ["z[0]", "z[1]", "c"]
    assert found.datum.values.tolist() == [0, 4]
    assert found.verdict == "pass"
    np.testing.assert_allclose(found.sd_ratio, 1.0, rtol=1e-9)
    np.testing.assert_allclose(found.mean_shift, 0.0, atol=1e-9)


def states(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(number(0.5)))
        pyro.sample("x", dist.Normal(4 * c, 1.0), obs=x)


def test_a_state_that_all_draws_have_has_no_standard_deviation_and_is_no_reason_for_care() -> None:
    """q(c = 1 | x) is the posterior, σ(4 x − 8), within 1e-7 of 0 or 1 at the last two data."""

    def exact(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=4 * x - 8))

    def one(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(0 * x))

    found = moments(states, exact, torch.tensor([1.8, 2.2, -2.5, 6.5], dtype=torch.float64))
    assert found.attrs["verdict"] == "pass"
    np.testing.assert_array_equal(found.guide_sd[2:, 0], 0)
    assert np.isnan(found.sd_ratio[2:, 0]).all()
    found = moments(states, one, torch.tensor([1.8, 2.2], dtype=torch.float64))
    assert found.attrs["verdict"] == "none"
    assert "nan" not in " ".join(found.attrs["sentences"])
