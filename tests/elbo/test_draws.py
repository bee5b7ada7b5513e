"""Many draws: when they may be made at once, and that their averages are the exact ELBO."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import (
    BATCH,
    CATALOGUE,
    WrongGuide,
    columns,
    exact_elbo,
    linear_gaussian,
    model_with,
    number,
    scalars,
    standard_guide,
)

from pyro_vi.elbo import draws
from pyro_vi.elbo.draws import stream, vectorizes
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.pair import Pair

# A likelihood expanded to the shape of x has no dimension for draws.
LOOPED = {"no_plate"}


def refuses_more_dimensions(z):
    if z.dim() > 2:
        raise RuntimeError("one draw at a time")
    return z.sum(-1)


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
    pair = pair_of(model_with(function), standard_guide, (scalars(),))
    assert not vectorizes(pair, (scalars(),))


def test_a_guide_that_would_be_wrong_in_a_plate_does_not_vectorize():
    def coupled(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(number(0.0), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(u.mean(0).expand(2), 1.0).to_event(1))

    assert not vectorizes(pair_of(model_with(lambda z: z.sum(-1)), coupled, (scalars(),)), (scalars(),))
    assert vectorizes(pair_of(model_with(lambda z: z.sum(-1)), standard_guide, (scalars(),)), (scalars(),))


def test_vectorizes_leaves_the_generator():
    state = torch.get_rng_state()
    vectorizes(pair_of(model_with(lambda z: z.sum(-1)), standard_guide, (scalars(),)), (scalars(),))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
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


def test_memory_bounds_the_draws_of_a_chunk(monkeypatch):
    monkeypatch.setattr(draws, "MEMORY", 7 * columns().numel())
    with isolated(0):
        sizes = [t.elbo.shape[0] for t in stream(Pair(linear_gaussian(), WrongGuide()), (columns(),), 20)]
    assert sizes == [7, 7, 6]
