"""The audit against closed forms of gradient variance, and what it promises: common draws, names, owners, no traces left."""

import math
import statistics
from functools import cache
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from catalogue import (
    CATALOGUE,
    ConjugateGuide,
    bound_pair,
    closure_pair,
    columns,
    conjugate_model,
    every_name,
    exact_pair,
    number,
    vae_pair,
)
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_vi.auditing.accumulating import GROUPS
from pyro_vi.auditing.auditor import audit
from pyro_vi.data.loading import load
from pyro_vi.errors import InputError, UsageError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.models.vae import VAE

DRAWS = 20_000


# (x, m, s): the exact posterior, one that is too narrow, one that is too wide, the prior, one in between.

CASES = [(1.3, 0.65, 0.5**0.5), (1.3, 0.65, 0.2), (-0.5, 0.4, 1.2), (2.0, 0.0, 1.0), (1.3, 0.6, 0.75)]


# grad_var_se is the spread of 40 groups: it is itself known to 1 / sqrt(2 * 39), relatively.

SPREAD = 1 / math.sqrt(2 * (GROUPS - 1))


ELBOS = ("trace", "mean_field")


def variances(elbo: str, x: float, m: float, s: float) -> tuple[float, float]:
    """Var of one draw's derivative in m and in log s, with z = m + s ε and but for constants.

    Under trace they are −2 s ε and s ε (x − 2 m − 2 s ε), with the KL in closed form −s ε and s ε (x − m − s ε).
    """
    if elbo == "trace":
        return 4 * s**2, (x - 2 * m) ** 2 * s**2 + 8 * s**4
    return s**2, (x - m) ** 2 * s**2 + 2 * s**4


@pytest.fixture(scope="module")
def conjugate() -> xr.Dataset:
    """One audit of all cases: datum i has parameters m_i and l_i of its own, so that its gradient is 1 / 5 of the case's."""
    guide = ConjugateGuide(*((m, s) for _, m, s in CASES))
    x = torch.tensor([x for x, _, _ in CASES], dtype=torch.float64)
    return audit(conjugate_model, guide, x, draws=DRAWS, seed=3)


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("kind", ["m", "l"])
def test_gradient_variance_is_the_closed_form(conjugate, elbo, case, kind):
    found = conjugate.sel(elbo=elbo, parameter=f"{kind}{case}")
    expected = variances(elbo, *CASES[case])["ml".index(kind)] / len(CASES) ** 2
    assert abs(float(found.grad_var) - expected) < 4 * float(found.grad_var_se)
    assert float(found.grad_var_se) < 0.03 * expected  # else agreement would say little


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_standard_error_of_a_variance_is_right_for_a_normal_gradient(conjugate, elbo, case):
    """The derivative in m is normal, so that the sample variance has standard error Var · sqrt(2 / (n - 1))."""
    found = conjugate.sel(elbo=elbo, parameter=f"m{case}")
    expected = variances(elbo, *CASES[case])[0] / len(CASES) ** 2 * math.sqrt(2 / (DRAWS - 1))
    assert abs(float(found.grad_var_se) / expected - 1) < 4 * SPREAD


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_mean_gradient_is_the_exact_one(conjugate, elbo, case):
    """d ELBO / dm = x - 2 m and d ELBO / dl = 1 - 2 s², whatever the estimator."""
    x, m, s = CASES[case]
    for kind, exact in (("m", x - 2 * m), ("l", 1 - 2 * s**2)):
        found = conjugate.sel(elbo=elbo, parameter=f"{kind}{case}")
        error = math.sqrt(float(found.grad_var) / DRAWS)
        assert abs(float(found.grad_mean) - abs(exact) / len(CASES)) < 4 * error
        torch.testing.assert_close(
            float(found.grad_snr), float(found.grad_mean) / math.sqrt(found.grad_var), rtol=1e-12, atol=0
        )


def test_mean_value_is_the_exact_elbo(conjugate):
    """ELBO = -log(2π) / 2 - ((x - m)² + s²) / 2 - KL(N(m, s²) || N(0, 1))."""
    exact = statistics.fmean(
        -0.5 * math.log(2 * math.pi) - 0.5 * ((x - m) ** 2 + s**2) + 0.5 * (1 + 2 * math.log(s) - m**2 - s**2)
        for x, m, s in CASES
    )
    for elbo in ELBOS:
        found = conjugate.sel(elbo=elbo)
        assert abs(float(found.value_mean) - exact) < 4 * float(found.value_se)
        torch.testing.assert_close(float(found.value_se), float(found.value_sd) / DRAWS**0.5, rtol=1e-12, atol=0)


def test_analytic_kl_has_the_larger_variance_with_a_narrow_guide(conjugate):
    """.0201 against .0129 in log s at (1.3, .65, .2): "analytic KL always has the smaller variance" is false."""
    trace, mean_field = (conjugate.sel(elbo=elbo, parameter="l1") for elbo in ELBOS)
    error = math.hypot(trace.grad_var_se, mean_field.grad_var_se)
    assert float(mean_field.grad_var - trace.grad_var) > 4 * error
    wide = conjugate.sel(parameter="l2").grad_var
    assert float(wide.sel(elbo="mean_field")) < float(wide.sel(elbo="trace"))


def test_parts_sum_over_the_parameters_of_an_owner(conjugate):
    guide = conjugate.sel(part="guide")
    np.testing.assert_allclose(guide.part_grad_var, conjugate.grad_var.sum("parameter"), rtol=1e-12)
    np.testing.assert_allclose(guide.part_grad_mean**2, (conjugate.grad_mean**2).sum("parameter"), rtol=1e-12)
    assert (conjugate.sel(part="model").part_grad_var == 0).all()


@pytest.mark.slow
def test_at_the_exact_posterior_the_value_of_trace_has_no_variance():
    """Var of the analytic one is Var (x - z)² / 2 = (x - m)² s² + s⁴ / 2 = .336, sd .580, at x = 1.3."""
    guide = ConjugateGuide((0.65, 0.5**0.5))
    found = audit(conjugate_model, guide, number(1.3).reshape(1), draws=2000, seed=1)
    assert float(found.value_sd.sel(elbo="trace")) < 1e-12
    exact = 0.65**2 * 0.5 + 0.5**2 / 2
    shift = 0.65**2 / 0.5  # (x - z)² / s² is noncentral chi-square: its cumulants are 2^(n-1) (n-1)! (1 + n shift)
    excess = 12 * (1 + 4 * shift) / (1 + 2 * shift) ** 2
    error = exact * math.sqrt((excess + 2) / 2000)
    assert abs(float(found.value_sd.sel(elbo="mean_field")) ** 2 - exact) < 4 * error


@pytest.mark.slow
def test_at_the_exact_posterior_of_linear_gaussian_trace_is_exact():
    model, guide = exact_pair()
    found = audit(model, guide, columns(), draws=40)
    assert float(found.value_sd.sel(elbo="trace")) < 1e-12
    assert float(found.value_sd.sel(elbo="mean_field")) > 0.1
    exact = float(model.log_evidence(columns()).mean().detach())
    torch.testing.assert_close(float(found.value_mean.sel(elbo="trace")), exact, rtol=1e-10, atol=1e-10)
    assert (found.grad_var.sel(elbo="trace") < 1e-20).all()


@pytest.mark.slow
def test_on_digits_at_the_start_the_analytic_kl_helps_the_encoder_and_not_the_decoder():
    data = load("digits")
    torch.manual_seed(0)
    model = VAE(data.spec)
    guide = DiagNormal(model, data.example(64))
    found = audit(model, guide, data.example(64), draws=400)
    variance, error = found.part_grad_var, found.part_grad_var_se
    trace, mean_field = (variance.sel(elbo=elbo) for elbo in ELBOS)
    assert float(trace.sel(part="guide")) > 10 * float(mean_field.sel(part="guide"))
    # Draws are common, and the decoder's gradient does not see the KL.
    assert abs(float((trace - mean_field).sel(part="model"))) < 4 * float(error.sel(elbo="trace", part="model"))
    assert float(trace.sel(part="model")) > 100 * abs(float((trace - mean_field).sel(part="model")))


TIMES = ["seconds", "seconds_iqr", "seconds_se", "work_var", "part_work_var"]


@pytest.mark.parametrize("vectorize", [pytest.param(True, marks=pytest.mark.slow), False], ids=["vmap", "loop"])
def test_equal_seeds_give_equal_bits_whatever_the_order_of_estimators(vectorize):
    entry = CATALOGUE["global"]
    first, again, turned, other = (
        audit(*entry.build(), entry.batch, elbos=elbos, draws=20, seed=seed, vectorize=vectorize).drop_vars(TIMES)
        for elbos, seed in ((ELBOS, 5), (ELBOS, 5), (ELBOS[::-1], 5), (ELBOS, 6))
    )
    xr.testing.assert_identical(first, again)
    biases = ["bias_z", "bias_p"]
    xr.testing.assert_identical(first.drop_vars(biases), turned.sel(elbo=list(ELBOS)).drop_vars(biases))
    # The second is compared with the first.
    for bias in biases:
        assert turned[bias].sel(elbo="mean_field").isnull().all()
        np.testing.assert_array_equal(turned[bias].sel(elbo="trace"), first[bias].sel(elbo="mean_field"))
    assert not (first.grad_var == other.grad_var).any()


@pytest.mark.slow
def test_draws_are_common_to_all_estimators():
    """A second copy of an estimator sees the very same draws: its moments are equal to the bit."""

    class Copy(Trace_ELBO):
        pass

    entry = CATALOGUE["global"]
    found = audit(*entry.build(), entry.batch, elbos=("trace", "mean_field", Copy()), draws=20)
    assert list(found.elbo.values) == ["trace", "mean_field", "Copy"]
    assert (found.grad_var.sel(elbo="trace") == found.grad_var.sel(elbo="Copy")).all()
    assert float(found.value_mean.sel(elbo="trace")) == float(found.value_mean.sel(elbo="Copy"))


@cache
def audited(name: str) -> xr.Dataset:
    """An audit of a pair of the catalogue with 20 draws from seed 8."""
    entry = CATALOGUE[name]
    elbos = ("trace",) if name == "discrete" else ELBOS
    return audit(*entry.build(), entry.batch, elbos=elbos, draws=20, seed=8)


@pytest.mark.slow
@every_name
def test_names_owners_and_sources_over_the_catalogue(name):
    entry, found = CATALOGUE[name], audited(name)
    assert dict(zip(found.parameter.values, found.owner.values, strict=True)) == entry.owners
    assert set(found.site.values) == set(entry.sources)
    for site, kind in entry.sources.items():
        assert str(found.kl_source.sel(elbo="trace", site=site).values) == "sampled"
        if "mean_field" in found.elbo:
            assert str(found.kl_source.sel(elbo="mean_field", site=site).values).split(" ")[0] == kind
    assert found.attrs["num_data"] == entry.num_data
    assert found.attrs["draws"] == 20
    assert (found.seconds > 0).all()
    # The programs of one pair draw from what depends on parameters.
    assert (found.method == ("loop" if name == "discrete" else "vmap")).all()


@pytest.mark.slow
def test_source_of_a_site_without_a_closed_form_says_so():
    source = audited("lognormal_halfcauchy").kl_source.sel(elbo="mean_field", site="z")
    assert str(source.values) == "sampled (no closed form of KL(LogNormal || HalfCauchy) is registered)"


@pytest.mark.slow
@every_name
def test_value_of_an_audit_is_pyros_elbo_per_datum(name):
    """The same 20 draws, made by Pyro alone from the seeds that the audit takes."""
    entry, found = CATALOGUE[name], audited(name).sel(elbo="trace")
    model, guide = entry.build()
    torch.manual_seed(8)
    seeds = torch.randint(2**62, (20,)).tolist()
    values = []
    for seed in seeds:
        with pyro.get_param_store().scope():
            torch.manual_seed(seed)
            values.append(-Trace_ELBO().loss(model, guide, *entry.batch) / entry.num_data)
    torch.testing.assert_close(float(found.value_mean), statistics.fmean(values), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(float(found.value_sd), statistics.stdev(values), rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_gradients_are_pyros_per_datum():
    """Mean and variance of 20 stored gradients of Pyro's own estimator on the same draws."""
    model, guide = vae_pair()
    (batch,) = CATALOGUE["vae"].batch
    found = audit(model, guide, batch, elbos="mean_field", draws=20, seed=8)
    parameters = dict(model.named_parameters()) | dict(guide.named_parameters())
    torch.manual_seed(8)
    seeds = torch.randint(2**62, (20,)).tolist()
    gradients: dict[str, list[np.ndarray]] = {name: [] for name in parameters}
    for seed in seeds:
        torch.manual_seed(seed)
        loss = TraceMeanField_ELBO().differentiable_loss(model, guide, batch) / 50
        for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            gradients[name].append(gradient.numpy())
    for name, stored in gradients.items():
        one = found.sel(elbo="mean_field", parameter=name)
        np.testing.assert_allclose(one.grad_mean, np.linalg.norm(np.mean(stored, 0)), rtol=1e-10)
        np.testing.assert_allclose(one.grad_var, np.var(stored, 0, ddof=1).sum(), rtol=1e-10)


@pytest.mark.slow
def test_nothing_outlives_an_audit():
    model, guide = closure_pair()
    originals = [
        c.cell_contents for f in (model, guide) for c in f.__closure__ if isinstance(c.cell_contents, torch.nn.Module)
    ]
    before = [p.clone() for net in originals for p in net.parameters()]
    pyro.param("mine", number(1.0))
    state = torch.get_rng_state()
    audit(model, guide, columns(), draws=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()
    after = [p for net in originals for p in net.parameters()]
    assert len(after) == 4
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))


@pytest.mark.slow
def test_parameters_in_the_param_store_are_not_those_of_the_audit():
    """Equal names in the global store change nothing: the pair starts from its own values."""
    entry = CATALOGUE["masked"]
    clean = audit(*entry.build(), entry.batch, draws=20).grad_mean
    pyro.param("slope", number(9.0))
    again = audit(*entry.build(), entry.batch, draws=20).grad_mean
    pyro.clear_param_store()
    assert (clean == again).all()


@pytest.mark.slow
def test_an_estimator_given_as_object_is_not_changed():
    """Pyro's estimators remember the plate nesting of the first model that they meet."""
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True)
    found = audit(*vae_pair(), CATALOGUE["vae"].batch, elbos=elbo, draws=20)
    assert math.isinf(elbo.max_plate_nesting)
    one = audit(*vae_pair(), CATALOGUE["vae"].batch, elbos="trace", draws=20)
    assert float(found.value_sd[0]) < float(one.value_sd[0])


@pytest.mark.slow
def test_shared_parameters_count_once():
    found = audit(*bound_pair(), columns(), draws=20)
    assert sorted(found.parameter.values) == sorted(CATALOGUE["bound_vae"].owners)


def test_too_few_draws_are_refused():
    entry = CATALOGUE["masked"]
    with pytest.raises(InputError, match="at least 20 draws for its standard errors, not 19"):
        audit(*entry.build(), entry.batch, draws=19)


def test_the_same_estimator_twice_is_refused():
    entry = CATALOGUE["masked"]
    with pytest.raises(UsageError):
        audit(*entry.build(), entry.batch, elbos=("trace", "trace"), draws=20)


def test_a_gradient_that_is_not_finite_is_refused():
    def guide(x):
        loc = pyro.param("loc", number(1e200))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    with pytest.raises(InputError, match="'trace' is not finite"):
        audit(conjugate_model, guide, number(1.0).reshape(1), elbos="trace", draws=20)


def test_a_pair_without_parameters_has_values_only():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    found = audit(conjugate_model, guide, columns()[:, 0], draws=20)
    assert found.sizes["parameter"] == 0
    assert float(found.value_sd.sel(elbo="trace")) < 1e-12


def test_a_gradient_that_is_not_finite_is_refused_in_a_loop_too():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", number(1e200)), 1.0))

    for vectorize in (True, False):
        with pytest.raises(InputError, match="'trace' is not finite"):
            audit(conjugate_model, guide, number(1.0).reshape(1), elbos="trace", draws=20, vectorize=vectorize)


# Bias.


class Scaled(Trace_ELBO):
    """Pyro's estimator with a gradient that is 5 % too long."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().differentiable_loss(model, guide, *args, **kwargs)
        return loss.detach() + 1.05 * (loss - loss.detach())


@pytest.mark.slow
def test_a_wrong_gradient_is_found_and_right_ones_are_not():
    """One number: of δ = .05 (x − 2 m) and draws' deviation .05 · 2 s, z = δ √(n / 2) / sd."""
    entry, draws = CATALOGUE["conjugate"], 2000
    unbiased = ("trace", "mean_field", "stl", "score(num_particles=2)")
    found = audit(*entry.build(), entry.batch, elbos=(*unbiased, Scaled()), draws=draws, seed=1)
    assert found.target.values.tolist() == ["elbo"] * 5
    assert found.bias_z.sel(elbo="trace").isnull().all()
    assert (found.bias_p.sel(elbo=list(unbiased[1:])) > 0.01).all()
    wrong = found.sel(elbo="Scaled")
    assert (wrong.bias_p.sel(parameter=["m0", "m1"]) < 1e-6).all()
    for parameter, x, m, s in (("m0", 1.3, 0.2, 0.9), ("m1", -0.4, 0.65, 0.5)):
        expected = abs(x - 2 * m) / (2 * s) * math.sqrt(draws / 2)
        z = float(wrong.bias_z.sel(parameter=parameter))
        assert abs(z - expected) < 4 * math.sqrt(1 + expected**2 / draws)


@pytest.mark.slow
def test_estimators_that_are_equal_draw_for_draw_have_no_bias_at_all():
    """An analytic KL does not reach the decoder, nor does the way of the guide's gradient."""
    entry = CATALOGUE["closure"]
    found = audit(*entry.build(), entry.batch, elbos=("trace", "mean_field", "stl", "graph"), draws=40)
    decoder = found.sel(elbo=["mean_field", "stl"], parameter=found.owner == "model")
    assert (decoder.bias_z == 0).all()
    assert (decoder.bias_p == 1).all()
    assert (found.bias_z.sel(elbo="graph") == 0).all()
    encoder = found.sel(elbo=["mean_field", "stl"], parameter=found.owner == "guide")
    assert (encoder.bias_z != 0).all()


@pytest.mark.slow
def test_the_relaxed_gradient_is_found_biased():
    entry = CATALOGUE["discrete"]
    elbos = ("score(num_particles=2)", "mixed(num_particles=2)", "relaxed(temperature=5.0)")
    found = audit(*entry.build(), entry.batch, elbos=elbos, draws=240)
    assert found.bias_p.sel(elbo=elbos[1]).item() > 0.01
    assert found.bias_p.sel(elbo=elbos[2]).item() < 1e-6


@pytest.mark.slow
def test_estimators_of_other_bounds_are_not_compared():
    entry = CATALOGUE["conjugate"]
    elbos = ("trace", "iwae(num_particles=3)", "renyi(num_particles=3)", "dreg(num_particles=3)", "stl")
    found = audit(*entry.build(), entry.batch, elbos=elbos, draws=200, seed=1)
    assert found.target.values.tolist() == ["elbo", "iwae(3)", "renyi(3, alpha=0.5)", "iwae(3)", "elbo"]
    compared = ["stl", "dreg(num_particles=3)"]
    rest = [elbo for elbo in elbos if elbo not in compared]
    assert found.bias_z.sel(elbo=rest).isnull().all()
    assert found.bias_p.sel(elbo=rest).isnull().all()
    assert (found.bias_p.sel(elbo=compared) > 0.01).all()


# The share of each site.


def two_sites(*cases: tuple[float, float, float]) -> tuple[Any, Any]:
    """Independent conjugate pairs as sites z0, z1, ... of one model: each with its own x, m and s."""

    def model(x: Tensor) -> None:
        for i, (value, _, _) in enumerate(cases):
            z = pyro.sample(f"z{i}", dist.Normal(number(0.0), 1.0))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=number(value))

    def guide(x: Tensor) -> None:
        for i, (_, m, s) in enumerate(cases):
            loc, log_scale = pyro.param(f"m{i}", number(m)), pyro.param(f"l{i}", number(math.log(s)))
            pyro.sample(f"z{i}", dist.Normal(loc, log_scale.exp()))

    return model, guide


def fourth_moments(elbo: str, x: float, m: float, s: float) -> list[float]:
    """μ₄ of the derivatives in m and log s, of the form a ε + b (ε² − 1): 3 a⁴ + 60 a² b² + 60 b⁴."""
    a = (x - 2 * m) * s if elbo == "trace" else (x - m) * s
    b = 2 * s**2 if elbo == "trace" else s**2
    in_m = 3 * variances(elbo, x, m, s)[0] ** 2
    return [in_m, 3 * a**4 + 60 * a**2 * b**2 + 60 * b**4]


@pytest.mark.parametrize("cases", [CASES[4:], pytest.param(CASES[2:4], marks=pytest.mark.slow)], ids=["one", "two"])
def test_total_effects_of_independent_sites_are_their_variances(cases, monkeypatch):
    """½ (g − g')² of independent g, g' has the standard error √((μ₄ + σ⁴) / 2 n); those of m and log s at most add."""
    pairs = 2000
    monkeypatch.setattr("pyro_vi.auditing.sites.PAIRS", pairs)
    found = audit(*two_sites(*cases), torch.zeros(1, dtype=torch.float64), draws=2 * pairs, seed=1)
    assert found.site.values.tolist() == [f"z{i}" for i in range(len(cases))]
    for elbo in ELBOS:
        total, total_error = 0.0, 0.0
        for i, case in enumerate(cases):
            expected = variances(elbo, *case)
            moments = zip(fourth_moments(elbo, *case), expected, strict=True)
            error = sum(math.sqrt((fourth + variance**2) / (2 * pairs)) for fourth, variance in moments)
            share = float(found.site_var.sel(elbo=elbo, site=f"z{i}", part="guide"))
            assert abs(share - sum(expected)) < 4 * error
            total, total_error = total + share, total_error + error
        part = found.sel(elbo=elbo, part="guide")
        assert abs(total - float(part.part_grad_var)) < 4 * (total_error + float(part.part_grad_var_se))
        assert total_error < 0.12 * total  # else agreement would say little
    assert (found.site_var.sel(part="model") == 0).all()
