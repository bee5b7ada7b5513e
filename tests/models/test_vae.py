"""The VAE: its likelihoods, shapes, and what it refuses."""

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import BITS, columns, spec
from pyro import poutine
from torch import nn

from pyro_vi.data.loading import load
from pyro_vi.elbo.decomposition import terms
from pyro_vi.errors import InputError
from pyro_vi.models.vae import VAE
from pyro_vi.priors import PRIORS
from pyro_vi.programs.build import build_pair
from pyro_vi.programs.layout import prototype


def prior_guide(latent_dim: int):
    def guide(x):
        with pyro.plate("data", 50, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(torch.zeros(latent_dim, dtype=x.dtype), 1.0).to_event(1))

    return guide


def test_bernoulli_likelihood_is_minus_the_cross_entropy():
    torch.manual_seed(0)
    model = VAE(spec(support="boolean"), latent_dim=2)
    z = columns(features=2)
    found = model.observation(z).log_prob(BITS)
    loss = nn.functional.binary_cross_entropy_with_logits(model.decoder(z), BITS, reduction="none").sum(-1)
    torch.testing.assert_close(found, -loss, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.decode(z), model.decoder(z).sigmoid())


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian_fixed"])
def test_gaussian_likelihood_is_the_squared_error_at_its_scale(likelihood):
    torch.manual_seed(0)
    model = VAE(spec(), latent_dim=2, likelihood=likelihood, scale=0.5)
    z, x = columns(features=2), columns()
    error = ((x - model.decoder(z)) / 0.5).square().sum(-1)
    expected = -0.5 * error - 3 * torch.log(torch.tensor(0.5 * (2 * torch.pi) ** 0.5, dtype=x.dtype))
    torch.testing.assert_close(
        model.observation(z).log_prob(x), expected, rtol=1e-6, atol=1e-6
    )  # the scale was set in float32
    names = {name for name, _ in model.named_parameters()}
    assert ("log_scale" in names) == (likelihood == "gaussian")
    assert model.decode(z).shape == (8, 3)


@pytest.mark.parametrize(
    ("support", "likelihood"),
    [
        ("boolean", "bernoulli"),
        ("real", "gaussian"),
        ("unit_interval", "continuous_bernoulli"),
        ("nonnegative_integer", "poisson"),
    ],
)
def test_auto_follows_the_support(support, likelihood):
    assert VAE(spec(support=support)).likelihood == likelihood


def test_prior_is_standard_normal_in_the_data_plate():
    torch.manual_seed(0)
    layout = prototype(VAE(spec(support="boolean"), latent_dim=4), (BITS,))
    z = layout.sites["z"]
    assert (z.event_shape, z.plates, z.distribution, z.dtype) == ((4,), ("data",), "Independent(Normal)", torch.float64)
    assert layout.plates["data"].size == 50
    found = terms(VAE(spec(support="boolean"), latent_dim=4), prior_guide(4), BITS, seed=1)
    torch.testing.assert_close(found.kl, torch.zeros(8, dtype=torch.float64))


def test_a_learned_prior_takes_the_place_of_the_standard_normal():
    torch.manual_seed(0)
    model = VAE(spec(support="boolean"), latent_dim=2, prior="mixture", components=1)
    with torch.no_grad():
        model.prior.loc.fill_(1.0)
        model.prior.log_scale.fill_(0.5)
    z = columns(features=2)
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(BITS)
    trace.compute_log_prob()
    expected = dist.Normal(1.0, torch.full_like(z, 0.5).exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(trace.nodes["z"]["unscaled_log_prob"], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prior", PRIORS)
def test_every_parameter_of_a_learned_prior_is_trained(prior):
    pair = build_pair(
        f"vae(latent_dim=2, prior='{prior}', components=3)", "diag_normal(hidden=(4,))", load(columns(20))
    )
    terms(pair.model, pair.guide, columns(), kl="sampled", seed=1).loss.sum().backward()
    learned = {name: value for name, value in pair.model.named_parameters() if name.startswith("prior.")}
    assert bool(learned) == (prior != "normal")
    assert all(value.grad is not None and bool(value.grad.abs().sum() > 0) for value in learned.values())


def test_the_parameters_of_the_default_keep_their_names():
    names = {"decoder.0.weight", "decoder.0.bias", "decoder.2.weight", "decoder.2.bias"}
    assert set(VAE(spec(support="boolean")).state_dict()) == names
    assert set(VAE(spec()).state_dict()) == {*names, "log_scale"}


def test_parameters_have_the_dtype_of_the_data():
    for options in (
        *({"likelihood": name} for name in ("gaussian", "gaussian_fixed", "negative_binomial")),
        *({"prior": name} for name in PRIORS),
    ):
        model = VAE(spec(support="nonnegative_integer"), **options)
        floats = (value.dtype for value in model.state_dict().values() if value.is_floating_point())
        assert set(floats) == {torch.float64}


def test_pictures_keep_their_shape():
    data = dataclasses.replace(spec(support="boolean"), event_shape=(4, 5))
    model = VAE(data, latent_dim=2)
    assert model.decode(torch.zeros(7, 3, 2, dtype=torch.float64)).shape == (7, 3, 4, 5)
    assert model.observation(torch.zeros(3, 2, dtype=torch.float64)).log_prob(
        torch.ones(3, 4, 5, dtype=torch.float64)
    ).shape == (3,)
    gaussian = VAE(dataclasses.replace(data, support="real"), latent_dim=2)
    assert gaussian.observation(torch.zeros(3, 2, dtype=torch.float64)).log_prob(
        torch.ones(3, 4, 5, dtype=torch.float64)
    ).shape == (3,)


def test_it_is_built_for_the_embedded_data():
    data = load("digits")
    model = VAE(data.spec, latent_dim=2, hidden=(16, 8), activation="relu")
    assert model.likelihood == "bernoulli"
    assert [layer.out_features for layer in model.decoder if isinstance(layer, nn.Linear)] == [16, 8, 64]
    assert model(data.example(5)[0]).shape == (5, 64)


def test_a_likelihood_without_density_at_the_data_is_refused():
    with pytest.raises(InputError, match="use likelihood='auto'"):
        VAE(spec(support="unit_interval"), likelihood="bernoulli")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"likelihood": "gausian"}, "one of auto, bernoulli"),
        ({"latent_dim": 0}, "at least 1"),
        ({"scale": 0.0}, "must be positive"),
        ({"hidden": (0,)}, "positive whole numbers"),
        ({"activation": "sine"}, "activation"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        VAE(spec(), **options)
