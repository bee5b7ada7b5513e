"""The Laplace guide: mode and curvature against closed forms, and gradients against finite differences."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from binding_toys import bind_one
from catalogue import BATCH, CATALOGUE, NUM_DATA, columns, linear_gaussian, number, scalars
from pyro import poutine
from torch import nn
from torch.distributions import MultivariateNormal

import pyro_vi
from pyro_vi.elbo.decomposition import terms
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators.table import get
from pyro_vi.guides.laplace import Laplace
from pyro_vi.programs.isolation import isolated

COUNTS = torch.tensor([0.0, 1.0, 4.0, 9.0], dtype=torch.float64)
BITS = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)


def guide_for(model, batch, **options) -> Laplace:
    """A guide of any program: a function is bound first, as by `build_pair`."""
    return Laplace(model if isinstance(model, nn.Module) else bind_one(model, batch), batch, **options)


def numbers(guide, *batch):
    """Mode and covariance in the units of the model, on the unconstrained scale."""
    call = guide.frame.call(batch, {})
    _, found = next(iter(guide.numbers(call)))
    units = [guide.units(name, site, guide.block(name)) for name, site in call.sites.items()]
    start, spread = (torch.cat(parts) for parts in zip(*units, strict=True))
    tril = spread.unsqueeze(-1) * found["tril"]
    return (start + spread * found["loc"]).detach(), (tril @ tril.mT).detach()


def poisson(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(number(2.0), number(1.5)))
        pyro.sample("x", dist.Poisson(z), obs=x)


def coin(x):
    p = pyro.sample("p", dist.Beta(number(2.0), number(3.0)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def hierarchy(x):
    w = pyro.sample("w", dist.Normal(number(0.5), 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


class Curved(nn.Module):
    """Two local sites, one of them positive, and a likelihood that is not normal."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.4, -0.3, 0.8], dtype=torch.float64))

    def forward(self, x):
        a, b, c = self.theta
        with pyro.plate("data", len(x)):
            s = pyro.sample("s", dist.Gamma(2 + a.exp(), number(1.5)))
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), b.exp()).to_event(1))
            pyro.sample("x", dist.Poisson((c + z.sum(-1) * s.log()).exp()), obs=x)


class Shared(Curved):
    """The same with sites that all data share."""

    def forward(self, x):
        a, b, c = self.theta
        s = pyro.sample("s", dist.Gamma(2 + a.exp(), number(1.5)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), b.exp()))
            pyro.sample("x", dist.Poisson((c + z * s.log()).exp()), obs=x)


def test_on_a_linear_gaussian_model_it_is_the_posterior():
    """The ELBO of every draw is log p(x), and its gradient that of log p(x)."""
    model, x = linear_gaussian(), columns()
    elbo = terms(model, guide_for(model, (x,)), x, seed=1, kl="sampled").elbo
    evidence = model.log_evidence(x)
    torch.testing.assert_close(elbo, evidence, rtol=0, atol=1e-10)
    found = torch.autograd.grad(elbo.sum(), list(model.parameters()))
    for mine, exact in zip(found, torch.autograd.grad(evidence.sum(), list(model.parameters())), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-9)


def test_counts_of_a_gamma_rate():
    """u = log z has log-density (a + x) u − (b + 1) e^u: mode log((a + x)/(b + 1)), curvature a + x."""
    loc, covariance = numbers(guide_for(poisson, (COUNTS,)), COUNTS)
    torch.testing.assert_close(loc[:, 0], ((2 + COUNTS) / 2.5).log(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(covariance[:, 0, 0], 1 / (2 + COUNTS), rtol=1e-9, atol=0)


def test_tosses_of_a_coin():
    """u = logit p has log-density 6 log σ(u) + 4 log σ(−u): mode σ = .6, curvature 10 · .6 · .4."""
    loc, covariance = numbers(guide_for(coin, (BITS,)), BITS)
    assert loc.sigmoid().item() == pytest.approx(0.6, abs=1e-9)
    assert covariance.item() == pytest.approx(1 / 2.4, rel=1e-9)


def test_one_normal_covers_local_and_global_sites():
    """All is normal: the ELBO of every draw is log p(x) of all data together, also on other numbers of rows."""
    guide = guide_for(hierarchy, (scalars(),))
    for x in (scalars(), scalars(5)):
        covariance = 4 + 1.49 * torch.eye(len(x), dtype=x.dtype)
        exact = MultivariateNormal(x.new_full((len(x),), 0.5), covariance).log_prob(x)
        for seed in (1, 2):
            elbo = terms(bind_one(hierarchy, (x,)), guide, x, seed=seed, kl="sampled").elbo.sum()
            torch.testing.assert_close(elbo, exact, rtol=1e-10, atol=0)


def test_rows_that_depend_on_each_other_get_one_normal():
    def walk(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.cumsum(0), 0.5), obs=x)

    x = scalars(4)
    lower = torch.ones(4, 4, dtype=x.dtype).tril()
    exact = MultivariateNormal(x.new_zeros(4), lower @ lower.mT + 0.25 * torch.eye(4)).log_prob(x)
    model = bind_one(walk, (x,))
    elbo = terms(model, guide_for(walk, (x,)), x, seed=1, kl="sampled").elbo.sum()
    torch.testing.assert_close(elbo, exact, rtol=1e-10, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("model", [Curved, Shared])
def test_gradients_are_those_of_finite_differences(model):
    model = model()
    guide = guide_for(model, (COUNTS,))

    def elbo():
        return terms(model, guide, COUNTS, seed=3, kl="sampled").elbo.sum()

    (gradient,) = torch.autograd.grad(elbo(), list(model.parameters()))
    for i in range(3):
        with torch.no_grad():
            model.theta[i] += 1e-5
            above = elbo()
            model.theta[i] -= 2e-5
            below = elbo()
            model.theta[i] += 1e-5
        assert gradient[i].item() == pytest.approx((above - below).item() / 2e-5, rel=1e-5, abs=1e-6)


def test_a_flat_direction_gets_the_prior_s_width_and_a_scale_widens():
    """Rows that are masked out are flat; with all densities scaled by .3, curvature counts .3 and entropy .3."""

    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=torch.arange(len(x)) < 5), poutine.scale(scale=0.3):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    _, covariance = numbers(guide_for(model, (scalars(),)), scalars())
    ones = torch.ones(2, 2, dtype=torch.float64)
    expected = (0.25 * torch.eye(2) + 4 * ones).inverse()
    torch.testing.assert_close(covariance[:5], expected.expand(5, 2, 2), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(covariance[5:], 0.3 * 4 * torch.eye(2).double().expand(3, 2, 2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("elbo", ["trace", "mean_field", "analytic", "stl", "iwae", "dreg", "score"])
def test_it_serves_the_estimators(elbo):
    model, x = linear_gaussian(), columns()
    guide = guide_for(model, (x,))
    estimator = get(elbo)
    exact = model.log_evidence(x).sum() * NUM_DATA / BATCH
    with isolated(1):
        loss = estimator.differentiable_loss(model, guide, x)
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    if elbo not in ("mean_field", "analytic"):
        assert -loss.item() == pytest.approx(exact.item(), rel=1e-9)


def test_evidence_of_many_draws_is_exact():
    model, x = linear_gaussian(), columns()
    found = pyro_vi.evidence(model, guide_for(model, (x,)), x, particles=50)
    assert found["log_evidence"].mean().item() == pytest.approx(model.log_evidence(x).mean().item(), abs=1e-9)


@pytest.mark.slow
def test_a_fit_learns_the_model():
    """Maximum likelihood: every step's gradient is that of log p(x)."""
    run = pyro_vi.fit("linear_gaussian(latent_dim=2)", "laplace", columns(50), steps=30, lr=0.05, progress=False)
    assert run.history[-1]["elbo"] > run.history[0]["elbo"] + 0.1


@pytest.mark.slow
def test_its_steps_are_not_compiled():
    with pytest.raises(InputError, match="cannot be compiled: the programs decide by a value"):
        pyro_vi.fit("linear_gaussian(latent_dim=2)", "laplace", columns(50), steps=2, progress=False, compile=True)


def test_a_pair_without_parameters_is_not_fitted():
    with pytest.raises(UsageError, match="no parameters to fit"):
        pyro_vi.fit("linear_gaussian(latent_dim=2, learn=False)", "laplace", columns(50), steps=2, progress=False)


def test_float32_and_a_saved_state():
    model = linear_gaussian().float()
    x = columns().float()
    guide = guide_for(model, (x,))
    elbo = terms(model, guide, x, seed=1, kl="sampled").elbo
    torch.testing.assert_close(elbo, model.log_evidence(x), rtol=1e-5, atol=1e-5)
    assert list(guide.parameters()) == []
    other = guide_for(model, (x,))
    other.load_state_dict(guide.state_dict())
    assert torch.equal(terms(model, other, x, seed=1, kl="sampled").elbo, elbo)


def wide(x):
    z = pyro.sample("z", dist.Normal(x.new_zeros(201), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)


def centred(x):
    """As s falls to 0 and all z are equal, p(x, z) grows without bound."""
    w = pyro.sample("w", dist.Normal(number(0.0), 5.0))
    s = pyro.sample("s", dist.HalfCauchy(number(5.0)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, s))
        pyro.sample("x", dist.Normal(z, 10.0), obs=10 * x)


def noisy(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z + torch.rand(()), 1.0), obs=x)


def scaled_once(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        with poutine.scale(scale=0.3):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z + a, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (wide, scalars(), "one normal of 201 numbers for all rows together, as .*, and serves 200 at most"),
        (centred, scalars(), "finds no mode"),
        (noisy, scalars(), "differs between two runs"),
        (scaled_once, scalars(), "scales their densities by 1 and 0.3"),
        (CATALOGUE["discrete"].build()[0], scalars(), r"site 'z' \(Bernoulli\) is discrete"),
        (CATALOGUE["global"].build()[0], scalars(), "sees 8 of the 50 rows of plate 'data'"),
        (CATALOGUE["inner_subsample"].build()[0], scalars(NUM_DATA), "sees 8 of the 50 rows of plate 'data'"),
    ],
)
def test_what_it_cannot_serve_is_refused(model, batch, message):
    with pytest.raises(InputError, match=message):
        guide_for(model, (batch,))


def test_nested_plates_are_in_the_normal_of_each_datum():
    """Members within groups: z_ij = u_i + noise; all is normal, so the ELBO of a group is its log p."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            u = pyro.sample("u", dist.Normal(number(0.0), 1.5))
            with pyro.plate("members", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(u, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x = columns()
    elbo = terms(bind_one(model, (x,)), guide_for(model, (x,)), x, seed=1, kl="sampled").elbo
    covariance = 2.25 + 1.25 * torch.eye(3, dtype=x.dtype)
    torch.testing.assert_close(elbo, MultivariateNormal(x.new_zeros(3), covariance).log_prob(x), rtol=1e-10, atol=0)


def test_a_minibatch_of_the_model_s_own_has_the_modes_of_its_rows():
    data = scalars(NUM_DATA)

    def model(x):
        with pyro.plate("data", len(x), BATCH) as rows:
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    guide = guide_for(model, (data,))
    with isolated(3):
        trace = poutine.trace(guide).get_trace(data)
    node = trace.nodes["z"]
    torch.testing.assert_close(node["fn"].mean, data[trace.nodes["data"]["value"]] / 2)
    torch.testing.assert_close(node["fn"].stddev, torch.full_like(node["fn"].mean, math.sqrt(0.5)))
