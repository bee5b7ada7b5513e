"""Discrete sites: summed out under ``enum``, exactly; drawn under ``trace`` and ``score``; and the states that are refused."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from amortized_toys import gauss
from binding_toys import bind_one
from catalogue import columns, number, scalars
from pyro import poutine

from pyro_vi import estimators
from pyro_vi.errors import InputError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.guides.full_normal import FullNormal
from pyro_vi.programs import isolated

WEIGHTS = torch.tensor([0.25, 0.25, 0.5]).double()
PRIORS = {
    "bernoulli": lambda: dist.Bernoulli(number(0.3)),
    "categorical": lambda: dist.Categorical(WEIGHTS),
    "one-hot": lambda: dist.OneHotCategorical(WEIGHTS),
    "binomial": lambda: dist.Binomial(3, number(0.3)),
}


def score_of(states, value):
    """The loc of x: the number of the state."""
    return (value * torch.arange(3.0).double()).sum(-1) if states == "one-hot" else value.double()


def model_of(states, local):
    def model(x):
        k = None if local else score_of(states, pyro.sample("k", PRIORS[states]()))
        with pyro.plate("data", len(x)):
            if k is None:
                k = score_of(states, pyro.sample("k", PRIORS[states]()))
            pyro.sample("x", gauss(k), obs=x)

    return model


def made(family, model, *batch):
    torch.manual_seed(0)
    return family(bind_one(model, batch), batch, hidden=(4,))


def loss(name, model, guide, batch, seed):
    options = {"max_plate_nesting": 1} if name == "enum" else {}
    with isolated(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's advice to use enum
        return estimators.get(name, **options).differentiable_loss(model, guide, *batch)


@pytest.mark.parametrize("local", [True, False], ids=["local", "global"])
@pytest.mark.parametrize("states", PRIORS)
def test_enum_is_the_sum_over_the_states(states, local):
    """−Σ_k q(k | x) (log p(x, k) − log q(k | x)), the same for all seeds, and with the gradient of the sum."""
    x, prior = scalars(), PRIORS[states]()
    model = model_of(states, local)
    guide = made(DiagNormal, model, x)
    fn = poutine.trace(guide).get_trace(x).nodes["k"]["fn"]
    values = prior.enumerate_support(expand=False)
    each = values.reshape(len(values), *([1] if local else []), *prior.event_shape)
    log_q = fn.log_prob(each.expand(len(values), *fn.batch_shape, *fn.event_shape))
    log_x = gauss(score_of(states, each).reshape(-1, 1)).log_prob(x)
    joint = prior.log_prob(values).reshape(len(values), *([1] if local else [])) + (log_x if local else log_x.sum(-1))
    exact = -(log_q.exp() * (joint - log_q)).sum()
    assert guide(x)["k"].dtype == prior.sample().dtype
    first, second = (loss("enum", model, guide, (x,), seed) for seed in (1, 2))
    torch.testing.assert_close(first, exact, rtol=1e-10, atol=1e-10)
    assert torch.equal(first, second)
    parameters = list(guide.parameters())
    for found, right in zip(
        torch.autograd.grad(first, parameters), torch.autograd.grad(exact, parameters), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["trace", pytest.param("score", marks=pytest.mark.slow)])
def test_draws_under_other_estimators_have_the_mean_of_the_sum(name):
    """Within 4 standard errors of 40 draws."""
    x = scalars()
    model = model_of("categorical", True)
    guide = made(DiagNormal, model, x)
    exact = float(loss("enum", model, guide, (x,), 0).detach())
    draws = torch.stack([loss(name, model, guide, (x,), seed).detach() for seed in range(40)])
    assert abs(float(draws.mean()) - exact) < 4 * float(draws.std()) / len(draws) ** 0.5


@pytest.mark.parametrize("family", [DiagNormal, FullNormal])
def test_a_hidden_markov_model_has_one_head_for_all_steps(family):
    """In a joint family too; ``enum`` sums over the paths, here of 2⁴ states under independent q."""
    table = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).double()

    def model(x):
        with pyro.plate("data", len(x)):
            c = torch.tensor(0)
            for t in pyro.markov(range(x.shape[1])):
                c = pyro.sample(f"c_{t}", dist.Categorical(table[c]))
                pyro.sample(f"x_{t}", gauss(c.double()), obs=x[:, t])

    x = columns(3, 4)
    guide = made(family, model, x)
    assert list(guide.q) == ["c"] and guide.encoder.kind == "recurrent"
    assert list(guide(columns(3, 6))) == [f"c_{t}" for t in range(6)]
    nodes = poutine.trace(guide).get_trace(x).nodes
    log_q = torch.stack([nodes[f"c_{t}"]["fn"].logits for t in range(4)], 1)
    exact = 0
    for path in torch.cartesian_prod(*[torch.arange(2)] * 4):
        q = sum(log_q[:, t, path[t]] for t in range(4))
        before = torch.cat([torch.tensor([0]), path[:-1]])
        p = table[before, path].log().sum() + gauss(path.double()).log_prob(x).sum(-1)
        exact = exact - (q.exp() * (p - q)).sum()
    torch.testing.assert_close(loss("enum", model, guide, (x,), 0), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", [DiagNormal, FullNormal])
def test_continuous_and_discrete_sites_together(family):
    """A discrete site between two continuous ones: each has its own density, and every parameter a gradient."""

    def model(x):
        top = pyro.sample("top", gauss(0.0))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", gauss(top))
            k = pyro.sample("k", dist.Categorical(WEIGHTS))
            b = pyro.sample("b", gauss(a + k))
            pyro.sample("x", gauss(b), obs=x)

    guide = made(family, model, scalars())
    assert set(guide(scalars())) == {"top", "a", "k", "b"}
    for name in ("enum", "trace"):
        guide.zero_grad()
        loss(name, model, guide, (scalars(),), 1).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in guide.parameters())
        assert bool(guide.q["k"].head.weight.grad.any())


def test_vectors_of_discrete_numbers_are_drawn():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(number(0.3).expand(4)).to_event(1))
            pyro.sample("x", gauss(k.sum(-1)), obs=x)

    guide = made(DiagNormal, model, scalars())
    node = poutine.trace(guide).get_trace(scalars()).nodes["k"]
    assert node["value"].shape == (8, 4) and node["infer"] == {}


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (lambda x: dist.Poisson(number(2.0)), "site 'k': Poisson is discrete with infinitely many values"),
        (
            lambda x: dist.Binomial(torch.arange(8), number(0.3)),
            "or with values that differ between rows; sum it out in the model",
        ),
        (lambda x: Halves(WEIGHTS), r"the values of Halves are not 0, 1, 2, …; number them from 0"),
    ],
)
def test_states_without_an_amortized_distribution_are_refused(prior, message):
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", prior(x))
            pyro.sample("x", gauss(k.double()), obs=x)

    with pytest.raises(InputError, match=message):
        made(DiagNormal, model, scalars())


class Halves(dist.Categorical):
    """A categorical distribution of 0, ½ and 1."""

    def enumerate_support(self, expand=True):
        return super().enumerate_support(expand) / 2
