"""Fits of Pyro programs whose answer is known: closed forms, a maximum likelihood, and reference draws of posteriordb."""

import csv
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from differential.harness import float64
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

import pyro_vi

FOLDER = Path(os.environ.get("PYRO_VI_DATA", ""))
needs_folder = pytest.mark.skipif("PYRO_VI_DATA" not in os.environ, reason="PYRO_VI_DATA is not set")


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    with float64():
        yield


def elbo(run: pyro_vi.Run, args: tuple[Any, ...], particles: int) -> float:
    """The ELBO of a fitted pair, summed over the data, by Pyro's estimator."""
    with pyro.get_param_store().scope(), torch.no_grad():
        estimator = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
        return -estimator.loss(run.model, run.guide, *args)


@pytest.mark.parametrize("scale", [0.001, 0.1, 0.5])
def test_auto_normal_starts_at_its_scale(scale: float) -> None:
    """The unconstrained scale of each latent is init_scale before the first step."""

    def model(x: Tensor) -> None:
        a, b = pyro.sample("a", dist.Normal(0.0, 10.0)), pyro.sample("b", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a, b), obs=x)

    run = pyro_vi.fit(
        model,
        AutoNormal(model, init_scale=scale),
        (torch.randn(12),),
        elbo="trace",
        steps=1,
        compile=False,
        progress=False,
        snapshots=(0,),
    )
    guide: Any = run.at(0).guide
    assert isinstance(guide, AutoNormal)
    with pyro.get_param_store().scope(), torch.no_grad():
        assert [float(guide.scales.a), float(guide.scales.b)] == pytest.approx([scale, scale], rel=1e-12)
        low, high = guide.quantiles([0.15865525393145707, 0.8413447460685429])["a"]
        assert float(high - low) == pytest.approx(2 * scale, rel=1e-6)


@pytest.mark.slow
def test_linear_regression_has_its_closed_form() -> None:
    """w ~ N(0, 1), y ~ N(X w, 1/4): the posterior is normal with precision I + 4 XᵀX."""
    x = torch.randn(20, 3)
    x[:, 1] += 0.8 * x[:, 0]
    y = x @ torch.tensor([1.0, -0.5, 0.2]) + 0.5 * torch.randn(20)
    precision = torch.eye(3) + 4 * x.T @ x
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (4 * x.T @ y)
    evidence = dist.MultivariateNormal(torch.zeros(20), x @ x.T + torch.eye(20) / 4).log_prob(y)

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * w).sum(-1), 0.5), obs=y)

    run = pyro_vi.fit(
        model,
        AutoMultivariateNormal(model),
        (x, y),
        elbo="stl",  # without noise at the exact posterior
        steps=800,
        lr=0.05,
        schedule="cosine",
        compile=False,
        progress=False,
    )
    assert run.data.spec.num_data == 20
    with pyro.get_param_store().scope(), torch.no_grad():
        posterior: Any = run.guide.get_posterior()
    sd = covariance.diagonal().sqrt()
    torch.testing.assert_close((posterior.mean - mean) / sd, torch.zeros(3), rtol=0, atol=1e-3)
    unit = torch.outer(sd, sd)
    torch.testing.assert_close(posterior.covariance_matrix / unit, covariance / unit, rtol=0, atol=1e-3)
    assert elbo(run, (x, y), 1000) == pytest.approx(float(evidence), abs=1e-4)


def _eight_schools() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Effects and their standard errors; the reference's means and standard deviations of the schools and of mu."""
    folder = FOLDER / "posteriordb" / "eight_schools-eight_schools_noncentered"
    data = json.loads((folder / "data.json").read_text())
    summary = json.loads((folder / "reference_summary.json").read_text())
    columns = (data["y"], data["sigma"], summary["mean"][:9], summary["sd"][:9])
    return tuple(torch.tensor(column).double() for column in columns)


def _schools(y: Tensor, sigma: Tensor) -> None:
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.mark.slow
@needs_folder
@pytest.mark.parametrize("guide", ["AutoNormal", "diag_normal"])
def test_eight_schools(guide: str) -> None:
    """The best mean-field ELBO of the non-centred form is -31.599; log p(y) is -31.3113."""
    y, sigma, means, sds = _eight_schools()
    run = pyro_vi.fit(
        _schools,
        AutoNormal(_schools) if guide == "AutoNormal" else guide,
        (y, sigma),
        elbo="trace(num_particles=8, vectorize_particles=True)",
        steps=1000,
        lr=0.04,
        schedule="cosine",
        compile=False,
        progress=False,
    )
    assert run.data.spec.num_data == 8
    assert not len(run.data.heldout[0])
    assert elbo(run, (y, sigma), 20000) == pytest.approx(-31.599, abs=0.02)
    with pyro.get_param_store().scope(), torch.no_grad():
        draws = pyro.infer.Predictive(_schools, guide=run.guide, num_samples=4000)(y, sigma)
    found = torch.cat([draws["theta"].reshape(4000, 8), draws["mu"].reshape(4000, 1)], 1).mean(0)
    assert float(((found - means) / sds).abs().max()) < 0.2


def _scales() -> tuple[Tensor, Tensor]:
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    return noise, pyro.param("step", torch.tensor(1.0), constraint=constraints.positive)


def _local_level(y: Tensor) -> None:
    """A random walk observed with noise, with a diffuse start: the first observation is given."""
    noise, step = _scales()
    level = pyro.sample("level_0", dist.Normal(y[0], noise))
    for t in range(1, len(y)):
        level = pyro.sample(f"level_{t}", dist.Normal(level, step))
        pyro.sample(f"y_{t}", dist.Normal(level, noise), obs=y[t])


def _smoother(y: Tensor) -> None:
    """The exact posterior: what the observations from t on say about a level has the precision and shift of ``ahead``."""
    noise, step = _scales()
    ahead = [(noise**-2, y[-1] * noise**-2)]
    for value in reversed(y[:-1]):
        precision, shift = ahead[-1]
        kept = 1 / (1 + step**2 * precision)
        ahead.append((noise**-2 + kept * precision, value * noise**-2 + kept * shift))
    precision, shift = ahead.pop()
    level = pyro.sample("level_0", dist.Normal(shift / precision, precision**-0.5))
    for t in range(1, len(y)):
        precision, shift = ahead.pop()
        total = precision + step**-2
        level = pyro.sample(f"level_{t}", dist.Normal((level * step**-2 + shift) / total, total**-0.5))


@pytest.mark.slow
@needs_folder
def test_nile_has_its_maximum_likelihood() -> None:
    """Observation variance 15099, level variance 1469.1, log-likelihood of observations 2 to 100 -632.5456."""
    with (FOLDER / "nile" / "nile.csv").open() as file:
        y = torch.tensor([float(row["flow"]) for row in csv.DictReader(file)]) / 100
    run = pyro_vi.fit(
        _local_level,
        _smoother,
        (y,),
        elbo="trace",
        steps=100,
        lr=0.2,
        schedule="cosine",
        compile=False,
        progress=False,
    )
    assert run.data.spec.num_data == 100
    with pyro.get_param_store().scope(), torch.no_grad():
        found = pyro.poutine.trace(run.model).get_trace(y).nodes
        bound = -Trace_ELBO().loss(run.model, run.guide, y)
    assert (100 * float(found["noise"]["value"])) ** 2 == pytest.approx(15099, rel=0.01)
    assert (100 * float(found["step"]["value"])) ** 2 == pytest.approx(1469.1, rel=0.01)
    assert bound - 99 * math.log(100) == pytest.approx(-632.5456, abs=2e-4)
