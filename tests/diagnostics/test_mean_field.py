"""Linear response against normal posteriors, where it is exact, a log-normal, where it is known, and reference draws."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, number, scalars
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from targets import TARGETS, needs_folder
from torch import Tensor

from pyro_vi import fit
from pyro_vi.diagnostics import linear_response
from pyro_vi.errors import InputError
from pyro_vi.guides.diag_normal import DiagNormal

X, Y = columns(20), scalars(20, seed=3)


def regression(x: Tensor, y: Tensor) -> None:
    """y ~ N(a + x b, .5²), a ~ N(0, 2²), b ~ N(0, 1): a normal posterior."""
    a = pyro.sample("a", dist.Normal(number(0.0), 2.0))
    b = pyro.sample("b", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a + (x * b).sum(-1), 0.5), obs=y)


class Module(torch.nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> None:
        regression(x, y)


def own(x: Tensor, y: Tensor) -> None:
    pyro.sample("a", dist.Normal(number(0.1), 0.3))
    pyro.sample("b", dist.Normal(torch.tensor([0.3, -0.2, 0.0]).double(), 0.2).to_event(1))


def expected(x: Tensor) -> Tensor:
    design = torch.cat([torch.ones(len(x), 1).double(), x], 1)
    return torch.diag(torch.tensor([0.25, 1.0, 1.0, 1.0]).double()) + design.mT @ design / 0.25


GUIDES: dict[str, Callable[[], Any]] = {
    "own": lambda: own,
    "diag_normal": lambda: DiagNormal(Module(), (X, Y)),
    "auto_normal": lambda: AutoNormal(regression),
    "auto_diagonal_normal": lambda: AutoDiagonalNormal(regression),
}


@pytest.mark.parametrize("name", GUIDES)
def test_it_is_exact_for_a_normal_posterior(name: str) -> None:
    """Covariance P⁻¹ from a guide whose own variances are 1 / P_ii, whatever the guide's parameters are."""
    pyro.clear_param_store()
    found = linear_response(regression, GUIDES[name](), (X, Y), draws=32)
    pyro.clear_param_store()
    precision = expected(X)
    np.testing.assert_allclose(
        found.covariance, precision.inverse(), rtol=0, atol=1e-6 * float(precision.inverse().max())
    )
    np.testing.assert_allclose(found.mean_field_sd, precision.diagonal().rsqrt(), rtol=1e-5)
    assert found.number.values.tolist() == ["a", "b[0]", "b[1]", "b[2]"]
    assert ("has not converged" in found.sentences[0]) == (found.deficit > 0.1) == (name != "diag_normal")


def test_the_deficit_is_the_divergence_from_the_best_of_the_family() -> None:
    """ELBO at the best minus that of q = N(m, s²): ½ Σ (P_ii s² − 1 − log P_ii s²) + ½ (m − μ)ᵀ P (m − μ)."""
    precision = expected(X)
    design = torch.cat([torch.ones(20, 1).double(), X], 1)
    mean = torch.linalg.solve(precision, design.mT @ Y / 0.25)
    m, s = torch.tensor([0.1, 0.3, -0.2, 0.0]).double(), torch.tensor([0.3, 0.2, 0.2, 0.2]).double()
    spread = precision.diagonal() * s**2
    away = (spread - 1 - spread.log()).sum() / 2 + (m - mean) @ precision @ (m - mean) / 2
    assert linear_response(regression, own, (X, Y), draws=32).deficit == pytest.approx(float(away), rel=1e-6)


def test_on_the_support_it_is_that_of_means_of_the_function() -> None:
    """log z ~ N(m, s²): E[z] = exp(m + s²/2), and H = diag(1/s², 2) give the variance E² (s² + s⁴/2)."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.LogNormal(number(0.2), 0.4))
        pyro.sample("x", dist.Normal(0 * z, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.LogNormal(number(0.0), 0.3))

    found = linear_response(model, guide, scalars(3), draws=4000)
    mean, variance = np.exp(0.2 + 0.08), 0.4**2 + 0.4**4 / 2
    assert abs(found.sd - mean * variance**0.5).item() < 4 * found.sd_se.item() + 1e-4
    assert abs(found.mean_field_mean - mean).item() < 4 * found.mean_field_mean_se.item() + 1e-4
    assert found.sd_se.item() < 0.01


def test_latents_of_the_data_are_part_of_the_response() -> None:
    """t ~ N(0, 1), z_n | t ~ N(t, 1), x_n | z_n ~ N(z_n, 1): exact for all of them, where the mean field is too narrow."""

    def model(x: Tensor) -> None:
        t = pyro.sample("t", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(t, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("t", dist.Normal(number(0.3), 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    precision = torch.diag(torch.tensor([5.0, 2.0, 2.0, 2.0, 2.0]).double())
    precision[0, 1:] = precision[1:, 0] = -1
    found = linear_response(model, guide, scalars(4), draws=32)
    np.testing.assert_allclose(found.covariance, precision.inverse(), rtol=0, atol=1e-6)
    assert found.number.values.tolist() == ["t", "z[0]", "z[1]", "z[2]", "z[3]"]


def test_a_guide_that_agrees_passes_and_nothing_that_was_passed_changes() -> None:
    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    x = scalars(8)
    guide = AutoNormal(model, init_scale=1 / 3)
    with pyro.get_param_store().scope():
        guide(x)
        with torch.no_grad():
            guide.locs.a.copy_(x.sum() / 9)
        before = {name: p.detach().clone() for name, p in guide.named_parameters()}
        state = torch.get_rng_state()
        found = linear_response(model, guide, x, draws=32)
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(before[name], p) for name, p in guide.named_parameters())
    assert found.verdict == "pass"
    assert found.deficit == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(found.ratio, 1.0, atol=1e-6)


def chain(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(number(0.1), 0.3))
    pyro.sample("b", dist.Normal(a * x.new_ones(3), 0.2).to_event(1))


def student(x: Tensor, y: Tensor) -> None:
    pyro.sample("a", dist.StudentT(number(5.0), 0.0, 1.0))
    pyro.sample("b", dist.Normal(x.new_zeros(3), 0.2).to_event(1))


@pytest.mark.parametrize(
    ("guide", "text"),
    [
        (lambda: chain, "draws 'b' given its other draws"),
        (lambda: student, "draws 'a' from StudentT"),
        (lambda: AutoMultivariateNormal(regression), "from MultivariateNormal"),
    ],
)
def test_other_guides_are_refused_in_one_line(guide: Callable[[], Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as error:
        linear_response(regression, guide(), (X, Y))
    pyro.clear_param_store()
    assert "\n" not in str(error.value)


def test_a_normal_on_another_scale_and_summed_sites_are_refused() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Beta(number(2.0), 2.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(number(0.3), 0.05))

    with pytest.raises(InputError, match="not normal on the unconstrained scale at 'z'"):
        linear_response(model, guide, scalars(3))

    def mixture(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(number(0.5)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(m + c, 1.0), obs=x)

    def local(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(InputError, match="latents of each datum only"):
        linear_response(local, pyro.poutine.block(local, hide=["x"]), scalars(3))
    with pytest.raises(InputError, match="'c' is summed over its states"):
        linear_response(mixture, lambda x: pyro.sample("m", dist.Normal(number(0.0), 1.0)), scalars(3))


@pytest.mark.slow
@needs_folder
def test_it_repairs_the_standard_deviations_of_an_autoregression() -> None:
    """By an independent implementation .0703 .0865 .0916 .0862 .0697; NUTS .0706 .0873 .0931 .0860 .0699; mean field .021."""
    target = TARGETS["arK"]
    options = {"steps": 500, "lr": 0.01, "compile": False, "progress": False}
    elbo = "stl(num_particles=8, vectorize_particles=True)"
    run = fit(target.model, "diag_normal(amortized=False)", target.data, elbo=elbo, **options)
    found = linear_response(run.model, run.guide, target.data)
    betas = found.sel(number=[f"beta[{i}]" for i in range(5)])
    np.testing.assert_allclose(betas.sd, [0.0703, 0.0865, 0.0916, 0.0862, 0.0697], atol=1e-4)
    np.testing.assert_allclose(betas.sd, target.reference()[1][1:6], atol=2e-3)
    np.testing.assert_allclose(betas.mean_field_sd, 0.021, atol=1e-3)
    assert found.deficit < 0.1
    assert found.verdict == "care"
    assert "too narrow for 5 of 7" in found.sentences[0]
