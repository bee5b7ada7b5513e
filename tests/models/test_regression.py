"""Regression against closed forms, quadrature, and the reference draws of posteriordb."""

import json
import os
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, scalars, spec
from pyro import poutine
from pyro.infer import Trace_ELBO
from sklearn.datasets import load_diabetes
from torch import Tensor

import pyro_vi
from pyro_vi.data.spec import ColumnSpec, DataSpec
from pyro_vi.errors import InputError
from pyro_vi.guides.exact import Exact
from pyro_vi.models.regression import Regression

EXACT = {"rtol": 1e-10, "atol": 1e-10}
FOLDER = Path(os.environ.get("PYRO_VI_DATA", "")) / "posteriordb"
needs_folder = pytest.mark.skipif("PYRO_VI_DATA" not in os.environ, reason="PYRO_VI_DATA is not set")
KNOWN = {"known_scale": 0.7, "weight_scale": [0.5, 2.0, 1.0], "intercept_scale": 3.0}
FIT = {"steps": 300, "elbo": "stl(num_particles=8, vectorize_particles=True)", "heldout": 0, "compile": False}


def dense(x: Tensor, model: Regression, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features with ones, the prior covariance of all coefficients, and the covariance of the targets."""
    design = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], 1)
    prior = torch.cat([model.intercept_scale.reshape(1), model.weight_scale]).square().diag()
    return design, prior, design @ prior @ design.mT + noise.square().diag()


@pytest.mark.parametrize("column", [False, True])
def test_evidence_and_posterior_are_those_of_the_dense_normal(column):
    x, y = columns(8), scalars(8, seed=3)
    noise = scalars(8, seed=4).abs() + 0.1 if column else torch.full((8,), 0.7, dtype=x.dtype)
    options = KNOWN | ({"known_scale": "column"} if column else {})
    given = torch.cat([x, noise[:, None]], 1) if column else x
    model = Regression(spec(8, given.shape[1]), **options)
    design, prior, marginal = dense(x, model, noise)
    expected = dist.MultivariateNormal(0 * y, marginal).log_prob(y)
    torch.testing.assert_close(model.log_evidence(given, y), expected, **EXACT)
    gain = prior @ design.mT @ torch.linalg.inv(marginal)
    mean, covariance = gain @ y, prior - gain @ design @ prior
    found = model.posterior(given, y)
    torch.testing.assert_close(found["intercept"].mean, mean[0], **EXACT)
    torch.testing.assert_close(found["intercept"].variance, covariance[0, 0], **EXACT)
    # Every draw of the ELBO is the evidence, so the chain over both sites is the joint posterior.
    with pyro.get_param_store().scope():
        loss = Trace_ELBO(num_particles=3, vectorize_particles=True).loss(model, Exact(model, (given, y)), given, y)
    assert -loss == pytest.approx(float(expected), rel=1e-10)
    evidence = pyro_vi.evidence(model, Exact(model, (given, y)), (given, y))
    assert evidence.attrs["total"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("slopes", [False, True])
def test_centred_and_noncentred_effects_are_one_model(slopes):
    """p(b_j) = p(u_j) / τ at b_j = b + τ u_j, and the targets have the same density."""
    x, y, group = columns(8), scalars(8, seed=3), torch.tensor([0, 0, 1, 2, 2, 2, 1, 0])
    options = {"groups": 3, "slopes": slopes, "scale_prior": "exponential"}
    plain, centred = (Regression(spec(8), centred=c, **options) for c in (False, True))
    values = poutine.trace(plain).get_trace(x, y, group)
    draws = {name: values.nodes[name]["value"] for name in values.stochastic_nodes}
    moved = dict(draws, group=draws["intercept"] + draws["group_scale"] * draws["group"])
    jacobian = 3 * draws["group_scale"].log()
    if slopes:
        moved["slopes"] = draws["weights"] + draws["slope_scale"] * draws["slopes"]
        jacobian = jacobian + 3 * draws["slope_scale"].log().sum()
    traces = [
        poutine.trace(poutine.condition(model, given)).get_trace(x, y, group)
        for model, given in ((plain, draws), (centred, moved))
    ]
    assert float(traces[0].log_prob_sum()) == pytest.approx(float(traces[1].log_prob_sum() + jacobian), rel=1e-10)
    # By hand: each row has the level and the weights of its group.
    levels, weights = moved["group"][group], moved["slopes"][group] if slopes else draws["weights"]
    mean = levels + (x * weights).sum(-1)
    torch.testing.assert_close(traces[0].nodes["y"]["fn"].mean, mean, **EXACT)


def test_a_minibatch_is_scaled_to_the_data():
    x, y = columns(8), scalars(8)
    trace = poutine.trace(Regression(spec(50))).get_trace(x, y)
    assert trace.nodes["y"]["scale"] == 50 / 8 and trace.nodes["weights"]["scale"] == 1


@pytest.mark.parametrize(
    ("target", "name", "mean"),
    [
        (ColumnSpec("target", (), "real"), "Normal", lambda eta: eta),
        (ColumnSpec("label", (), "class", ("no", "yes")), "Bernoulli", torch.sigmoid),
        (ColumnSpec("target", (), "boolean"), "Bernoulli", torch.sigmoid),
        (ColumnSpec("label", (), "nonnegative_integer", ("0", "1", "2")), "Poisson", torch.exp),
    ],
)
def test_the_likelihood_is_that_of_the_target(target, name, mean):
    x = columns(8)
    data = DataSpec("made up", 8, (3,), "real", torch.float64, "made up", others=(target,))
    trace = poutine.trace(Regression(data)).get_trace(x, torch.ones(8))
    fn = trace.nodes["y"]["fn"]
    eta = trace.nodes["intercept"]["value"] + x @ trace.nodes["weights"]["value"]
    assert type(fn).__name__ == name
    torch.testing.assert_close(fn.mean, mean(eta), **EXACT)


def test_scales_that_are_not_given_come_from_the_data():
    x, y = columns(200) * torch.tensor([1.0, 10.0, 0.0]) + 5, scalars(200, seed=3) * 4 + 2
    model = Regression(spec(200), noise_scale=3.0)
    model.start(x, y, torch.arange(200) // 50)
    torch.testing.assert_close(model.weight_scale[:2], 2.5 * y.std() / x[:, :2].std(0), **EXACT)
    assert float(model.noise_scale) == 3.0 and model.groups == 4
    torch.testing.assert_close(model.intercept_loc, y.mean(), **EXACT)
    away = (2.5 * y.std()).square() + (model.weight_scale * x.mean(0)).square().sum()
    torch.testing.assert_close(model.intercept_scale, away.sqrt(), **EXACT)


@pytest.mark.slow
def test_mean_field_is_too_narrow_for_collinear_features():
    """Diabetes with known noise: the best independent normal has variances 1 / P_dd, P the precision of the posterior."""
    table = load_diabetes()
    x, y = data = (torch.as_tensor(table.data), torch.as_tensor(table.target).double())
    model = "regression(likelihood='normal', known_scale=54.0)"
    full, diagonal = (
        pyro_vi.fit(model, guide, data, progress=False, **FIT) for guide in ("full_normal", "diag_normal")
    )
    design, prior, marginal = dense(x, full.model, torch.full((len(x),), 54.0, dtype=x.dtype))
    precision = torch.linalg.inv(prior) + design.mT @ design / 54.0**2
    truth = torch.linalg.inv(precision).diagonal().sqrt()
    assert float(full.model.log_evidence(x, y)) == pytest.approx(
        float(dist.MultivariateNormal(full.model.intercept_loc * torch.ones_like(y), marginal).log_prob(y)), rel=1e-9
    )
    found = [drawn(run, (x, y)) for run in (full, diagonal)]
    sds = [torch.cat([draws["intercept"], draws["weights"]], 1).std(0) for draws in found]
    torch.testing.assert_close(sds[0], truth, rtol=0.05, atol=0)
    torch.testing.assert_close(sds[1], precision.diagonal() ** -0.5, rtol=0.05, atol=0)
    assert float((sds[1] / truth).min()) < 0.15  # of the blood serum s1, which the others nearly determine


def drawn(run: pyro_vi.Run, batch: tuple[Tensor, ...], count: int = 20_000) -> dict[str, Tensor]:
    """Draws by site, each (count, numbers)."""
    with pyro.get_param_store().scope(), torch.no_grad(), pyro.plate("draws", count, dim=-2):
        return {name: value.reshape(count, -1) for name, value in run.guide(*batch).items()}


@pytest.mark.slow
def test_groups_have_the_evidence_and_the_moments_of_quadrature():
    """Balanced groups: given τ the targets are normal, so evidence and E[b_j | y] are integrals over τ alone."""
    J, n, sigma = 12, 5, 1.0
    group = torch.arange(J).repeat_interleave(n)
    effects, noise = 2.0 * scalars(J, seed=1), scalars(J * n, seed=2)
    y, x = 2.0 + effects[group] + sigma * noise, torch.full((J * n, 1), sigma, dtype=torch.float64)
    options = "known_scale='column', intercept_scale=5.0, group_scale=2.0, scale_prior='half_normal', centred=True"
    run = pyro_vi.fit(f"regression({options})", "full_normal", (x, y, group), progress=False, **FIT)
    tau = (torch.arange(4000, dtype=x.dtype) + 0.5) / 500
    one = torch.nn.functional.one_hot(group).to(x)
    cover = one @ one.mT
    marginal = sigma**2 * torch.eye(J * n) + tau.reshape(-1, 1, 1) ** 2 * cover + 25.0
    joint = dist.MultivariateNormal(0 * y, marginal).log_prob(y) + dist.HalfNormal(0 * tau + 2).log_prob(tau)
    evidence = float(joint.logsumexp(0) - torch.tensor(500.0).log())
    estimate = pyro_vi.evidence(run.model, run.guide, (x, y, group), particles=50_000)
    assert estimate.attrs["total"] == pytest.approx(evidence, abs=4 * float(estimate.mc_se))
    share = joint.softmax(0)
    cross = tau.reshape(-1, 1, 1) ** 2 * one.mT + 25.0
    levels = share @ (cross @ torch.linalg.solve(marginal, y.expand(len(tau), -1).unsqueeze(-1))).squeeze(-1)
    draws = drawn(run, (x, y, group))
    assert float(((draws["group"].mean(0) - levels) / draws["group"].std(0)).abs().max()) < 0.2


def _json(folder: str, *names: str) -> tuple[Tensor, ...]:
    found = json.loads((FOLDER / folder / "data.json").read_text())
    return tuple(torch.tensor(found[name]).double() for name in names)


def schools() -> tuple[Tensor, ...]:
    y, sigma = _json("eight_schools-eight_schools_noncentered", "y", "sigma")
    return sigma[:, None], y, torch.arange(8)


def past() -> tuple[Tensor, ...]:
    (y,) = _json("arK-arK", "y")
    return torch.stack([y[4 - k : -1 - k] for k in range(5)], 1), y[5:]


CAUCHY = "scale_prior='half_cauchy'"
POSTERIORS = {
    "eight_schools-eight_schools_noncentered": (
        f"regression(known_scale='column', intercept_scale=5.0, {CAUCHY}, group_scale=5.0)",
        schools,
        -31.311347,
    ),
    "kidiq-kidscore_momiq": (
        f"regression(likelihood='normal', weight_scale=1e3, intercept_scale=1e3, {CAUCHY}, noise_scale=2.5)",
        lambda: _json("kidiq-kidscore_momiq", "mom_iq", "kid_score"),
        -1881.663161 - 15.653388,  # two flat priors as normals of standard deviation 1000
    ),
    "sblrc-blr": (
        "regression(intercept=False, weight_scale=10.0, noise_scale=10.0)",
        lambda: _json("sblrc-blr", "X", "y"),
        -194.967589,
    ),
    "arK-arK": (
        f"regression(intercept_scale=10.0, weight_scale=10.0, {CAUCHY}, noise_scale=2.5)",
        past,
        58.587594,
    ),
}


@pytest.mark.slow
@needs_folder
@pytest.mark.parametrize("folder", POSTERIORS)
def test_posteriors_are_those_of_the_reference_draws(folder):
    """Evidence within .03 nats; means within .2 posterior standard deviations, standard deviations within 20 %."""
    model, read, evidence = POSTERIORS[folder]
    data = read()
    run = pyro_vi.fit(model, "full_normal(amortized=False)", data, progress=False, **FIT)
    estimate = pyro_vi.evidence(run.model, run.guide, data, particles=20_000)
    assert estimate.attrs["total"] == pytest.approx(evidence, abs=0.03 + 4 * float(estimate.mc_se))
    draws = drawn(run, data)
    if "group" in draws:
        draws["group"] = draws["intercept"] + draws["group_scale"] * draws["group"]
    names = ("group", "intercept", "weights", "group_scale", "scale")
    values = torch.cat([draws[name] for name in names if name in draws], 1)
    summary = json.loads((FOLDER / folder / "reference_summary.json").read_text())
    mean, sd = (torch.tensor(summary[key]).double() for key in ("mean", "sd"))
    assert float(((values.mean(0) - mean) / sd).abs().max()) < 0.2
    assert float((values.std(0) / sd - 1).abs().max()) < 0.2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"likelihood": "gamma"}, "likelihood must be one of"),
        ({"prior": "flat"}, "prior must be one of normal, student, not 'flat'"),
        ({"weight_scale": 0.0}, "weight_scale is the scale of a prior"),
        ({"known_scale": "rows"}, "a number or 'column'"),
        ({"known_scale": 1.0, "likelihood": "poisson"}, "for the normal likelihood"),
        ({"slopes": True, "groups": 0}, "groups is 0"),
        ({"groups": -1}, "groups must be a whole number of at least 0"),
        ({"prior": "student", "df": 0.0}, "df must be positive"),
        ({"known_scale": -1.0}, "known_scale is a standard deviation and must be positive"),
        ({"weight_scale": [1.0, 2.0]}, r"weight_scale must be a number, or 3 for the features, not of shape \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        Regression(spec(), **options)


def test_there_is_no_closed_form_with_groups_or_other_likelihoods():
    known = {"known_scale": 1.0}
    for options in ({}, {"likelihood": "poisson"}, {**known, "groups": 2}, {**known, "prior": "student"}):
        assert getattr(Regression(spec(), **options), "log_evidence", None) is None
    errors = (ColumnSpec("sigma", (), "real"),)
    with pytest.raises(InputError, match="has sigma there"):
        Regression(DataSpec("made up", 8, (), "real", torch.float64, "made up", others=errors))
    three = ColumnSpec("label", (), "class", ("a", "b", "c"))
    with pytest.raises(InputError, match="has 3; use model 'bayesian_network'"):
        Regression(DataSpec("made up", 8, (3,), "real", torch.float64, "made up", others=(three,)))


def test_targets_that_are_missing_are_asked_for():
    with pytest.raises(InputError, match="has no targets; give them too"):
        pyro_vi.fit("regression", "diag_normal", columns(), steps=1, progress=False)


@pytest.mark.parametrize(
    ("options", "group", "words"),
    [
        ({"slopes": True}, None, "slopes is of groups, and 'made up' has no column of them; give one"),
        ({"centred": True}, None, "centred is of groups"),
        ({"groups": 3}, None, "groups is of groups"),
        ({}, [0, 1, -1, 0, 1, 2, 2, 2], r"whole numbers of shape \(rows,\), from 0, not .*from -1 to 2"),
        ({}, [0.0] * 8, "groups are whole numbers .* not torch.float32"),
        ({"groups": 2}, [0, 1, 2, 0, 1, 2, 2, 2], "from 0 to 1, not .*from 0 to 2"),
    ],
)
def test_groups_that_the_data_lack_or_number_otherwise_are_refused(options, group, words):
    given = () if group is None else (torch.tensor(group),)
    with pytest.raises(InputError, match=words):
        Regression(spec(), **options).start(columns(), scalars(), *given)


def test_targets_are_one_number_for_each_row():
    with pytest.raises(InputError, match=r"of shape \(rows,\), not \(8, 1\); flatten them"):
        Regression(spec()).start(columns(), scalars()[:, None])


@pytest.mark.parametrize("centred", [False, True])
def test_given_their_scales_slopes_by_group_are_a_normal_model(centred):
    """log p(y | τ, υ): the log density is quadratic in all effects, so that its integral is exact by its second derivatives."""
    x, y, group = columns(8), scalars(8, seed=3), torch.tensor([0, 0, 1, 2, 2, 2, 1, 0])
    model = Regression(spec(8), **KNOWN, slopes=True, groups=3, centred=centred)
    tau, upsilon = torch.tensor(0.8, dtype=x.dtype), torch.tensor([0.3, 0.6, 1.2], dtype=x.dtype)
    fixed = {"group_scale": tau, "slope_scale": upsilon}

    def log_joint(effects: Tensor) -> Tensor:
        b, w, levels, tilts = effects.split([1, 3, 3, 9])
        values = {"intercept": b[0], "weights": w, "group": levels, "slopes": tilts.reshape(3, 3), **fixed}
        trace = poutine.trace(poutine.condition(model, values)).get_trace(x, y, group)
        trace.compute_log_prob()
        return trace.log_prob_sum(lambda name, site: name not in fixed)

    zero = torch.zeros(16, dtype=x.dtype)
    slope = torch.autograd.functional.jacobian(log_joint, zero)
    precision = -torch.autograd.functional.hessian(log_joint, zero)
    found = log_joint(zero) + 0.5 * slope @ torch.linalg.solve(precision, slope) - 0.5 * torch.logdet(precision)
    found = found + 8 * torch.tensor(2 * torch.pi, dtype=x.dtype).log()
    same = (group[:, None] == group).double()
    products = (x[:, None] * x * upsilon.square()).sum(-1)
    marginal = dense(x, model, torch.full((8,), 0.7, dtype=x.dtype))[2] + same * (tau.square() + products)
    torch.testing.assert_close(found, dist.MultivariateNormal(0 * y, marginal).log_prob(y), **EXACT)
