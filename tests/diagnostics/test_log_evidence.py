"""The evidence: exact, and by importance sampling, where the exact one is known."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import CATALOGUE, WrongGuide, columns, conjugate_model, exact_pair, linear_gaussian, number, scalars
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, init_to_mean

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


@pytest.mark.parametrize("particles", [2, 5, 10, 20])
def test_few_draws_of_a_wrong_guide_do_not_pass(particles):
    """The guide is 28 standard deviations away, so that one draw carries nearly all the weight."""

    def far(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 20, 0.5**0.5))

    found = evidence(conjugate_model, far, scalars(), method="iw", particles=particles)
    assert found.attrs["verdict"] == "fail"


def standard_normal(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(number(0.0), 1.0))


def test_the_sentence_of_one_datum_has_the_error_of_its_draws():
    """A standard error over data needs two of them."""
    found = evidence(conjugate_model, standard_normal, scalars(1), method="prior", particles=100)
    assert f"± {float(found.mc_se[0]):.3f} nats" in found.attrs["sentences"][0]
    assert "nan" not in " ".join(found.attrs["sentences"])


@pytest.mark.slow
def test_importance_sampling_estimates_the_evidence_within_its_own_error():
    x, model = columns(), linear_gaussian()
    found = evidence(model, WrongGuide(), x, method="iw", particles=200_000, seed=1)
    exact = model.log_evidence(x).detach().numpy()
    reliable = found.ess.values > 100  # of few effective draws the delta method says nothing
    assert reliable.sum() >= 6
    assert (abs(found.log_evidence - exact) < 4 * found.mc_se)[reliable].all()
    assert (found.mc_se.values[reliable] < 0.1).all()
    assert ((found.ess > 1) & (found.ess < 200_000)).all()


@pytest.mark.slow
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


def test_a_part_of_the_data_is_refused_where_latents_are_shared():
    entry = CATALOGUE["global"]
    with pytest.raises(InputError, match="plate 'data' holds 8 of its 50 rows, and 'w' is shared by all of them"):
        evidence(*entry.build(), entry.batch, particles=5)


def test_shared_latents_have_the_evidence_of_the_whole_data_set():
    """w ~ N(0, 2²), x_n | w ~ N(w, 1): x_1..N is normal with covariance 1 + 4, in nats per data set and per datum."""
    x = scalars(40) + 1
    variance = 1 / (1 / 4 + 40)

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros_like(x[0]), 2.0))
        with pyro.plate("data", 40, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(variance * x.sum(), 1.2 * variance**0.5))

    exact = float(dist.MultivariateNormal(torch.zeros_like(x), torch.eye(40).double() + 4).log_prob(x))
    eager, compiled = (evidence(model, guide, x, particles=2000, compile=mode) for mode in (False, "auto"))
    assert eager.log_evidence.dims == () and eager.attrs["per"] == "data set"
    assert abs(eager.attrs["total"] - exact) < 4 * float(eager.mc_se)
    assert abs(eager.attrs["value"] - eager.attrs["total"] / 40) < 1e-12
    np.testing.assert_allclose(compiled.log_evidence, eager.log_evidence, rtol=1e-9)


def test_local_latents_beside_shared_ones_are_integrated_by_the_same_draw():
    """w ~ N(0, 1), z_n ~ N(w, 1), x_n ~ N(z_n, 1): covariance 2 + 1; with the exact guide each draw gives it."""
    x = scalars(6)
    precision = 1 + 6 / 2  # of w given x: each x_n | w ~ N(w, 2)

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros_like(x[0]), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        w = pyro.sample("w", dist.Normal(x.sum() / 2 / precision, precision**-0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((w + x) / 2, 0.5**0.5))

    exact = float(dist.MultivariateNormal(torch.zeros_like(x), 2 * torch.eye(6).double() + 1).log_prob(x))
    found = evidence(model, guide, x, particles=3)
    np.testing.assert_allclose(found.attrs["total"], exact, **EXACT)
    assert np.isnan(found.khat)  # the weights are equal


def mixture(x):
    with pyro.plate("data", 50, subsample=torch.arange(len(x))):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7]).double()), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(torch.tensor([-1.0, 2.0]).double()[k], 0.5), obs=x)


def nothing(x):
    pass


def test_a_mixture_whose_states_are_all_summed_has_the_exact_evidence():
    x = scalars()
    found = evidence(mixture, nothing, x)
    parts = torch.stack([dist.Normal(m, 0.5).log_prob(x) + math.log(w) for m, w in ((-1.0, 0.3), (2.0, 0.7))])
    np.testing.assert_allclose(found.log_evidence, parts.logsumexp(0), rtol=1e-7)  # the weights are float32
    assert found.attrs["method"] == "enum" and (found.mc_se == 0).all()
    assert found.attrs["note"] == "'k' summed over all states"


@pytest.mark.parametrize("plate", [True, False])
def test_a_hidden_markov_model_has_the_evidence_of_the_forward_algorithm(plate):
    """Sequences in the data plate: a number for each; one sequence in no plate: one number."""
    steps = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    means, x = torch.tensor([-1.0, 1.0], dtype=torch.float64), columns(4, 20)

    def chain(x):
        k = torch.tensor(0)
        for t in pyro.markov(range(x.shape[-1])):
            k = pyro.sample(f"k/{t}", dist.Categorical(steps[k]), infer={"enumerate": "parallel"})
            pyro.sample(f"x/{t}", dist.Normal(means[k], 1.0), obs=x[..., t])

    def sequences(x):
        with pyro.plate("sequences", len(x)):
            chain(x)

    alpha = steps[0].log() + dist.Normal(means, 1.0).log_prob(x[:, :1])
    for t in range(1, 20):
        alpha = (alpha[:, :, None] + steps.log()).logsumexp(1) + dist.Normal(means, 1.0).log_prob(x[:, t : t + 1])
    exact = alpha.logsumexp(-1)
    if plate:
        np.testing.assert_allclose(evidence(sequences, nothing, x).log_evidence, exact, **EXACT)
    else:
        np.testing.assert_allclose(evidence(chain, nothing, x[0]).attrs["total"], exact[0], **EXACT)


def test_a_state_is_summed_inside_the_weight_of_the_latents_that_are_drawn():
    """k ~ Bernoulli(.3), z | k ~ N(2k, 1), x | z ~ N(z, 1): x is a mixture of N(0, 2) and N(2, 2)."""
    x = scalars()

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(number(0.3)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(2 * k, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 0.3, 1.0))

    found = evidence(model, guide, x, particles=4000)
    parts = torch.stack([dist.Normal(m, 2**0.5).log_prob(x) + math.log(w) for m, w in ((0.0, 0.7), (2.0, 0.3))])
    assert found.attrs["method"] == "iw"
    assert (abs(found.log_evidence - parts.logsumexp(0).numpy()) < 4 * found.mc_se).all()


def conjugate(*, mask=None, scale=1.0):
    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=True if mask is None else mask), poutine.scale(scale=scale):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def guide_of(draw, **around):
    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=around.get("mask", True)):
            draw(x)

    return guide


def test_masked_rows_have_the_evidence_0():
    """A row that both programs mask is no data: log p is 0, and N(0, 2) for the other."""
    x, seen = scalars(2), torch.tensor([True, False])
    guide = guide_of(lambda x: pyro.sample("z", dist.Normal(x / 2, 0.5**0.5)), mask=seen)
    found = evidence(conjugate(mask=seen), guide, x, particles=5)
    np.testing.assert_allclose(
        found.log_evidence, [dist.Normal(number(0.0), 2**0.5).log_prob(x[0]), 0.0], rtol=1e-10, atol=1e-10
    )


def draw_factor(x):
    pyro.sample("z", dist.Normal(x / 2, 0.7))
    pyro.factor("f", -3 + 0 * x, has_rsample=True)


def draw_observed(x):
    pyro.sample("z", dist.Normal(x / 2, 0.7))
    pyro.sample("x", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "draw", "says"),
    [
        (
            conjugate(),
            lambda x: pyro.sample("z", dist.Delta(x / 2)),
            "MAP: no ELBO, no evidence.*a point estimate of 'z'",
        ),
        (conjugate(), draw_factor, "the guide has a factor 'f'"),
        (conjugate(), draw_observed, "the guide draws 'x', which the model observes"),
        (conjugate(scale=2.0), lambda x: pyro.sample("z", dist.Normal(x / 2, 0.7)), "site 'z' is scaled by 2"),
        (
            conjugate(mask=torch.tensor([True, False])),
            lambda x: pyro.sample("z", dist.Normal(x, 1.0)),
            "'z' has different masks",
        ),
    ],
)
def test_a_weight_that_is_no_ratio_of_densities_is_refused(model, draw, says):
    with pytest.raises(InputError, match=says):
        evidence(model, guide_of(draw), scalars(2), particles=5)


def test_an_unmarked_latent_that_the_guide_lacks_is_refused():
    with pytest.raises(InputError, match="the guide has no site 'z' and the model does not sum over it"):
        evidence(conjugate(), nothing, scalars(), particles=5)


def test_khat_says_that_the_standard_error_is_too_small():
    """z ~ Student t with 2 degrees of freedom, guide N(0, .7²): the weights have no variance."""
    x = torch.zeros(4, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(2.0, torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(0.01 * z, 5.0), obs=x)

    found = evidence(model, guide_of(lambda x: pyro.sample("z", dist.Normal(torch.zeros_like(x), 0.7))), x)
    assert (found.khat > 0.5).all() and "k-hat is above 0.7 for" in found.attrs["note"]


def test_what_cannot_be_had_is_refused():
    entry = CATALOGUE["masked"]
    with pytest.raises(InputError, match="no closed form"):
        evidence(*entry.build(), scalars(), method="exact")
    with pytest.raises(InputError, match="at least 2"):
        evidence(*entry.build(), scalars(), particles=1)


def _mean(x, missing=None, scale=1.0):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, scale), obs=x)


def _posterior(x, missing=None, scale=1.0):
    n, precision = len(x), scale**-2
    sd = (1 + n * precision) ** -0.5
    pyro.sample("mean", dist.Normal(sd**2 * precision * x.sum(), sd))


def _log_evidence(x, scale=1.0):
    cov = torch.ones(len(x), len(x)) + scale**2 * torch.eye(len(x))
    return float(dist.MultivariateNormal(torch.zeros(len(x)), cov.to(x)).log_prob(x))


@pytest.mark.parametrize("form", ["dictionary in a tuple", "keyword arguments", "None"])
def test_arguments_of_all_kinds_give_the_exact_evidence(form):
    # Under the exact posterior each weight is the evidence.
    x = torch.tensor([0.3, -1.2, 0.8, 2.1], dtype=torch.float64)
    model, guide, batch = _mean, _posterior, (x, None)
    if form == "keyword arguments":
        batch = {"x": x, "scale": 1.5}
    if form == "dictionary in a tuple":
        model, guide, batch = (
            (lambda d, s: _mean(d["x"], scale=s)),
            (lambda d, s: _posterior(d["x"], scale=s)),
            ({"x": x}, 1.5),
        )
    found = evidence(model, guide, batch, particles=20)
    assert found.attrs["total"] == pytest.approx(_log_evidence(x, 1.0 if form == "None" else 1.5), rel=1e-9)


def test_a_minibatch_of_a_sequential_plate_has_no_evidence():
    x = torch.zeros(6)

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for row in pyro.plate("data", len(x), subsample_size=3):
            pyro.sample(f"x_{row}", dist.Normal(mean, 1.0), obs=x[row])

    with pytest.raises(InputError, match="plate 'data' holds 3 of its 6 rows"):
        evidence(model, _posterior, x, particles=20)


def test_an_empty_site_is_no_point_estimate():
    x = torch.tensor([0.3, -1.2, 0.8, 2.1])

    def model(x):
        pyro.sample("empty", dist.Normal(torch.zeros(0), 1.0).to_event(1))
        _mean(x)

    found = [
        evidence(program, AutoDiagonalNormal(program, init_loc_fn=init_to_mean, init_scale=0.5), x, particles=50)
        for program in (_mean, model)
    ]
    assert found[0].attrs["total"] == pytest.approx(found[1].attrs["total"], rel=1e-6)
