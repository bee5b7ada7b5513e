"""Many draws: when they may be made at once, and that their averages are the exact ELBO."""

from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import BATCH, CATALOGUE, WrongGuide, columns, exact_pair, linear_gaussian, number, scalars
from torch import nn
from torch.distributions import kl_divergence

from pyro_vi.elbo import draws
from pyro_vi.elbo.draws import stream, vectorizes
from pyro_vi.elbo.heldout import evaluate, standard_error
from pyro_vi.errors import InputError
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import evaluating, isolated
from pyro_vi.programs.pair import Pair

# A likelihood expanded to the shape of x has no room for draws.
LOOPED = {"no_plate"}


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))


def model_with(function):
    """A model whose mean is made by `function`, right for a single draw."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(function(z), 1.0), obs=x)

    return model


def refuses_more_dimensions(z):
    if z.dim() > 2:
        raise RuntimeError("one draw at a time")
    return z.sum(-1)


def exact_elbo(model, q, x):
    """E_q[log p(x | z)] - KL(q || p) per datum of a diagonal guide of a linear-Gaussian model."""
    prior = dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1)
    at_mean = model.observation(q.mean).log_prob(x)
    trace = (model.weight.square() * (-2 * model.log_scale).exp().unsqueeze(-1) * q.variance.unsqueeze(-2)).sum(
        (-2, -1)
    )
    return (at_mean - 0.5 * trace - kl_divergence(q, prior)).detach()


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_catalogue_vectorizes_where_it_can(name):
    entry = CATALOGUE[name]
    pair = pair_of(*entry.build(), entry.batch)
    assert vectorizes(pair, entry.batch) == (name not in LOOPED)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: z.mean(0).sum() + z.sum(-1),
        lambda z: z[0, 0] + z.sum(-1),
        lambda z: z.sum(-1) + z.norm(),
        refuses_more_dimensions,
    ],
    ids=["mean over the first dimension", "first element", "norm of everything", "raises"],
)
def test_a_program_that_would_be_wrong_in_a_plate_does_not_vectorize(function):
    pair = pair_of(model_with(function), guide, (scalars(),))
    assert not vectorizes(pair, (scalars(),))


def test_a_guide_that_would_be_wrong_in_a_plate_does_not_vectorize():
    def coupled(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(number(0.0), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(u.mean(0).expand(2), 1.0).to_event(1))

    assert not vectorizes(pair_of(model_with(lambda z: z.sum(-1)), coupled, (scalars(),)), (scalars(),))
    assert vectorizes(pair_of(model_with(lambda z: z.sum(-1)), guide, (scalars(),)), (scalars(),))


def test_vectorizes_leaves_the_generator():
    state = torch.get_rng_state()
    vectorizes(pair_of(model_with(lambda z: z.sum(-1)), guide, (scalars(),)), (scalars(),))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pair_that_does_not_vectorize_is_evaluated_by_single_draws():
    """The coupled mean z[0, 0] + z_n: E log p(x_n | z) has variance 3 for every datum but the first, there 5."""
    pair = pair_of(model_with(lambda z: z[0, 0] + z.sum(-1)), guide, (scalars(),))
    x, count = scalars(), 2000
    variance = torch.tensor([5.0] + [3.0] * 7, dtype=torch.float64)
    exact = dist.Normal(number(0.0), 1.0).log_prob(x) - 0.5 * variance
    found = evaluate(pair, (x,), draws=count, seed=1).elbo_per_datum
    # log p = c - (x - u)² / 2 with u ~ N(0, v): its variance is x² v + v² / 2.
    error = ((x**2 * variance + variance**2 / 2) / count).sqrt()
    assert ((found - exact).abs() < 4 * error).all()


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("vectorized", [True, False])
def test_the_mean_of_many_draws_is_the_exact_elbo(kl, vectorized):
    x, model, wrong = columns(), linear_gaussian(), WrongGuide()
    count = 20_000 if vectorized else 400
    with isolated(2):
        parts = [t.elbo for t in stream(Pair(model, wrong), (x,), count, kl=kl, vectorized=vectorized)]
    elbo = torch.cat([p.reshape(-1, BATCH) for p in parts])
    assert elbo.shape == (count, BATCH)
    error = elbo.std(0) / count**0.5
    assert ((elbo.mean(0) - exact_elbo(model, wrong.distribution(x), x)).abs() < 4 * error).all()


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_evaluate_averages_to_the_exact_elbo(kl):
    x, model, wrong = columns(20), linear_gaussian(), WrongGuide()
    found = evaluate(Pair(model, wrong), (x,), draws=4000, kl=kl, seed=3)
    exact = exact_elbo(model, wrong.distribution(x), x)
    with isolated(4):
        (one,) = stream(Pair(model, wrong), (x,), 2000, kl=kl)
    assert ((found.elbo_per_datum - exact).abs() < 4 * one.elbo.std(0) / 4000**0.5).all()
    if kl == "analytic":
        prior = dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1)
        torch.testing.assert_close(
            found.kl, kl_divergence(wrong.distribution(x), prior).detach(), rtol=1e-10, atol=1e-10
        )
    torch.testing.assert_close(found.elbo_per_datum, found.reconstruction - found.kl, rtol=1e-12, atol=1e-12)
    assert found.elbo_se == pytest.approx(float(found.elbo_per_datum.std()) / 20**0.5, rel=1e-12)


def test_the_data_may_be_taken_in_parts():
    """Of an exact guide every draw is the evidence, in parts of any size, the last one shorter."""
    model, guide = exact_pair()
    x = columns(11)
    for rows in (3, 4, 11, 100):
        found = evaluate(Pair(model, guide), (x,), draws=3, kl="sampled", rows=rows)
        torch.testing.assert_close(found.elbo_per_datum, model.log_evidence(x).detach(), rtol=1e-10, atol=1e-10)


def test_programs_that_draw_their_own_minibatch_are_refused():
    """Row 3 of one draw is another datum than row 3 of the next: their average means nothing."""
    entry = CATALOGUE["inner_subsample"]
    with pytest.raises(InputError, match="plate 'data' holds 8 of the 50 rows"):
        evaluate(pair_of(*entry.build(), entry.batch), entry.batch, draws=3)


def test_memory_bounds_the_draws_of_a_chunk(monkeypatch):
    monkeypatch.setattr(draws, "MEMORY", 7 * columns().numel())
    with isolated(0):
        sizes = [t.elbo.shape[0] for t in stream(Pair(linear_gaussian(), WrongGuide()), (columns(),), 20)]
    assert sizes == [7, 7, 6]


def test_draws_are_without_gradients_and_seeded():
    pair = Pair(linear_gaussian(), WrongGuide())
    first, again, other = (evaluate(pair, (columns(),), draws=5, seed=seed).elbo_per_datum for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first.requires_grad


def test_evaluating_puts_each_mode_back():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    net[1].eval()

    @contextmanager
    def raising():
        with evaluating(net):
            assert not any(module.training for module in net.modules())
            yield

    with pytest.raises(RuntimeError), raising():
        raise RuntimeError
    assert [module.training for module in net.modules()] == [True, True, False, False]


def test_standard_error():
    assert standard_error(torch.tensor([1.0, 2.0, 4.0])) == pytest.approx((7 / 3) ** 0.5 / 3**0.5)
    assert standard_error(torch.tensor([1.0])) != standard_error(torch.tensor([1.0]))  # not known of one value
