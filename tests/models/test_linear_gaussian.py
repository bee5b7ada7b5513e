"""The linear-Gaussian model against a dense normal, Bayes' rule, and probabilistic PCA."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, linear_gaussian, spec
from sklearn.datasets import load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.decomposition import FactorAnalysis as Peer

import pyro_vi
from pyro_vi.data.spec import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.models.linear_gaussian import PPCA, FactorAnalysis, LinearGaussian
from pyro_vi.programs.layout import prototype

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def dense(model: LinearGaussian) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A, b and Σ as plain arrays."""
    variance = (2 * model.log_scale).exp().expand(model.bias.shape)
    return model.weight.detach(), model.bias.detach(), variance.diag().detach()


def models() -> list[LinearGaussian]:
    torch.manual_seed(8)
    return [
        linear_gaussian(),
        LinearGaussian(spec(), latent_dim=1, scale=0.3),
        LinearGaussian(spec(features=2), latent_dim=5, noise="diagonal", scale=[0.4, 2.0], bias=[1.0, -1.0]),
    ]


@pytest.mark.parametrize("case", range(3))
def test_evidence_is_that_of_the_dense_normal(case):
    model = models()[case]
    weight, bias, noise = dense(model)
    x = columns(features=len(bias))
    expected = dist.MultivariateNormal(bias, weight @ weight.mT + noise).log_prob(x)
    torch.testing.assert_close(model.log_evidence(x).detach(), expected, **EXACT)


@pytest.mark.parametrize("case", range(3))
def test_posterior_is_bayes_rule(case):
    """The joint normal of (z, x), conditioned on x by the dense formula: no use of the precision form."""
    model = models()[case]
    weight, bias, noise = dense(model)
    x = columns(features=len(bias))
    gain = weight.mT @ torch.linalg.inv(weight @ weight.mT + noise)
    posterior = model.posterior(x)["z"]
    torch.testing.assert_close(posterior.mean.detach(), (x - bias) @ gain.mT, **EXACT)
    covariance = torch.eye(model.latent_dim, dtype=x.dtype) - gain @ weight
    torch.testing.assert_close(posterior.covariance_matrix.detach(), covariance.expand(8, -1, -1), **EXACT)


@pytest.mark.parametrize("case", range(3))
def test_prior_times_likelihood_is_evidence_times_posterior_at_any_z(case):
    model = models()[case]
    x = columns(features=len(model.bias))
    z = columns(features=model.latent_dim, seed=9)
    prior = dist.Normal(torch.zeros(model.latent_dim, dtype=x.dtype), 1.0).to_event(1)
    joint = prior.log_prob(z) + model.observation(z).log_prob(x)
    torch.testing.assert_close(joint, model.log_evidence(x) + model.posterior(x)["z"].log_prob(z), **EXACT)


def test_one_dimension_is_the_conjugate_pair():
    """p(x) = N(0, 2), posterior N(x / 2, 1 / 2). A datum may be a number or a vector of one."""
    x = torch.tensor([1.3, -0.2], dtype=torch.float64)
    for shape in ((), (1,)):
        data = DataSpec("made up", 2, shape, "real", torch.float64, "made up")
        model = LinearGaussian(data, latent_dim=1, weight=[[1.0]])
        rows = x.reshape(2, *shape)
        expected = -0.5 * math.log(4 * math.pi) - x.square() / 4
        torch.testing.assert_close(model.log_evidence(rows).detach(), expected, **EXACT)
        posterior = model.posterior(rows)["z"]
        torch.testing.assert_close(posterior.mean[:, 0].detach(), x / 2, **EXACT)
        torch.testing.assert_close(posterior.variance.detach(), torch.full((2, 1), 0.5, dtype=x.dtype), **EXACT)
        assert prototype(model, (rows,)).sites["x"].event_shape == shape


def test_maximum_likelihood_is_probabilistic_pca():
    """σ² is the mean of the discarded eigenvalues (Tipping and Bishop 1999); scikit-learn's `PCA.score` agrees."""
    torch.manual_seed(2)
    x = torch.randn(300, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 1
    values, vectors = torch.linalg.eigh(torch.cov(x.mT))  # divided by n - 1, as in scikit-learn
    values, vectors = values.flip(0), vectors.flip(1)
    variance = values[2:].mean()
    weight = vectors[:, :2] * (values[:2] - variance).sqrt()
    model = LinearGaussian(spec(300, 5), latent_dim=2, weight=weight, bias=x.mean(0), scale=float(variance.sqrt()))
    expected = PCA(2, svd_solver="full").fit(x.numpy()).score(x.numpy())
    assert float(model.log_evidence(x).mean().detach()) == pytest.approx(expected, rel=1e-10)
    # With the covariance divided by n it is the maximum: the gradient vanishes.
    values = values * 299 / 300
    variance = values[2:].mean()
    weight = vectors[:, :2] * (values[:2] - variance).sqrt()
    model = LinearGaussian(spec(300, 5), latent_dim=2, weight=weight, bias=x.mean(0), scale=float(variance.sqrt()))
    for gradient in torch.autograd.grad(model.log_evidence(x).mean(), list(model.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), **EXACT)


def test_diagonal_noise_is_factor_analysis():
    torch.manual_seed(2)
    x = torch.randn(300, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 1
    fitted = Peer(2).fit(x.numpy())
    model = LinearGaussian(
        spec(300, 5),
        latent_dim=2,
        noise="diagonal",
        weight=torch.as_tensor(fitted.components_.T.copy()),
        bias=torch.as_tensor(fitted.mean_),
        scale=torch.as_tensor(fitted.noise_variance_).sqrt(),
    )
    assert float(model.log_evidence(x).mean().detach()) == pytest.approx(fitted.score(x.numpy()), rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "peer"), [("ppca", PCA), ("factor_analysis", Peer)])
def test_svi_reaches_the_maximum_of_scikit_learn(model, peer):
    x = torch.as_tensor(load_wine().data, dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0)
    options = {"steps": 1500, "lr": 0.01, "batch_size": len(x), "heldout": 0, "compile": False, "progress": False}
    run = pyro_vi.fit(f"{model}(latent_dim=2)", "full_normal", x, **options)
    expected = peer(2).fit(x.numpy()).score(x.numpy())
    assert float(run.model.log_evidence(x).mean().detach()) == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variance", "active", "evidence", "total"), [(0.3, 4, -27.541084, 1.2445), (0.1, 8, -1.764220, 4.982636)]
)
def test_latents_below_the_noise_collapse(variance, active, evidence, total):
    """As many latents stay active as eigenvalues of the covariance are above the noise (Lucas et al. 2019).

    At the maximum the posterior is diagonal, KL_d = ½ log(λ_d / s²) on average, and the ELBO is the evidence.
    """
    x = torch.as_tensor(load_digits().data, dtype=torch.float64) / 16
    x = x - x.mean(0)
    options = {"epochs": 250, "lr": 0.005, "batch_size": 128, "heldout": 0, "progress": False}
    model = f"ppca(latent_dim=8, scale={variance**0.5!r}, learn_scale=False)"
    run = pyro_vi.fit(model, "diag_normal", x, **options)
    loc, scale = run.guide.parameters_of(x)["z"]
    kl = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).mean(0).detach()
    assert int((kl > 0.01).sum()) == active
    assert float(kl.sum()) == pytest.approx(total, abs=0.02)
    assert float(run.model.log_evidence(x).mean().detach()) == pytest.approx(evidence, abs=0.02)


def test_names_are_forms_of_the_model():
    assert PPCA(spec(), latent_dim=2).log_scale.shape == ()
    assert FactorAnalysis(spec(), latent_dim=2).log_scale.shape == (3,)
    fixed = PPCA(spec(), latent_dim=2, scale=0.3, learn_scale=False)
    assert [name for name, _ in fixed.named_parameters()] == ["weight", "bias"]
    assert float(fixed.log_scale.exp()) == pytest.approx(0.3)


def test_names_start_from_the_moments_of_the_data():
    """Half of each variance is noise, and half of it is that of A z, on average over the draw of A."""
    x = columns(500) * torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64) + 7
    variance = x.var(0, correction=0)
    torch.manual_seed(0)
    model = FactorAnalysis(spec(500), latent_dim=4000)
    model.start(x)
    torch.testing.assert_close(model.bias.detach(), x.mean(0), **EXACT)
    torch.testing.assert_close((2 * model.log_scale).exp().detach(), variance / 2, **EXACT)
    torch.testing.assert_close(model.weight.detach().square().sum(1), variance / 2, rtol=0.1, atol=0)
    shared = PPCA(spec(500), latent_dim=2)
    shared.start(x)
    assert float((2 * shared.log_scale.detach()).exp()) == pytest.approx(float(variance.mean()) / 2)
    for kept in (PPCA(spec(500), scale=0.3), PPCA(spec(500), scale=0.3, learn_scale=False)):
        kept.start(x)
        assert float(kept.log_scale.detach().exp()) == pytest.approx(0.3)


def test_decode_is_the_mean_and_forward_gives_the_batch_back():
    model, z, x = linear_gaussian(), columns(4, 2), columns()
    weight, bias, _ = dense(model)
    torch.testing.assert_close(model.decode(z).detach(), z @ weight.mT + bias, **EXACT)
    assert model(x) is x
    assert pyro.poutine.trace(model).get_trace(x).nodes["x"]["scale"] == 50 / 8


def test_fixed_it_has_no_parameters_but_the_same_numbers():
    fixed, learned, x = linear_gaussian(learn=False), linear_gaussian(), columns()
    assert list(fixed.parameters()) == []
    assert [name for name, _ in learned.named_parameters()] == ["weight", "bias", "log_scale"]
    torch.testing.assert_close(fixed.log_evidence(x), learned.log_evidence(x).detach(), **EXACT)


def test_given_arrays_are_copied():
    weight = torch.ones(3, 2, dtype=torch.float64)
    model = LinearGaussian(spec(), latent_dim=2, weight=weight)
    with torch.no_grad():
        model.weight.add_(1.0)
    assert (weight == 1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": [[1.0, 2.0]]}, r"weight must have shape \(3, 2\), not \(1, 2\)"),
        ({"bias": [1.0]}, r"bias must have shape \(3,\), not \(1,\)"),
        ({"scale": [1.0, 1.0]}, r"must have shape"),
        ({"scale": -1.0}, "must be positive"),
        ({"noise": "diagonal", "scale": [1.0, 0.0, 1.0]}, "must be positive"),
        ({"noise": "full"}, "must be 'shared', 'diagonal' or 'fixed'"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        LinearGaussian(spec(), latent_dim=2, **options)


def test_data_that_it_has_no_density_for_are_refused():
    with pytest.raises(InputError, match="at least 1"):
        LinearGaussian(spec(), latent_dim=0)
    with pytest.raises(InputError, match="is binary"):
        LinearGaussian(spec(support="boolean"))
    with pytest.raises(InputError, match="takes vectors"):
        LinearGaussian(DataSpec("made up", 5, (2, 2), "real", torch.float64, "made up"))
