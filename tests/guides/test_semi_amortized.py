"""The semi-amortized guide: many steps reach the best diagonal normal, and gradients go through them."""

import copy
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from binding_toys import bind_one
from catalogue import BATCH, CATALOGUE, NUM_DATA, columns, exact_elbo, linear_gaussian, number, scalars
from torch import nn

import pyro_vi
from pyro_vi.amortized.refining import fixed_normals, refined
from pyro_vi.elbo.decomposition import terms
from pyro_vi.errors import InputError
from pyro_vi.estimators.table import get
from pyro_vi.guides.semi_amortized import SemiAmortized
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.layout import prototype

COUNTS = torch.tensor([0.0, 1.0, 4.0, 9.0], dtype=torch.float64)


def guide_for(model, batch, **options) -> SemiAmortized:
    """A small guide of any program: a function is bound first, as by `build_pair`."""
    bound = model if isinstance(model, nn.Module) else bind_one(model, batch)
    return SemiAmortized(bound, batch, **{"hidden": (4,), **options})


def fitted(guide, *batch):
    """q of site z, by itself."""
    with torch.no_grad(), isolated(1):
        return pyro.poutine.trace(guide).get_trace(*batch).nodes["z"]["fn"]


class Curved(nn.Module):
    """A positive site that all data share, and a local site."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.4, -0.3, 0.8], dtype=torch.float64))

    def forward(self, x):
        a, b, c = self.theta
        s = pyro.sample("s", dist.Gamma(2 + a.exp(), number(1.5)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), b.exp()).to_event(1))
            pyro.sample("x", dist.Poisson((c + z.sum(-1) * s.log()).exp()), obs=x)


def test_many_steps_from_an_untrained_encoder_reach_the_best_diagonal_normal():
    """The gap is then ½ (Σ log P_ii − log det P), with P the precision of the posterior."""
    model, x = linear_gaussian(), columns()
    with torch.no_grad():
        precision = model.posterior(x)["z"].precision_matrix
        best = (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - torch.logdet(precision)) / 2
        gaps = [
            model.log_evidence(x) - exact_elbo(model, fitted(guide_for(model, (x,), steps=steps), x), x)
            for steps in (1, 5, 30)
        ]
    torch.testing.assert_close(gaps[2], best, rtol=0, atol=1e-9)
    assert gaps[0].mean() > 3 * gaps[1].mean()


@pytest.mark.slow
def test_with_few_draws_only_the_means_are_refined():
    """The mean of a pair of opposite draws is exact for a quadratic log p: μ goes to the posterior's mean."""
    model, x = linear_gaussian(), columns()
    guide = guide_for(model, (x,), steps=100, draws=2)
    with torch.no_grad():
        torch.testing.assert_close(fitted(guide, x).mean, model.posterior(x)["z"].mean, rtol=1e-6, atol=1e-6)
        start = dict(super(SemiAmortized, guide).numbers(guide.frame.call((x,), {})))["z"]["log_scale"].exp()
        assert torch.equal(fitted(guide, x).stddev, guide.q["z"].spread * start)
    assert guide_for(model, (x,)).draws == 8


def test_given_a_shared_draw_the_local_sites_are_refined_to_its_posterior():
    """w is drawn first; given w, the posterior of z_n is normal, and q(z_n | w) reaches it for each of many draws of w."""
    (x,) = CATALOGUE["global"].batch
    guide = guide_for(CATALOGUE["global"].build()[0], (x,), steps=30)
    with torch.no_grad(), isolated(1), pyro.plate("_particles", 3, dim=-2):
        nodes = pyro.poutine.trace(guide).get_trace(x).nodes
    w, q = nodes["w"]["value"], nodes["z"]["fn"]
    precision = 1 + 1 / 0.49
    assert w.shape == (3, 1)
    torch.testing.assert_close(q.mean, (w + x / 0.49) / precision, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(q.stddev, torch.full_like(q.mean, precision**-0.5), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_are_those_of_finite_differences(steps):
    """Through the steps, for parameters of the model, of the encoder, of the shared site and of the rates."""
    model = Curved()
    guide = guide_for(model, (COUNTS,), steps=steps)
    parameters = [
        model.theta,
        guide.q["z"].head.bias,
        guide.q["s"].loc,
        guide.log_rate["z"],
        guide.encoder.network.body[0].bias,
    ]

    def elbo():
        return terms(model, guide, COUNTS, seed=3, kl="sampled").elbo.sum()

    gradients = torch.autograd.grad(elbo(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        with torch.no_grad():
            parameter[0] += 1e-5
            above = elbo()
            parameter[0] -= 2e-5
            below = elbo()
            parameter[0] += 1e-5
        assert gradient[0].item() == pytest.approx((above - below).item() / 2e-5, rel=1e-5, abs=1e-7)
        assert gradient[0].item() != 0


def test_a_datum_never_ends_below_its_start():
    """A function on which full steps overshoot: each of the kept steps rises, and some rows keep their start."""
    center = torch.tensor([0.0, 5.0, 0.01], dtype=torch.float64).unsqueeze(-1)

    def elbo(state):
        loc, log_scale = state
        return -(100 * (loc - center).square() + (10 * (loc - center)).cos() + log_scale.square()).sum(-1)

    start = [torch.zeros(3, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)]
    rates = [torch.full((2,), 20.0, dtype=torch.float64)]
    values = [elbo(refined(elbo, start, rates, steps)) for steps in (0, 1, 2, 15)]
    assert all(bool((after >= before).all()) for before, after in pairwise(values))
    assert bool((values[1] == values[0]).any())
    assert bool((values[3] > values[0]).all())


@pytest.mark.parametrize(("draws", "size"), [(8, 3), (8, 4), (4, 6)])
def test_the_noise_has_the_moments_of_normals(draws, size):
    noise = fixed_normals(draws, size)
    assert torch.equal(noise, fixed_normals(draws, size))
    torch.testing.assert_close(noise.mean(0), torch.zeros(size, dtype=noise.dtype))
    covariance = noise.mT @ noise / draws
    torch.testing.assert_close(covariance.diagonal(), torch.ones(size, dtype=noise.dtype))
    if draws >= 2 * size:
        torch.testing.assert_close(covariance, torch.eye(size, dtype=noise.dtype))


@pytest.mark.parametrize(
    "name",
    [
        "conjugate",
        "global",
        "inner_subsample",
        "nested_inside",
        "nested_outside",
        "masked",
        "masked_rows",
        "scaled",
        "vae",
    ],
)
def test_it_goes_with_the_models_of_the_catalogue(name):
    entry = CATALOGUE[name]
    model = bind_one(entry.build()[0], entry.batch)
    guide = guide_for(model, entry.batch, steps=2)
    pair = pair_of(model, guide, entry.batch)
    found = terms(pair.model, pair.guide, entry.batch, seed=1)
    assert {n: site.local for n, site in found.sites.items() if site.latent} == entry.local
    found.loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in pair.guide.parameters())
    ours, theirs = prototype(guide, entry.batch), prototype(pair.model, entry.batch)
    for site in ours.latents:
        assert (ours.sites[site].batch_shape, ours.sites[site].plates) == (
            theirs.sites[site].batch_shape,
            theirs.sites[site].plates,
        )


def test_masked_rows_keep_their_start():
    """They have no term in the ELBO, and nothing to refine."""
    entry = CATALOGUE["masked_rows"]
    guide = guide_for(entry.build()[0], entry.batch, steps=4)
    start = copy.deepcopy(guide)
    with torch.no_grad():
        start.log_rate["z"].fill_(-30.0)
    q, before = fitted(guide, *entry.batch), fitted(start, *entry.batch)
    same = torch.isclose(q.mean, before.mean, atol=1e-9).all(-1) & torch.isclose(
        q.stddev, before.stddev, atol=1e-9
    ).all(-1)
    assert same.tolist() == [False] * 5 + [True] * 3


@pytest.mark.parametrize("elbo", ["trace", "mean_field", "analytic", "stl", "iwae", "dreg", "score"])
def test_it_serves_the_estimators(elbo):
    """At the exact posterior, which the steps reach here, the loss of every estimator of one draw is −log p(x)."""
    model = linear_gaussian()
    with torch.no_grad():
        model.weight[:, 1] = 0.0  # then the posterior is uncorrelated
    x = columns()
    guide = guide_for(model, (x,), steps=20)
    with isolated(1):
        loss = get(elbo).differentiable_loss(model, guide, x)
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in [*model.parameters(), *guide.parameters()])
    if elbo not in ("mean_field", "analytic"):
        exact = model.log_evidence(x).sum() * NUM_DATA / BATCH
        assert -loss.item() == pytest.approx(exact.item(), rel=1e-9)


def test_evidence_and_a_saved_state_in_float32():
    model, x = linear_gaussian().float(), columns().float()
    guide, other = guide_for(model, (x,)), guide_for(model, (x,))
    other.load_state_dict(guide.state_dict())
    assert torch.equal(fitted(guide, x).mean, fitted(other, x).mean)
    found = pyro_vi.evidence(model, guide, x, particles=2000)["log_evidence"].mean().item()
    assert found == pytest.approx(model.log_evidence(x).mean().item(), abs=0.05)


@pytest.mark.slow
def test_a_model_that_takes_no_draws_at_once_is_served():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[:, 0] + z[:, 1] / 2, 0.5), obs=x)

    x = scalars()
    guide = guide_for(model, (x,), steps=30)
    assert not guide.at_once
    precision = torch.tensor([1 + 4.0, 1 + 1.0], dtype=x.dtype)
    torch.testing.assert_close(fitted(guide, x).stddev, (precision**-0.5).expand(BATCH, 2), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_a_fit_steps_as_its_choice_says():
    run = pyro_vi.fit(
        "linear_gaussian(latent_dim=2)", "semi_amortized(hidden=(4,), steps=2)", columns(50), steps=10, progress=False
    )
    assert run.history[-1]["elbo"] > run.history[0]["elbo"]
    assert "steps" in run.choice.note


def coupled(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z.cumsum(0), 1.0), obs=x)


def shared(x):
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (coupled, {}, "log p of a row depends on site 'z' of other rows"),
        (shared, {}, "no latent site of the model has a row for each datum"),
        (CATALOGUE["discrete"].build()[0], {}, r"site 'z' \(Bernoulli\) is discrete"),
        (coupled, {"steps": 0}, "steps must be"),
        (coupled, {"draws": 3}, "draws must be an even number"),
        (coupled, {"rate": 0.0}, "rate must be positive"),
    ],
)
def test_what_it_cannot_serve_is_refused(model, options, message):
    with pytest.raises(InputError, match=message):
        guide_for(model, (scalars(),), **options)
