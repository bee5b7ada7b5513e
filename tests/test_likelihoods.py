"""Likelihoods: each is normalised over its support with the mean that it states, and what data each goes with."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from catalogue import spec

from pyro_vi.data import load
from pyro_vi.errors import InputError
from pyro_vi.likelihoods import AUTO, LIKELIHOODS, likelihood_of

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
NATURAL = torch.tensor([[-2.0], [0.3], [1.4]], dtype=torch.float64)
LEVELS = {"binomial": 16, "categorical": 4, "discretised_logistic": 16}
SUPPORT = {name: "real" if name.startswith("gaussian") else cls.supports[-1] for name, cls in LIKELIHOODS.items()}


def made(name, support=None, shape=(1,), **options):
    data = dataclasses.replace(spec(support=support or SUPPORT[name]), event_shape=shape)
    return likelihood_of(name, data, **{"levels": LEVELS.get(name)} | options)


def nodes(name: str, support: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and weights of a sum, or of a quadrature, over the support."""
    if name == "continuous_bernoulli" or name.startswith("gaussian"):
        points, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(400))
        return ((points + 1) / 2, weights / 2) if name == "continuous_bernoulli" else (points * 30, weights * 30)
    most = 1 if name == "bernoulli" else LEVELS.get(name, 400)
    points = torch.arange(most + 1.0, dtype=torch.float64)
    return (points / most if support == "unit_interval" else points), torch.ones_like(points)


@pytest.mark.parametrize(
    ("name", "support"),
    [(name, support) for name, cls in LIKELIHOODS.items() for support in cls.supports if support != "boolean"]
    + [("bernoulli", "boolean")],
)
def test_a_likelihood_is_normalised_with_the_mean_that_it_states(name, support):
    law = made(name, support, scale=0.8)
    natural = NATURAL * torch.linspace(1, 0.5, law.outputs, dtype=torch.float64)
    points, weights = nodes(name, support)
    mass = law(natural, law.shared()).log_prob(points.reshape(-1, 1, 1)).exp() * weights.unsqueeze(-1)
    torch.testing.assert_close(mass.sum(0), torch.ones(3, dtype=torch.float64), **TIGHT)
    torch.testing.assert_close((mass * points.unsqueeze(-1)).sum(0), law.mean(natural, law.shared())[..., 0], **TIGHT)


def test_the_numbers_of_a_decoder_give_mean_and_scale():
    law = made("gaussian_scale", shape=(2,), scale=0.5, floor=0.1)
    fn = law(torch.tensor([[1.0, 2.0, 0.0, -800.0]]))
    assert law.numbers == 4
    torch.testing.assert_close(fn.base_dist.loc, torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(fn.base_dist.scale, torch.tensor([[0.6, 0.1]]))


def test_the_floor_bounds_the_density():
    """At most −log(floor √2π) for each feature, however certain the decoder is."""
    law = made("gaussian_scale", floor=0.1)
    natural = torch.tensor([[1.0, -1e6]], dtype=torch.float64)
    assert law(natural).log_prob(torch.ones(1, 1, dtype=torch.float64)).item() == pytest.approx(1.3836465597893728)


def test_categories_are_classes_of_each_feature():
    law = made("categorical", shape=(2,), levels=2)
    natural = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = natural.reshape(5, 3, 2).log_softmax(1)
    x = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(law(natural).log_prob(x), logits[:, 0, 0] + logits[:, 2, 1], **TIGHT)


def test_shares_have_the_mass_of_their_levels():
    share, level = made("binomial", "unit_interval"), made("binomial", "nonnegative_integer")
    x = torch.arange(17, dtype=torch.float64).reshape(-1, 1, 1)
    torch.testing.assert_close(share(NATURAL).log_prob(x / 16), level(NATURAL).log_prob(x), **TIGHT)
    torch.testing.assert_close(share.mean(NATURAL), level.mean(NATURAL) / 16, **TIGHT)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_shapes_and_supports_of_draws(name, shape):
    torch.manual_seed(0)
    law = made(name, shape=shape)
    natural = torch.zeros(7, 5, law.numbers, dtype=torch.float64)
    shared = law.shared()
    fn = law(natural, shared)
    assert (fn.batch_shape, fn.event_shape) == ((7, 5), shape)
    draws = fn.sample()
    assert draws.shape == (7, 5, *shape) == law.mean(natural, shared).shape
    assert name == "categorical" or draws.dtype == torch.float64
    assert bool(fn.support.check(draws).all()) and bool(fn.log_prob(draws).isfinite().all())
    assert shared is None or (shared.shape == (law.features,) and shared.dtype == torch.float64)


def test_every_gradient_reaches_the_numbers_of_the_decoder():
    for name in LIKELIHOODS:
        law = made(name, "boolean" if name == "bernoulli" else None, shape=(2,))
        natural = torch.full((1, law.numbers), 0.3, dtype=torch.float64, requires_grad=True)
        law(natural, law.shared()).log_prob(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
        assert bool((natural.grad.abs() > 0).all()), name


@pytest.mark.parametrize(
    ("support", "name"),
    [
        ("boolean", "bernoulli"),
        ("unit_interval", "continuous_bernoulli"),
        ("nonnegative_integer", "poisson"),
        ("real", "gaussian"),
    ],
)
def test_auto_chooses_the_likelihood_whose_support_is_that_of_the_data(support, name):
    assert made("auto", support).name == name
    assert support in LIKELIHOODS[name].supports and AUTO[support] == name


@pytest.mark.parametrize(("name", "support"), [*itertools.product(LIKELIHOODS, AUTO)])
def test_a_likelihood_without_a_density_at_the_data_is_refused(name, support):
    """Grey pixels under a Bernoulli are no log-density (Loaiza-Ganem and Cunningham, 2019), nor are bits under a normal."""
    if support in LIKELIHOODS[name].supports:
        assert made(name, support).name == name
    else:
        with pytest.raises(InputError, match=f"a {name} likelihood has no density .* use likelihood='auto'"):
            made(name, support)


def test_levels_come_from_the_data_or_the_option():
    digits = load("digits(binarize=False)", seed=0)
    law = likelihood_of("binomial", digits.spec)
    assert law.levels == 16
    fn = law(torch.zeros(4, 64))
    assert bool(fn.log_prob(digits.example(4)[0]).isfinite().all())
    assert likelihood_of("discretised_logistic", digits.spec, levels=32).levels == 32
    assert load("digits").spec.levels is None
    with pytest.raises(InputError, match=r"needs the largest level of 'made up'.*levels=255"):
        made("binomial", levels=None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "gausian"}, "must be one of auto, bernoulli"),
        ({"name": "gaussian", "scale": 0.0}, "scale is a standard deviation and must be positive"),
        ({"name": "gaussian_scale", "floor": -1.0}, "floor is a standard deviation and must be positive"),
        ({"name": "gaussian", "scale": "wide"}, "scale must be a number"),
        (
            {"name": "binomial", "levels": 0, "support": "nonnegative_integer"},
            "levels must be a whole number of at least 1",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        made(**{"support": "real"} | options)


def test_shared_numbers_belong_to_the_model():
    for name, cls in LIKELIHOODS.items():
        law, model = made(name), torch.nn.Module()
        law.register(model)
        assert [n for n, _ in model.named_parameters()] == ([cls.keeps] if cls.keeps and cls.learns else [])
        assert list(model.state_dict()) == ([cls.keeps] if cls.keeps else [])
        if cls.keeps:
            with pytest.raises(TypeError, match=f"needs the model's {cls.keeps}"):
                law(NATURAL)
