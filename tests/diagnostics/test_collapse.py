"""Collapse where the answer is known: probabilistic PCA in closed form, a Gaussian channel, guides and decoders that ignore."""

import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import CATALOGUE, columns, masked_rows_pair, scalars
from sklearn.datasets import load_digits
from torch import nn

from pyro_vi.data import DataSpec
from pyro_vi.diagnostics.collapsing.collapsed import collapse, collapse_of_pair
from pyro_vi.elbo import terms_of_pair
from pyro_vi.errors import InputError
from pyro_vi.guides.exact import Exact
from pyro_vi.guides.prior import Prior
from pyro_vi.models.hierarchical_vae import HierarchicalVAE
from pyro_vi.models.linear_gaussian import LinearGaussian
from pyro_vi.programs import Pair, isolated, pair_and_args


def digits() -> torch.Tensor:
    x = torch.as_tensor(load_digits().data, dtype=torch.float64) / 16
    return x - x.mean(0)


def at_the_maximum(x: torch.Tensor, noise: float, units: int = 8, used: int | None = None) -> LinearGaussian:
    """Probabilistic PCA at its maximum for a fixed noise: A = U (Λ − s²)^½ (Tipping and Bishop 1999, equation 7)."""
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    signal = (values.flip(0)[:units] - noise).clamp(min=0)
    signal[units if used is None else used :] = 0
    spec = DataSpec("made up", len(x), (x.shape[1],), "real", torch.float64, "made up")
    weight = vectors.flip(1)[:, :units] * signal.sqrt()
    return LinearGaussian(spec, latent_dim=units, noise="fixed", scale=noise**0.5, weight=weight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "active", "evidence", "kls"),
    [(0.3, 4, -27.541084, [0.4228, 0.3782, 0.3063, 0.1372, 0, 0, 0, 0]), (0.1, 8, -1.764220, None)],
)
def test_units_of_digits_are_those_of_probabilistic_pca(noise, active, evidence, kls):
    """Lucas et al. 2019, arXiv:1911.02469: a unit collapses if its eigenvalue is below the noise; KL_i = ½ log λ_i / s²."""
    x = digits()
    model = at_the_maximum(x, noise)
    found = collapse(model, Exact(model, (x[:4],)), x, rows=2000)
    assert found.attrs["active"] == found.attrs["usable"] == found.attrs["used"] == active
    assert found.attrs["log_evidence"] == pytest.approx(evidence, abs=1e-6)
    assert found.attrs["best_log_evidence"] == pytest.approx(evidence, abs=1e-6)
    assert float(model.log_evidence(x).mean().detach()) == pytest.approx(found.attrs["log_evidence"], abs=1e-10)
    if kls is None:
        assert float(found.total_kl) == pytest.approx(4.982636, abs=1e-6)
        assert found.attrs["collapsed"] == 0
    else:
        np.testing.assert_allclose(found.kl, kls, atol=1e-4)
        assert found.cause.values.tolist() == [""] * 4 + ["model"] * 4
        np.testing.assert_allclose(found.use.values[4:], 0, atol=1e-10)
    assert found.attrs["verdict"] == "pass"
    numbers = [0.69886, 0.63917, 0.55355, 0.39470, 0.27138, 0.23076, 0.20256, 0.17184]
    np.testing.assert_allclose(found.eigenvalue.values[:8] * noise, numbers, atol=1e-5)


@pytest.mark.slow
def test_a_decoder_that_uses_fewer_directions_than_the_maximum_is_the_optimisers():
    x = digits()[::6]
    x = x - x.mean(0)
    model = at_the_maximum(x, 0.3, used=2)
    found = collapse(model, Exact(model, (x[:4],)), x)
    assert (found.attrs["usable"], found.attrs["used"]) == (4, 2)
    assert found.cause.values.tolist() == ["", "", "optimiser", "optimiser", "model", "model", "model", "model"]
    assert found.attrs["verdict"] == "care"
    values = torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0)[2:4] / 0.3
    # Each direction that is left out costs ½ (λ/s² − 1 − log λ/s²).
    short = float(0.5 * (values - 1 - values.log()).sum())
    assert found.attrs["best_log_evidence"] - found.attrs["log_evidence"] == pytest.approx(short, abs=1e-10)


def channel(rows: int = 500) -> tuple:
    """z | x ~ N(a x, s²), x ~ N(0, 1), as a guide: I(x; z) = ½ log(1 + a²/s²), and q(z) = N(0, a² + s²)."""
    x = torch.randn(rows, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.5).to_event(1))

    return model, guide, x


def test_information_of_a_gaussian_channel_is_bracketed():
    """I = ½ log(1 + .64/.25) = .634885, and KL(N(0, .89) ‖ N(0, 1)) = ½ (.89 − 1 − log .89) = .003267."""
    model, guide, x = channel()
    found = collapse(model, guide, x, seed=3)
    information, marginal = 0.5 * math.log(1 + 0.64 / 0.25), 0.5 * (0.89 - 1 - math.log(0.89))
    for name, true in (("total_information", information), ("marginal_kl", marginal)):
        lower, upper = float(found[f"{name}_lower"]), float(found[f"{name}_upper"])
        error = 4 * float(found[f"{name}_lower_se"])
        assert lower - error < true < upper + error
        assert 0 < upper - lower < 0.02
    np.testing.assert_allclose(found.information_lower, float(found.total_information_lower), rtol=1e-10)
    assert float(found.variance[0]) == pytest.approx(0.64 * float(x.var(correction=1)), rel=1e-10)
    assert found.attrs["ceiling"] == pytest.approx(math.log(500))


def test_kl_is_information_and_marginal_kl():
    """Hoffman and Johnson 2016: bounds of I with the opposite bounds of the marginal KL; the closed form within error."""
    model, guide, x = channel()
    found = collapse(model, guide, x)
    for one, other in (("lower", "upper"), ("upper", "lower")):
        total = found[f"total_information_{one}"] + found[f"marginal_kl_{other}"]
        np.testing.assert_allclose(total, found.sampled_kl, rtol=1e-10)
    assert abs(float(found.sampled_kl - found.total_kl)) < 4 * float(found.sampled_kl_se)
    kl = 0.5 * (0.25 + 0.64 * x.square() - 1) - math.log(0.5)
    np.testing.assert_allclose(found.total_kl, float(kl.mean()), rtol=1e-10)
    np.testing.assert_allclose(found.kl, float(kl.mean()), rtol=1e-10)
    np.testing.assert_allclose(found.kl_se, float(kl.std()) / 500**0.5, rtol=1e-10)


@pytest.mark.slow
def test_the_bounds_by_runs_of_the_guide_are_those_at_once():
    """The guide's own density at other data's values; a guide whose second site depends on the first cannot be broadcast."""
    model, guide, x = channel(40)

    def two(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("u", dist.Normal(z, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def chained(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.8 * x, 0.5).to_event(1))
            pyro.sample("u", dist.Normal(z, 1.0).to_event(1))  # tells nothing about x that z does not tell

    one, other = collapse(model, guide, x, draws=3), collapse(two, chained, x, draws=3)
    assert one.attrs["ceiling"] == other.attrs["ceiling"]
    for side in ("lower", "upper"):
        name = f"total_information_{side}"
        assert abs(float(one[name] - other[name])) < 4 * float(np.hypot(one[f"{name}_se"], other[f"{name}_se"]))
    np.testing.assert_allclose(other.kl[1], 0, atol=1e-12)


class Decoder(nn.Module):
    """x | z ~ N(tanh(z_0), .7²): it ignores z_1."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :1].tanh(), 0.7).to_event(1), obs=x)


@pytest.mark.slow
def test_a_guide_that_is_the_prior_is_at_fault_where_the_decoder_uses_the_unit():
    """The gain is KL(prior ‖ posterior): log p(x) − E_prior log p(x | z), here by quadrature."""
    x = torch.linspace(-0.8, 0.8, 60, dtype=torch.float64).unsqueeze(1)
    model = Decoder()
    found = collapse(model, Prior(model, (x,)), x)
    assert found.cause.values.tolist() == ["guide", "model"]
    assert found.attrs["verdict"] == "fail" and found.attrs["active"] == 0
    z = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    weight = dist.Normal(0.0, 1.0).log_prob(z) + math.log(16 / 20000)
    density = dist.Normal(z.tanh(), 0.7).log_prob(x)
    gain = (density + weight).logsumexp(1) - (density * weight.exp()).sum(1)
    # The mean of few weights is low on average, by Var(w) / 2K E[w]².
    low = (((2 * density + weight).logsumexp(1) - 2 * (density + weight).logsumexp(1)).exp() - 1) / 64
    expected, error = float((gain - low).mean()), 4 * float(found.gain_se[0])
    assert expected - error < float(found.gain[0]) < float(gain.mean()) + error
    assert error < 0.5 * expected
    assert float(found.gain[1]) == pytest.approx(0, abs=1e-10) and float(found.use[1]) == pytest.approx(0, abs=1e-10)
    assert any("z[0]" in text and "guide has collapsed" in text for text in found.attrs["sentences"])


@pytest.mark.slow
def test_kl_of_a_layer_is_that_given_the_layer_above():
    """Of the prior as a guide every unit is at its prior, whatever its mean does; nothing is known about the datum."""
    model = HierarchicalVAE(
        DataSpec("made up", 8, (3,), "real", torch.float64, "made up"), latent_dims=(3, 2), hidden=(4,)
    )
    x = columns()
    found = collapse(model, Prior(model, (x,)), x, draws=4)
    assert sorted(found.unit.values.tolist()) == ["z1[0]", "z1[1]", "z1[2]", "z2[0]", "z2[1]"]
    np.testing.assert_allclose(found.kl, 0, atol=1e-10)
    assert found.prior.all()
    np.testing.assert_allclose(found.site_kl, 0, atol=1e-10)


def test_dependent_units_have_the_kl_of_each_by_itself_and_their_sum_is_below_the_whole():
    """KL(q ‖ p) = Σ KL(q_u ‖ p_u) + the total correlation of q, ½ (Σ log S_uu − log det S) for a normal."""
    x = columns(50)
    spec = DataSpec("made up", 50, (3,), "real", torch.float64, "made up")
    model = LinearGaussian(spec, latent_dim=2, weight=[[1.0, 0.7], [0.3, 1.0], [1.0, 1.0]])
    found = collapse(model, Exact(model, (x,)), x)
    covariance = model.posterior(x)["z"].covariance_matrix[0].detach()
    correlation = 0.5 * (covariance.diagonal().log().sum() - covariance.logdet())
    assert float(found.total_kl - found.kl.sum()) == pytest.approx(float(correlation), rel=1e-10)
    assert found.attrs["source"] == {"z": "marginal"}


@pytest.mark.slow
def test_of_a_flow_the_kl_of_a_unit_is_at_least_that_of_its_moments():
    """An affine flow is a normal, so that the bound is its KL."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    def guide(x):
        base = dist.Normal(x.new_zeros(2), 1.0).to_event(1)
        shear = torch.tensor([[0.5, 0.0], [0.3, 0.4]], dtype=x.dtype)
        with pyro.plate("data", len(x)):
            lower = dist.transforms.LowerCholeskyAffine(0.5 * x.expand(-1, 2), shear)
            pyro.sample("z", dist.TransformedDistribution(base.expand([len(x)]), [lower]))

    x = columns(60, 1)
    found = collapse(model, guide, x, draws=400)
    assert found.attrs["source"] == {"z": "least"}
    variance = torch.tensor([0.25, 0.25], dtype=torch.float64)
    kl = 0.5 * (variance + (0.5 * x).square() - 1 - variance.log())
    error = math.sqrt(2 / 400 / 60)  # of each number by 400 draws of 60 data, at most
    np.testing.assert_allclose(found.kl, kl.mean(0), atol=4 * error)
    assert float(found.total_kl) > float(found.kl.sum())


def test_discrete_units_have_an_entropy_and_their_information():
    """q(b = 1 | x) of .9 for half of the data and .1 for the others: I = log 2 − H(.9) at most, H(.9) = .325083."""

    def model(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(2 * b - 1, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(torch.where(x > 0, 0.9, 0.1)))

    x = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(200)
    found = collapse(model, guide, x)
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert float(found.entropy[0]) == pytest.approx(entropy, rel=1e-6)
    assert float(found.kl[0]) == pytest.approx(math.log(2) - entropy, rel=1e-6)
    error = 4 * float(found.information_lower_se[0])
    assert float(found.information_lower[0]) - error < math.log(2) - entropy < float(found.information_upper[0]) + error


def test_a_summed_state_has_its_exact_posterior():
    """The same model with the state left to enumeration: responsibilities, their entropy and KL by hand."""

    def model(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Categorical(x.new_tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(2.0 * b - 1, 1.0), obs=x)

    x = torch.linspace(-2, 2, 11, dtype=torch.float64)
    found = collapse(model, lambda x: None, x)
    logits = torch.stack([dist.Normal(m, 1.0).log_prob(x) for m in (-1.0, 1.0)], -1) + x.new_tensor([0.3, 0.7]).log()
    states = logits.softmax(-1)
    kl = (states * (states.log() - x.new_tensor([0.3, 0.7]).log())).sum(-1)
    np.testing.assert_allclose(found.kl, float(kl.mean()), rtol=1e-10)
    np.testing.assert_allclose(found.entropy, float(-(states * states.log()).sum(-1).mean()), rtol=1e-10)
    information = (states * (states.log() - states.mean(0).log())).sum(-1).mean()
    np.testing.assert_allclose(found.information_lower, float(information), rtol=1e-10)


def test_masked_data_do_not_count():
    """The first five of eight data are part of the model: the means are over these, and no mixture over all is defined."""
    model, guide = masked_rows_pair()
    x = scalars()
    found = collapse(model, guide, x)
    scale = x.new_tensor([0.7, 0.3])
    kl = 0.5 * (scale.square() + (0.4 * x[:5, None]).square() - 1) - scale.log()
    np.testing.assert_allclose(found.kl, kl.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found.variance, float((0.4 * x[:5]).var()), rtol=1e-10)
    assert math.isnan(float(found.total_information_lower)) and found.information_lower.notnull().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_precisions_give_double_numbers(dtype):
    x = columns().to(dtype)
    spec = DataSpec("made up", 8, (3,), "real", dtype, "made up")
    model = LinearGaussian(spec, latent_dim=2, weight=[[1.0, 0.7], [0.3, 1.0], [1.0, 1.0]])
    found = collapse_of_pair(Pair(model, Exact(model, (x,))), (x,))
    assert found.kl.dtype == np.float64 and "usable" in found.attrs


def test_what_has_no_collapse_says_so():
    entry = CATALOGUE["no_plate"]
    with pytest.raises(InputError, match="the model has no latents of single data"):
        collapse(*entry.build(), entry.batch)
    model, guide, x = channel(1)
    with pytest.raises(InputError, match="there is 1 row; give at least 2"):
        collapse(model, guide, x)
    with pytest.raises(InputError, match="draws must be"):
        collapse(*channel(4), draws=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_pairs_of_the_catalogue_have_the_kl_of_their_terms(name):
    """The KL of local sites, per datum, is that of many draws of the terms; other pairs have a reason."""
    entry = CATALOGUE[name]
    pair, args = pair_and_args(*entry.build(), entry.batch)
    try:
        found = collapse_of_pair(pair, args, draws=60)
    except InputError as error:
        assert re.search(
            "no latents of single data|no density|scaled|different masks|own minibatch|factor|there is 1 row",
            str(error),
        )
        return
    with isolated(1, validation=False), torch.no_grad():
        draws = [terms_of_pair(pair, args, kl="sampled") for _ in range(60)]
    local = [site.name for site in draws[0].sites.values() if site.local and site.latent]
    values = torch.stack([sum(one.sites[name].divergence for name in local).mean() for one in draws])
    error = 4 * (2 * float(values.var()) / 60) ** 0.5
    assert float(found.total_kl) == pytest.approx(float(values.mean()), abs=error + 1e-6)
