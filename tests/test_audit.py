"""The audit against closed forms of gradient variance, and what it promises: common draws, names, owners, no traces left."""

import math
import statistics

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
    exact_pair,
    number,
    vae_pair,
)
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vi.audit import audit
from pyro_vi.data import load
from pyro_vi.errors import InputError, UsageError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.models.vae import VAE
from pyro_vi.moments import GROUPS as CHUNKS
from pyro_vi.moments import Moments as _Moments

DRAWS = 20_000
# (x, m, s): the exact posterior, one that is too narrow, one that is too wide, the prior, one in between.
CASES = [(1.3, 0.65, 0.5**0.5), (1.3, 0.65, 0.2), (-0.5, 0.4, 1.2), (2.0, 0.0, 1.0), (1.3, 0.6, 0.75)]
# grad_var_se is the spread of 40 groups: it is itself known to 1 / sqrt(2 * 39), relatively.
SPREAD = 1 / math.sqrt(2 * (CHUNKS - 1))
ELBOS = ("trace", "mean_field")


def variances(elbo: str, x: float, m: float, s: float) -> tuple[float, float]:
    """Var of one draw's derivative in m and in log s: oracles, section 1."""
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


def test_at_the_exact_posterior_of_linear_gaussian_trace_is_exact():
    model, guide = exact_pair()
    found = audit(model, guide, columns(), draws=40)
    assert float(found.value_sd.sel(elbo="trace")) < 1e-12
    assert float(found.value_sd.sel(elbo="mean_field")) > 0.1
    exact = float(model.log_evidence(columns()).mean().detach())
    torch.testing.assert_close(float(found.value_mean.sel(elbo="trace")), exact, rtol=1e-10, atol=1e-10)
    assert (found.grad_var.sel(elbo="trace") < 1e-20).all()


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


def test_equal_seeds_give_equal_bits_whatever_the_order_of_estimators():
    model, guide = vae_pair()
    batch = CATALOGUE["vae"].batch
    first, again, turned, other = (
        audit(model, guide, batch, elbos=elbos, draws=20, seed=seed).drop_vars("seconds")
        for elbos, seed in ((ELBOS, 5), (ELBOS, 5), (ELBOS[::-1], 5), (ELBOS, 6))
    )
    xr.testing.assert_identical(first, again)
    xr.testing.assert_identical(first, turned.sel(elbo=list(ELBOS)))
    assert not (first.grad_var == other.grad_var).any()


def test_draws_are_common_to_all_estimators():
    """A second copy of an estimator sees the very same draws: its moments are equal to the bit."""

    class Copy(Trace_ELBO):
        pass

    entry = CATALOGUE["global"]
    found = audit(*entry.build(), entry.batch, elbos=("trace", "mean_field", Copy()), draws=20)
    assert list(found.elbo.values) == ["trace", "mean_field", "Copy"]
    assert (found.grad_var.sel(elbo="trace") == found.grad_var.sel(elbo="Copy")).all()
    assert float(found.value_mean.sel(elbo="trace")) == float(found.value_mean.sel(elbo="Copy"))


@pytest.mark.parametrize("name", CATALOGUE)
def test_names_owners_and_sources_over_the_catalogue(name):
    entry = CATALOGUE[name]
    if name == "discrete":
        elbos: tuple[str, ...] = ("trace",)
    else:
        elbos = ELBOS
    found = audit(*entry.build(), entry.batch, elbos=elbos, draws=20)
    assert dict(zip(found.parameter.values, found.owner.values, strict=True)) == entry.owners
    assert set(found.site.values) == set(entry.sources)
    for site, kind in entry.sources.items():
        assert str(found.kl_source.sel(elbo="trace", site=site).values) == "sampled"
        if "mean_field" in elbos:
            assert str(found.kl_source.sel(elbo="mean_field", site=site).values).split(" ")[0] == kind
    assert found.attrs["num_data"] == entry.num_data
    assert found.attrs["draws"] == 20
    assert (found.seconds > 0).all()


@pytest.mark.parametrize("name", CATALOGUE)
def test_value_of_an_audit_is_pyros_elbo_per_datum(name):
    """The same 20 draws, made by Pyro alone from the seeds that the audit takes."""
    entry = CATALOGUE[name]
    found = audit(*entry.build(), entry.batch, elbos="trace", draws=20, seed=8)
    model, guide = entry.build()
    torch.manual_seed(8)
    seeds = torch.randint(2**62, (20,)).tolist()
    values = []
    for seed in seeds:
        with pyro.get_param_store().scope():
            torch.manual_seed(seed)
            values.append(-Trace_ELBO().loss(model, guide, *entry.batch) / entry.num_data)
    torch.testing.assert_close(float(found.value_mean[0]), statistics.fmean(values), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(float(found.value_sd[0]), statistics.stdev(values), rtol=1e-8, atol=1e-10)


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


@pytest.mark.parametrize(("groups", "draws"), [(4, 40), (7, 100), (40, 1000), (2, 20)])
def test_streamed_moments_are_those_of_stored_draws(groups, draws):
    # A mean far from 0 against the spread, where the naive sum of squares would lose its digits.
    stored = 1e4 + np.random.default_rng(1).standard_normal((draws, 3)) * [1.0, 1e-2, 5.0]
    moments = _Moments(3, groups, draws)
    for row in stored:
        moments.add(torch.from_numpy(row))
    np.testing.assert_allclose(moments.mean, stored.mean(0), rtol=1e-12)
    # Draws near 1e4 hold a deviation of .01 to 2e-10 of it.
    np.testing.assert_allclose(moments.variance, stored.var(0, ddof=1), rtol=1e-9)
    centred = stored - 1e4
    moments = _Moments(3, groups, draws)
    for row in centred:
        moments.add(torch.from_numpy(row))
    np.testing.assert_allclose(moments.variance, centred.var(0, ddof=1), rtol=1e-12)
    pieces = np.split(centred, np.linspace(0, draws, groups + 1).astype(int)[1:-1])
    np.testing.assert_allclose(torch.stack(moments.group_variances), [p.var(0, ddof=1) for p in pieces], rtol=1e-12)


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


def test_parameters_in_the_param_store_are_not_those_of_the_audit():
    """Equal names in the global store change nothing: the pair starts from its own values."""
    entry = CATALOGUE["masked"]
    clean = audit(*entry.build(), entry.batch, draws=20).grad_mean
    pyro.param("slope", number(9.0))
    again = audit(*entry.build(), entry.batch, draws=20).grad_mean
    pyro.clear_param_store()
    assert (clean == again).all()


def test_an_estimator_given_as_object_is_not_changed():
    """Pyro's estimators remember the plate nesting of the first model that they meet."""
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True)
    found = audit(*vae_pair(), CATALOGUE["vae"].batch, elbos=elbo, draws=20)
    assert math.isinf(elbo.max_plate_nesting)
    one = audit(*vae_pair(), CATALOGUE["vae"].batch, elbos="trace", draws=20)
    assert float(found.value_sd[0]) < float(one.value_sd[0])


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
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", number(1e200))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    with pytest.raises(InputError, match="'trace' is not finite"):
        audit(model, guide, number(1.0).reshape(1), elbos="trace", draws=20)


def test_a_pair_without_parameters_has_values_only():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    found = audit(conjugate_model, guide, columns()[:, 0], draws=20)
    assert found.sizes["parameter"] == 0
    assert float(found.value_sd.sel(elbo="trace")) < 1e-12
