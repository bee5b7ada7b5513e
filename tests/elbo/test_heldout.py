"""The ELBO of held-out data is the exact one, in parts of any size."""

import pyro.distributions as dist
import pytest
import torch
from catalogue import (
    CATALOGUE,
    WrongGuide,
    columns,
    exact_elbo,
    exact_pair,
    global_pair,
    linear_gaussian,
    model_with,
    number,
    scalars,
    standard_guide,
)
from torch.distributions import kl_divergence

from pyro_vi.elbo.draws import refuse_own_minibatch, stream
from pyro_vi.elbo.heldout import evaluate, standard_error
from pyro_vi.errors import InputError
from pyro_vi.programs import evaluating
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.pair import Pair


@pytest.mark.slow
def test_a_pair_that_does_not_vectorize_is_evaluated_by_single_draws():
    """The coupled mean z[0, 0] + z_n: E log p(x_n | z) has variance 3 for every datum but the first, there 5."""
    pair = pair_of(model_with(lambda z: z[0, 0] + z.sum(-1)), standard_guide, (scalars(),))
    x, count = scalars(), 500
    variance = torch.tensor([5.0] + [3.0] * 7, dtype=torch.float64)
    exact = dist.Normal(number(0.0), 1.0).log_prob(x) - 0.5 * variance
    found = evaluate(pair, (x,), draws=count, seed=1).elbo_per_datum
    # log p = c - (x - u)² / 2 with u ~ N(0, v): its variance is x² v + v² / 2.
    error = ((x**2 * variance + variance**2 / 2) / count).sqrt()
    assert ((found - exact).abs() < 4 * error).all()


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


@pytest.mark.parametrize("rows", [1000, 3])
def test_the_elbo_of_each_draw_is_the_mean_over_data(rows):
    """At the exact posterior each draw gives log p(x), with the KL sampled; otherwise the draws average to the ELBO."""
    pair, args = pair_of(*exact_pair(), (columns(),)), (columns(),)
    found = evaluate(pair, args, draws=7, kl="sampled", rows=rows)
    assert found.of_draws is not None and found.of_draws.shape == (7,)
    assert float(found.of_draws.std()) < 1e-10 and abs(float(found.of_draws[0]) - found.elbo_mean) < 1e-10
    pair = pair_of(linear_gaussian(), WrongGuide(), args)
    found = evaluate(pair, args, draws=7, rows=rows)
    assert found.of_draws is not None and float(found.of_draws.std()) > 0.01
    assert abs(float(found.of_draws.mean()) - found.elbo_mean) < 1e-10


def test_the_data_may_be_taken_in_parts():
    """Of an exact guide every draw is the evidence, in parts of any size, the last one shorter."""
    model, guide = exact_pair()
    x = columns(11)
    for rows in (3, 4, 11, 100):
        found = evaluate(Pair(model, guide), (x,), draws=3, kl="sampled", rows=rows)
        torch.testing.assert_close(found.elbo_per_datum, model.log_evidence(x).detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_terms_of_the_sites_add_up_to_the_elbo(name):
    """Each is the mean over the data of the site's own term; that of a shared site is divided by the number of data."""
    entry = CATALOGUE[name]
    pair = pair_of(*entry.build(), entry.batch)
    found = evaluate(pair, entry.batch, draws=1, seed=3, num_data=90)
    total = sum(map(float, found.observed.values())) - sum(map(float, found.latents.values()))
    assert abs(total - found.elbo_mean) < 1e-10 * max(1.0, abs(total))
    with isolated(3, validation=False), evaluating(pair):
        (draw,) = stream(pair, entry.batch, 1)
    for name, site in draw.sites.items():
        one, value = (found.latents, site.divergence) if site.latent else (found.observed, site.log_p)
        expected = float(value.mean()) / (1 if site.local else 90)
        assert abs(float(one[name]) - expected) < 1e-10 * max(1.0, abs(expected)), name


def test_the_terms_of_data_that_are_taken_in_parts():
    """In parts of any size, and with several draws at once, the closed forms are those of all rows."""
    pair = pair_of(*global_pair(), (scalars(11),))
    whole, parts = (evaluate(pair, (scalars(11),), draws=3, rows=rows, num_data=11) for rows in (11, 4))
    assert whole.latents.keys() == parts.latents.keys() and whole.observed.keys() == parts.observed.keys()
    for found in (whole, parts):
        total = sum(map(float, found.observed.values())) - sum(map(float, found.latents.values()))
        assert abs(total - found.elbo_mean) < 1e-10
    for name, value in whole.latents.items():
        assert abs(float(value) - float(parts.latents[name])) < 1e-10


def test_programs_that_draw_their_own_minibatch_have_a_mean():
    """Row 3 of one draw is another datum than row 3 of the next: only the mean over rows has a meaning."""
    entry = CATALOGUE["inner_subsample"]
    pair = pair_of(*entry.build(), entry.batch)
    assert evaluate(pair, entry.batch, draws=3).elbo_per_datum.shape == (8,)
    with pytest.raises(InputError, match="plate 'data' holds 8 of the 50 rows"):
        refuse_own_minibatch(pair, entry.batch)


def test_draws_are_without_gradients_and_seeded():
    pair = Pair(linear_gaussian(), WrongGuide())
    first, again, other = (evaluate(pair, (columns(),), draws=5, seed=seed).elbo_per_datum for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first.requires_grad


def test_standard_error():
    assert standard_error(torch.tensor([1.0, 2.0, 4.0])) == pytest.approx((7 / 3) ** 0.5 / 3**0.5)
    assert standard_error(torch.tensor([1.0])) != standard_error(torch.tensor([1.0]))  # not known of one value
