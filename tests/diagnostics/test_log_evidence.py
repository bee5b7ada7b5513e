"""The evidence: exact, and by importance sampling, where the exact one is known."""

import math

import numpy as np
import pytest
from catalogue import CATALOGUE, WrongGuide, columns, conjugate_model, exact_pair, linear_gaussian, scalars

from pyro_vi.diagnostics.log_evidence import evidence
from pyro_vi.elbo import draws
from pyro_vi.errors import InputError
from pyro_vi.guides.exact import Exact
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.pair import Pair

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def test_exact_is_the_models_own_and_the_default():
    model, guide = exact_pair()
    x = columns()
    found = evidence(model, guide, x)
    assert found.attrs["method"] == "exact"
    np.testing.assert_allclose(found.log_evidence, model.log_evidence(x).detach(), **EXACT)
    assert (found.mc_se == 0).all()
    np.testing.assert_allclose(found.attrs["value"], found.log_evidence.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.attrs["se"], found.log_evidence.std(ddof=1) / 8**0.5, rtol=1e-12)


@pytest.mark.parametrize("particles", [2, 3, 100])
def test_importance_sampling_with_the_exact_guide_is_exact_for_any_number_of_particles(particles):
    model, guide = exact_pair()
    x = columns()
    found = evidence(model, guide, x, method="iw", particles=particles, rows=3)
    np.testing.assert_allclose(found.log_evidence, model.log_evidence(x).detach(), **EXACT)
    np.testing.assert_allclose(found.ess, particles, rtol=1e-10)
    np.testing.assert_allclose(found.mc_se, 0, atol=1e-6)  # the root of 1 / ess - 1 / K, which is 0 to 1e-16


def test_importance_sampling_estimates_the_evidence_within_its_own_error():
    x, model = columns(), linear_gaussian()
    found = evidence(model, WrongGuide(), x, method="iw", particles=200_000, seed=1)
    exact = model.log_evidence(x).detach().numpy()
    reliable = found.ess.values > 100  # of few effective draws the delta method says nothing
    assert reliable.sum() >= 6
    assert (abs(found.log_evidence - exact) < 4 * found.mc_se)[reliable].all()
    assert (found.mc_se.values[reliable] < 0.1).all()
    assert ((found.ess > 1) & (found.ess < 200_000)).all()


def test_the_bound_rises_to_the_evidence_with_the_number_of_particles():
    """E of the estimate: the ELBO at K = 1, below log p(x) at every K, and closer with more (Burda et al. 2016)."""
    runs = 4000
    model, guide = linear_gaussian(), WrongGuide()
    x = columns(1).expand(runs, 3)  # every row is an estimate of its own
    exact = float(model.log_evidence(x[:1]).detach())
    means, errors = [], []
    for particles in (2, 8, 64):
        found = evidence(model, guide, x, method="iw", particles=particles, seed=particles).log_evidence
        means.append(float(found.mean()))
        errors.append(float(found.std(ddof=1)) / runs**0.5)
    for i in range(3):
        assert means[i] + 4 * errors[i] < exact
        assert i == 0 or means[i] - means[i - 1] > 4 * np.hypot(errors[i], errors[i - 1])
    assert exact - means[2] < 0.2 * (exact - means[0])


def test_the_error_is_that_of_the_mean_weight():
    """The delta method, and the effective sample size (Σ w)² / Σ w², from the same draws by hand."""
    x, model, guide = columns(3), linear_gaussian(), WrongGuide()
    found = evidence(model, guide, x, method="iw", particles=500, seed=4)
    with isolated(4, validation=False):
        (draw,) = draws.stream(Pair(model, guide), (x,), 500, kl="sampled")
    weights = draw.log_weight.exp().numpy()
    np.testing.assert_allclose(found.log_evidence, np.log(weights.mean(0)), rtol=1e-10)
    np.testing.assert_allclose(found.ess, weights.sum(0) ** 2 / (weights**2).sum(0), rtol=1e-10)
    np.testing.assert_allclose(found.mc_se, weights.std(0) / weights.mean(0) / 500**0.5, rtol=1e-8)


def test_chunks_of_draws_do_not_change_the_result(monkeypatch):
    """In chunks the numbers are drawn in another order: the estimates agree within their errors, and so do the errors."""
    x, model, guide = columns(), linear_gaussian(), WrongGuide()
    whole = evidence(model, guide, x, method="iw", particles=20_000, seed=1)
    monkeypatch.setattr(draws, "MEMORY", 300 * x.numel())
    parts = evidence(model, guide, x, method="iw", particles=20_000, seed=1)
    reliable = (whole.ess.values > 100) & (parts.ess.values > 100)
    assert reliable.sum() >= 4
    error = np.hypot(whole.mc_se, parts.mc_se)
    assert (abs(whole.log_evidence - parts.log_evidence) < 4 * error)[reliable].all()
    assert not (whole.log_evidence == parts.log_evidence).all()


def test_a_subsampled_plate_does_not_scale_the_evidence():
    """Of 50 data or of 8: log p(x_n) is of one datum, with no factor 50 / 8 in its weights."""
    small, large = (
        evidence(
            linear_gaussian(num_data=size), Exact(linear_gaussian(num_data=size), (columns(),)), columns(), method="iw"
        )
        for size in (8, 50)
    )
    np.testing.assert_allclose(large.log_evidence, small.log_evidence, **EXACT)


def test_conjugate_pair_by_importance_sampling():
    """z ~ N(0, 1), x | z ~ N(z, 1): log p(x) = log N(x; 0, 2)."""
    (x,) = CATALOGUE["conjugate"].batch
    found = evidence(conjugate_model, CATALOGUE["conjugate"].build()[1], x, particles=50_000)
    assert found.attrs["method"] == "iw"
    exact = -0.5 * math.log(4 * math.pi) - x.numpy() ** 2 / 4
    assert (abs(found.log_evidence - exact) < 4 * found.mc_se).all()


def test_equal_seeds_give_equal_bits():
    entry = CATALOGUE["masked"]
    first, again, other = (
        evidence(*entry.build(), entry.batch, particles=10, seed=seed).log_evidence.values for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert not (first == other).all()


@pytest.mark.parametrize(("name", "site"), [("global", "'w'"), ("nested_inside", "'w'"), ("no_plate", "'z'")])
def test_a_latent_that_all_data_share_is_refused(name, site):
    entry = CATALOGUE[name]
    with pytest.raises(InputError, match=f"site {site} is shared by all data"):
        evidence(*entry.build(), entry.batch, particles=5)


def test_what_cannot_be_had_is_refused():
    entry = CATALOGUE["masked"]
    with pytest.raises(InputError, match="no closed form"):
        evidence(*entry.build(), scalars(), method="exact")
    with pytest.raises(InputError, match="at least 2"):
        evidence(*entry.build(), scalars(), particles=1)
