"""Each closed form of KL(q ‖ p) against Monte Carlo, quadrature and its limits."""

import math
import warnings
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from binding_toys import bind_one
from torch.distributions import kl_divergence
from torch.distributions.kl import _dispatch_kl

from pyro_vi.elbo.decomposition import terms
from pyro_vi.guides.diag_normal import DiagNormal

EXACT = {"rtol": 1e-10, "atol": 1e-10}
DRAWS = 200_000
PRECISIONS = (torch.float32, torch.float64)

# Name: class, parameters as a guide, and as a prior.
POSITIVE = {
    "LogNormal": (dist.LogNormal, (0.3, 0.6), (-0.2, 0.9)),
    "Gamma": (dist.Gamma, (3.5, 2.0), (2.0, 1.5)),
    "Chi2": (dist.Chi2, (3.0,), (4.0,)),
    "Exponential": (dist.Exponential, (1.3,), (0.7,)),
    "Weibull": (dist.Weibull, (1.4, 2.5), (1.1, 1.8)),
    "InverseGamma": (dist.InverseGamma, (6.0, 5.0), (2.5, 2.0)),
    "HalfNormal": (dist.HalfNormal, (1.2,), (1.6,)),
}
INFINITE = {("Exponential", "InverseGamma"), ("HalfNormal", "InverseGamma")}
LINE = {
    "StudentT || Normal": (dist.StudentT, (9.0, 0.4, 0.8), dist.Normal, (-0.3, 1.3)),
    "VonMises || VonMises": (dist.VonMises, (2.9, 3.0), dist.VonMises, (-2.6, 1.5)),
}
FINITE = {
    f"{q} || {p}": (POSITIVE[q][0], POSITIVE[q][1], POSITIVE[p][0], POSITIVE[p][2])
    for q, p in product(POSITIVE, POSITIVE)
    if (q, p) not in INFINITE
}
SCALAR = {**FINITE, **LINE}

every_scalar = pytest.mark.parametrize("name", SCALAR)


def number(*values, dtype=torch.float64):
    return [torch.tensor(value, dtype=dtype) for value in values]


def scalar_pair(name, dtype=torch.float64):
    left, of_q, right, of_p = SCALAR[name]
    return left(*number(*of_q, dtype=dtype)), right(*number(*of_p, dtype=dtype))


def normals(*batch, seed=0):
    torch.manual_seed(seed)
    return dist.Normal(torch.randn(batch, dtype=torch.float64), torch.rand(batch, dtype=torch.float64) + 0.4)


def low_rank(*batch, size=4, rank=2):
    torch.manual_seed(7)
    loc, factor = (torch.randn(*batch, size, *more, dtype=torch.float64) for more in ((), (rank,)))
    return dist.LowRankMultivariateNormal(loc, factor, torch.rand(*batch, size, dtype=torch.float64) + 0.4)


def assert_mean_log_ratio(q, p, found):
    """The mean of log q − log p of draws from q, within 4 standard errors that would not hide a wrong sign."""
    torch.manual_seed(3)
    z = q.expand(found.shape).sample((DRAWS,))
    ratio = q.log_prob(z) - p.log_prob(z)
    error = ratio.std(0) / DRAWS**0.5
    assert bool(((found - ratio.mean(0)).abs() <= 4 * error).all())
    assert bool((error <= 0.02 * found.abs()).all())


@every_scalar
def test_it_is_the_mean_log_ratio(name):
    q, p = scalar_pair(name)
    found = kl_divergence(q, p)
    assert found > 0
    assert_mean_log_ratio(q, p, found)


@pytest.mark.parametrize("name", FINITE)
def test_values_and_gradients_are_those_of_a_quadrature(name):
    """The trapezoidal rule in u = log x, which is exact to rounding for densities that fall off at both ends."""
    left, of_q, right, of_p = FINITE[name]
    parameters = [v.requires_grad_() for v in number(*of_q, *of_p)]
    q, p = left(*parameters[: len(of_q)]), right(*parameters[len(of_q) :])
    u = torch.linspace(-80, 8, 8001, dtype=torch.float64)
    log_q, log_p = q.log_prob(u.exp()), p.log_prob(u.exp())
    inside = log_q + u > -500
    expected = ((log_q + u).exp() * (log_q - log_p))[inside].sum() * (u[1] - u[0])
    assert_same_with_gradients(kl_divergence(q, p), expected, parameters)


def test_gradients_on_the_circle_are_those_of_a_quadrature():
    parameters = [v.requires_grad_() for v in number(2.9, 3.0, -2.6, 1.5)]
    x = torch.linspace(-math.pi, math.pi, 401, dtype=torch.float64)[:-1]
    log_q, log_p = (
        k * (x - m).cos() - (2 * math.pi * torch.special.i0(k)).log() for m, k in (parameters[:2], parameters[2:])
    )
    found = kl_divergence(dist.VonMises(*parameters[:2]), dist.VonMises(*parameters[2:]))
    assert_same_with_gradients(found, (log_q.exp() * (log_q - log_p)).mean() * 2 * math.pi, parameters)


def test_gradients_of_student_t_are_those_of_a_quadrature():
    """In x = sinh v the tails of Student's t fall off exponentially."""
    parameters = [v.requires_grad_() for v in number(9.0, 0.4, 0.8, -0.3, 1.3)]
    q, p = dist.StudentT(*parameters[:3]), dist.Normal(*parameters[3:])
    v = torch.linspace(-12, 12, 8001, dtype=torch.float64)
    log_q, log_p = q.log_prob(v.sinh()), p.log_prob(v.sinh())
    expected = (log_q.exp() * v.cosh() * (log_q - log_p)).sum() * (v[1] - v[0])
    assert_same_with_gradients(kl_divergence(q, p), expected, parameters)


def assert_same_with_gradients(found, expected, parameters):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    # What the parameters enter through, as the half of a Chi2, both have in their graphs.
    gradients = [torch.autograd.grad(value, parameters, retain_graph=True) for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", POSITIVE)
def test_it_is_zero_at_equality_on_the_positive_line(name):
    family, parameters, _ = POSITIVE[name]
    q = family(*number(*parameters))
    torch.testing.assert_close(kl_divergence(q, q), number(0.0)[0], **EXACT)


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (dist.Exponential(*number(1.3)), dist.Weibull(*number(1 / 1.3, 1.0))),
        (dist.Chi2(*number(3.0)), dist.Gamma(*number(1.5, 0.5))),
        (dist.HalfNormal(*number(1.2)), dist.Weibull(*number(2.0, 2.0))),
        (dist.Weibull(*number(1 / 1.3, 1.0)), dist.Exponential(*number(1.3))),
        (dist.Weibull(*number(1 / 1.3, 1.0)), dist.Gamma(*number(1.0, 1.3))),
        (dist.VonMises(*number(0.4, 2.0)), dist.VonMises(*number(0.4 - 2 * math.pi, 2.0))),
    ],
    ids=lambda d: type(d).__name__,
)
def test_families_that_meet(q, p):
    """The KL of two names for one law is zero; a HalfNormal is no Weibull, though close to one of concentration 2."""
    found = kl_divergence(q, p)
    if isinstance(q, dist.HalfNormal):
        assert found > 0.1
    else:
        torch.testing.assert_close(found, number(0.0)[0], **EXACT)


@pytest.mark.parametrize(
    ("q", "p"),
    [
        *(
            (POSITIVE[q][0](*number(*POSITIVE[q][1])), dist.InverseGamma(*number(2.5, 2.0)))
            for q, _ in sorted(INFINITE)
        ),
        (dist.Gamma(*number(1.0, 2.0)), dist.InverseGamma(*number(2.5, 2.0))),
        (dist.InverseGamma(*number(2.0, 2.0)), dist.HalfNormal(*number(1.0))),
        (dist.InverseGamma(*number(2.0, 2.0)), dist.Weibull(*number(1.0, 2.5))),
        (dist.Weibull(*number(1.0, 0.9)), dist.InverseGamma(*number(2.5, 2.0))),
        (dist.StudentT(*number(2.0, 0.0, 1.0)), dist.Normal(*number(0.0, 1.0))),
    ],
    ids=lambda d: type(d).__name__,
)
def test_a_moment_that_does_not_exist_makes_it_infinite(q, p):
    assert kl_divergence(q, p) == math.inf


def test_an_infinite_entry_spoils_no_gradient():
    concentration = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    found = kl_divergence(dist.Gamma(concentration, 2.0), dist.InverseGamma(*number(2.5, 2.0)))
    assert found.isinf().tolist() == [True, True, False]
    (gradient,) = torch.autograd.grad(found[2], concentration)
    assert bool(gradient.isfinite().all())
    assert gradient[2] != 0
    df = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    found = kl_divergence(dist.StudentT(df), dist.Normal(*number(0.0, 1.0)))
    assert found.isinf().tolist() == [True, True, False]
    assert bool(torch.autograd.grad(found[2], df)[0].isfinite().all())


@pytest.mark.parametrize(
    ("q_batch", "p_batch"), [((5,), (5,)), ((5,), ()), ((), (5,)), ((4, 1), (3,))], ids=lambda b: str(b)
)
@every_scalar
def test_batches_broadcast(name, q_batch, p_batch):
    q, p = scalar_pair(name)
    found = kl_divergence(q.expand(q_batch), p.expand(p_batch))
    shape = torch.broadcast_shapes(q_batch, p_batch)
    assert found.shape == shape
    torch.testing.assert_close(found, kl_divergence(q, p).expand(shape), **EXACT)
    event = kl_divergence(q.expand((2, 3)).to_event(1), p.expand((3,)).to_event(1))
    torch.testing.assert_close(event, (3 * kl_divergence(q, p)).expand(2), **EXACT)


@every_scalar
def test_single_precision(name):
    found = kl_divergence(*scalar_pair(name, torch.float32))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), kl_divergence(*scalar_pair(name)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (lambda n: dist.VonMises(*n(0.5, 1e5)), lambda n: dist.VonMises(*n(0.51, 2e5))),
        (lambda n: dist.Gamma(*n(1e4, 1e4)), lambda n: dist.Weibull(*n(1.0, 60.0))),
        (lambda n: dist.Gamma(*n(1e4, 1.0)), lambda n: dist.HalfNormal(*n(10.0))),
    ],
    ids=["VonMises", "Weibull", "HalfNormal"],
)
def test_single_precision_far_out(q, p):
    """Neither overflows, and a moment's digits are not lost in a difference of log-gammas."""
    single, double = (kl_divergence(*(f(lambda *v, t=t: number(*v, dtype=t)) for f in (q, p))) for t in PRECISIONS)
    torch.testing.assert_close(single.double(), double, rtol=2e-2, atol=1e-3)


WIDE = {
    "LogNormal": [(-4.0, 2.0), (5.0, 1e-3), (0.1, 0.5)],
    "Gamma": [(1e5, 1e3), (0.3, 2.0), (1e4, 1e2)],
    "Chi2": [(2e4,), (0.7,)],
    "Exponential": [(1e3,), (1e-3,)],
    "Weibull": [(148.0, 500.0), (0.5, 0.7)],
    "InverseGamma": [(1e4, 1e4), (0.4, 3.0)],
    "HalfNormal": [(1e-3,), (1e3,)],
}
FAR = [
    *((POSITIVE[q][0], a, POSITIVE[p][0], b) for q, p in product(WIDE, WIDE) for a, b in product(WIDE[q], WIDE[p])),
    *((dist.Beta, a, dist.Beta, b) for a, b in product([(1e5, 1e5), (0.3, 7.0), (3e4, 20.0)], repeat=2)),
    *((dist.StudentT, (df, 0.0, 1.0), dist.Normal, (0.0, 1.0)) for df in (2.5, 1e2, 1e4)),
]


def test_single_precision_loses_no_digits_over_a_wide_range():
    """Of the same parameters, rounded to single; a value that single cannot hold is infinite."""
    for left, of_q, right, of_p in FAR:
        q, p = (family(*number(*given, dtype=torch.float32)) for family, given in ((left, of_q), (right, of_p)))
        wide = [v.double() for v in number(*of_q, *of_p, dtype=torch.float32)]
        expected = kl_divergence(left(*wide[: len(of_q)]), right(*wide[len(of_q) :]))
        torch.testing.assert_close(kl_divergence(q, p), expected.float(), rtol=1e-5, atol=1e-8, equal_nan=False)


@pytest.mark.parametrize(
    ("q", "p", "expected"),
    [  # by quadrature with 50 digits (mpmath)
        (dist.Gamma(1e4, 1e2), dist.LogNormal(4.6, 0.01), 0.131094703157),
        (dist.Gamma(1e5, 1.0), dist.Gamma(1e5, 1.001), 0.0499713600915),
        (dist.InverseGamma(1e3, 1e3), dist.Gamma(1e3, 1e3), 0.000834334351001),
        (dist.StudentT(1e4, 0.0, 1.0), dist.Normal(0.0, 1.0), 1.75041674793e-8),
        (dist.Beta(1e5, 1e5), dist.Beta(1.01e5, 1e5), 2.48759105652),
    ],
)
def test_values_of_sharp_densities_in_single_precision(q, p, expected):
    assert float(kl_divergence(q, p)) == pytest.approx(expected, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize(
    ("batch", "other"), [((), ()), ((5,), (5,)), ((5,), ()), ((), (5,)), ((4, 1), (3,))], ids=lambda b: str(b)
)
def test_low_rank_is_the_same_as_dense(batch, other):
    low, diagonal = low_rank(*batch), normals(*other, 4)
    dense = dist.MultivariateNormal(diagonal.loc, scale_tril=diagonal.scale.diag_embed())
    shape = torch.broadcast_shapes(batch, other)
    for q, p, expected in (
        (low, diagonal.to_event(1), kl_divergence(low, dense)),
        (diagonal.to_event(1), low, kl_divergence(dense, low)),
    ):
        found = kl_divergence(q, p)
        assert found.shape == shape
        torch.testing.assert_close(found, expected, **EXACT)
        if not shape:
            assert_mean_log_ratio(q, p, found)
        torch.testing.assert_close(kl_divergence(q.expand((2, *shape)), p), expected.expand((2, *shape)), **EXACT)
        torch.testing.assert_close(kl_divergence(q, p.expand((2, *shape))), expected.expand((2, *shape)), **EXACT)


def test_low_rank_is_zero_at_equality():
    p = normals(4)
    q = dist.LowRankMultivariateNormal(p.loc, torch.zeros(4, 2, dtype=torch.float64), p.scale.square())
    torch.testing.assert_close(kl_divergence(q, p.to_event(1)), number(0.0)[0], **EXACT)
    torch.testing.assert_close(kl_divergence(p.to_event(1), q), number(0.0)[0], **EXACT)


@pytest.mark.parametrize(
    "other", [dist.Laplace(torch.zeros(4), 1.0).to_event(1), dist.Normal(torch.zeros(2, 4), 1.0).to_event(2)]
)
def test_low_rank_against_others_has_none(other):
    for q, p in ((low_rank(), other), (other, low_rank())):
        with pytest.raises(NotImplementedError):
            kl_divergence(q, p)


MASK = torch.tensor([True, False, True])
ROWS = torch.tensor([True, False])
MASKED = {
    "prior": (normals(3), normals(3, seed=1).mask(MASK)),
    "guide": (normals(3).mask(MASK), normals(3, seed=1)),
    "prior below to_event": (normals(2, 3).to_event(1), normals(3, seed=1).mask(MASK).to_event(1)),
    "guide below to_event": (normals(2, 3).mask(MASK).to_event(1), normals(3, seed=1).to_event(1)),
    "prior above to_event": (normals(2, 3).to_event(1), normals(3, seed=1).to_event(1).mask(ROWS)),
    "guide above to_event": (normals(2, 3).to_event(1).mask(ROWS), normals(3, seed=1).to_event(1)),
    "mask wider than both": (normals(), normals(seed=1).expand([3]).mask(MASK)),
    "guide's mask wider than both": (normals().expand([3]).mask(MASK), normals(seed=1)),
    "prior True": (normals(3), normals(3, seed=1).mask(True)),
    "prior False": (normals(3), normals(3, seed=1).mask(False)),
    "guide True": (normals(3).mask(True), normals(3, seed=1)),
    "guide False": (normals(3).mask(False), normals(3, seed=1)),
    "LogNormal || Gamma": (dist.LogNormal(*number(0.3, 0.6)), dist.Gamma(*number(2.0, 1.5)).mask(MASK)),
    "Gamma || LogNormal": (dist.Gamma(*number(3.5, 2.0)).expand([3]).mask(MASK), dist.LogNormal(*number(-0.2, 0.9))),
    "low rank": (low_rank(2), normals(4).to_event(1).mask(ROWS)),
    "same mask": (normals(3).mask(MASK), normals(3, seed=1).mask(MASK)),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_side_has_the_mean_of_the_masked_log_ratio(name):
    """E_q[mask_q log q − mask_p log p]: the draws themselves are those of the unmasked guide."""
    q, p = MASKED[name]
    assert_mean_log_ratio(q, p, kl_divergence(q, p))


def test_what_a_mask_leaves():
    q, p = normals(3), normals(3, seed=1)
    divergence, entropy = kl_divergence(q, p), q.entropy()
    torch.testing.assert_close(kl_divergence(q, p.mask(MASK)), torch.where(MASK, divergence, -entropy), **EXACT)
    expected = torch.where(MASK, divergence, divergence + entropy)
    torch.testing.assert_close(kl_divergence(q.mask(MASK), p), expected, **EXACT)


def test_a_mask_without_the_entropy_or_the_kl_has_no_closed_form():
    circle = dist.VonMises(*number(0.0, 2.0)).expand([3])  # torch has no entropy of it
    heavy = dist.HalfCauchy(*number(1.0)).expand([3])
    pairs = [
        (circle, circle.mask(MASK)),
        (circle.mask(MASK), circle),
        (dist.Gamma(*number(2.0, 1.0)), heavy.mask(MASK)),
    ]
    for q, p in pairs:
        with pytest.raises(NotImplementedError):
            kl_divergence(q, p)


def test_delta_against_a_masked_prior():
    v, c = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    p = dist.Gamma(*number(2.0, 1.5))
    expected = c - torch.where(MASK, p.log_prob(v), 0)
    torch.testing.assert_close(kl_divergence(dist.Delta(v, c), p.mask(MASK)), expected, **EXACT)


def test_no_dispatch_is_ambiguous():
    """Over all classes that the forms here can meet, torch's own and Pyro's."""
    names = [*POSITIVE, "StudentT", "VonMises", "Normal", "Independent", "MultivariateNormal", "Cauchy", "Pareto"]
    names += ["LowRankMultivariateNormal", "TransformedDistribution", "HalfCauchy", "Beta", "Uniform"]
    classes = [getattr(module, name) for name in names for module in (dist, torch.distributions)]
    classes += [dist.Delta, dist.MaskedDistribution, dist.Distribution, dist.MixtureOfDiagNormals]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for q, p in product(classes, classes):
            _dispatch_kl(q, p)


def positive_model(x):
    rate = pyro.sample("rate", dist.HalfNormal(*number(1.0)).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(*number(2.0, 1.5)))
        pyro.sample("x", dist.Exponential(rate.sum() * z), obs=x)


def test_diag_normal_has_closed_forms_on_the_positive_line():
    x = torch.rand(5, dtype=torch.float64)
    guide = DiagNormal(bind_one(positive_model, (x,)), (x,), hidden=(4,))
    found = terms(positive_model, guide, x, seed=1)
    assert {name: source.kind for name, source in found.sources.items()} == {"rate": "analytic", "z": "analytic"}
    loc, scale = guide.parameters_of(x)["z"]
    expected = kl_divergence(dist.LogNormal(loc, scale), dist.Gamma(*number(2.0, 1.5)))
    torch.testing.assert_close(found.sites["z"].kl, expected, **EXACT)
    loc, scale = guide.parameters_of(x)["rate"]
    expected = kl_divergence(dist.LogNormal(loc, scale), dist.HalfNormal(*number(1.0))).sum()
    torch.testing.assert_close(found.sites["rate"].kl, expected, **EXACT)


def test_a_prior_masked_in_a_plate_is_analytic_and_agrees_with_the_sampled_terms():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(*number(0.0, 1.0)).mask(x > 0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.5))

    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    found = terms(model, guide, x, seed=1).sites["z"]
    assert found.source.kind == "analytic"
    q = dist.Normal(x, 0.5)
    expected = torch.where(x > 0, kl_divergence(q, dist.Normal(*number(0.0, 1.0))), -q.entropy())
    torch.testing.assert_close(found.kl, expected, **EXACT)
    many = x.expand(20_000, 3).reshape(-1)
    sampled = terms(model, guide, many, kl="sampled", seed=1).sites["z"].divergence.reshape(-1, 3)
    assert bool(((sampled.mean(0) - found.kl).abs() < 4 * sampled.std(0) / 20_000**0.5).all())
