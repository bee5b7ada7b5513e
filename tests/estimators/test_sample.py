"""Draws of a pair, the same draws as constants, and the facts about a pair that are found out once."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import CATALOGUE
from estimator_catalogue import DATA, SMALL, functions, modules
from pyro import poutine

from pyro_vi.estimators.bound import Bound
from pyro_vi.estimators.sample import draw_sample, weights
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.handlers import Give, Straighten
from pyro_vi.programs.isolation import isolated


def draw(pair, batch, vectorize=None, kl="sampled"):
    return draw_sample({}, *pair, batch, {}, 3, vectorize, kl, None)


WRITTEN_FOR_ONE_DRAW = ("no_plate", "sequential")


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize(
    ("name", "vectorize"),
    [(name, v) for name in CATALOGUE for v in (True, False) if not (v and name in WRITTEN_FOR_ONE_DRAW)],
)
def test_the_same_draws_as_constants_have_the_same_terms(name, leaves, vectorize):
    entry = CATALOGUE[name]
    pair = pair_of(*entry.build(), entry.batch)
    with isolated(0):
        sample = draw((pair.model, pair.guide), entry.batch, vectorize=vectorize)
        fixed, constants = sample.fixed(leaves)
    torch.testing.assert_close(fixed.log_weight, sample.live.log_weight, rtol=1e-10, atol=1e-10)
    assert len(constants) == (1 if vectorize else 3)
    for given, drawn in zip(constants, sample.drawn(), strict=True):
        # A Delta is computed again from the constants, and is none itself.
        assert drawn.keys() - given.keys() == ({"z"} if name == "auxiliary" else set())
        for site, value in given.items():
            assert torch.equal(value, drawn[site])
            assert value.is_leaf
            assert value.requires_grad == (leaves and value.is_floating_point())


@pytest.mark.parametrize("kind", SMALL)
def test_constants_carry_no_gradient_of_the_draw(kind):
    model, guide = modules(SMALL[kind])
    sample = draw((model, guide), (DATA,))
    terms, _ = sample.fixed(leaves=False)
    (found,) = torch.autograd.grad(terms.sites["z"].log_q.sum(), guide.m)
    value = torch.stack([v["z"] for v in sample.drawn()]).reshape(-1, len(DATA)).detach()
    p = {"m": guide.m, "l": guide.l}
    (expected,) = torch.autograd.grad(SMALL[kind].guide(DATA, p["m"], p["l"]).log_prob(value).sum(), guide.m)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_draws_share_the_minibatch_that_the_programs_choose():
    seen = []

    def program(x, observed):
        with pyro.plate("data", len(x), 3) as index:
            seen.append(index.tolist())
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            if observed:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    x = torch.arange(100, dtype=torch.float64)
    elbo = Bound(bound="iwae", num_particles=4, vectorize_particles=False)
    elbo.loss(lambda x: program(x, True), lambda x: program(x, False), x)
    batches = []
    for _ in range(3):
        seen.clear()
        elbo.loss(lambda x: program(x, True), lambda x: program(x, False), x)
        last = seen[-8:]  # model and guide of four draws
        assert all(index == last[0] for index in last)
        batches.append(tuple(last[0]))
    assert len(set(batches)) == 3


def test_a_sequential_plate_may_choose_its_minibatch():
    def model(x):
        for i in pyro.plate("data", len(x), 2):
            z = pyro.sample(f"z_{i}", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        for i in pyro.plate("data", len(x), 2):
            pyro.sample(f"z_{i}", dist.Normal(x[i] / 2, x.new_tensor(0.5).sqrt()))

    # At the posterior each draw is the evidence of its minibatch.
    evidence = dist.Normal(DATA.new_zeros(()), DATA.new_tensor(2.0).sqrt()).log_prob(DATA)
    possible = {round(-2 * float(evidence[i] + evidence[j]), 9) for i in range(4) for j in range(i)}
    torch.manual_seed(0)
    elbo = Bound(num_particles=3)
    found = {round(elbo.loss(model, guide, DATA), 9) for _ in range(60)}
    assert found == possible


def test_keyword_arguments_reach_the_programs():
    def model(x, width=1.0):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, width), obs=x)

    def guide(x, width=1.0):
        scale = x.new_tensor(width**2 / (1 + width**2)).sqrt()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / (1 + width**2), scale))

    for options in ({}, {"width": 2.0}):
        width = options.get("width", 1.0)
        evidence = dist.Normal(DATA.new_zeros(()), DATA.new_tensor(1 + width**2).sqrt()).log_prob(DATA).sum()
        for elbo in (Bound(gradient="path"), Bound(bound="iwae", num_particles=3)):
            assert elbo.loss(model, guide, DATA, **options) == pytest.approx(-float(evidence), rel=1e-10)
            loss = elbo.differentiable_loss(model, guide, DATA, **options).detach()
            assert float(loss) == pytest.approx(-float(evidence), rel=1e-10)


def test_the_plan_is_made_once_and_moves_no_generator():
    model, guide = functions(SMALL["continuous"])
    plans = {}
    calls = []

    def counted(x):
        calls.append(1)
        guide(x)

    found = []
    for _ in range(3):
        calls.clear()
        torch.manual_seed(4)
        sample = draw_sample(plans, model, counted, (DATA,), {}, 3, None, "analytic", None)
        found.append((sample.live.elbo, len(calls)))
    assert [count for _, count in found[1:]] == [1, 1]
    assert found[0][1] > 1
    assert torch.equal(found[0][0], found[1][0])
    pyro.clear_param_store()


def test_a_pair_of_changed_keywords_or_batches_is_the_same_pair():
    """The plan holds for another number of data."""
    model, guide = modules(SMALL["continuous"])
    elbo = Bound(bound="iwae", num_particles=3)
    for x in (DATA, DATA[:2], DATA.repeat(3), DATA[:1]):
        torch.manual_seed(1)
        shared = elbo.loss(model, guide, x)
        torch.manual_seed(1)
        assert shared == Bound(bound="iwae", num_particles=3).loss(model, guide, x)


def test_given_values_are_draws_and_not_observations():
    model, guide = functions(SMALL["continuous"])
    with Give({"z": DATA + 1, "x": DATA + 5}):
        trace = poutine.trace(guide).get_trace(DATA)
        seen = poutine.trace(poutine.replay(model, trace=trace)).get_trace(DATA)
    assert torch.equal(trace.nodes["z"]["value"], DATA + 1)
    assert not trace.nodes["z"]["is_observed"]
    assert torch.equal(seen.nodes["x"]["value"], DATA)
    pyro.clear_param_store()


@pytest.mark.parametrize("extra", [0, 1])
def test_straightened_densities_are_the_densities(extra):
    logits = torch.tensor([[0.3, -1.0, 0.4], [2.0, 0.1, -0.7]], dtype=torch.float64)
    fn = dist.OneHotCategorical(logits=logits).to_event(extra)

    def program():
        return pyro.sample("z", fn)

    torch.manual_seed(0)
    node = poutine.trace(Straighten()(program)).get_trace().nodes["z"]
    value = node["value"].clone().requires_grad_()
    found = node["fn"].log_prob(value)
    torch.testing.assert_close(found, fn.log_prob(node["value"]), rtol=1e-10, atol=1e-10)
    (slope,) = torch.autograd.grad(found.sum(), value)
    torch.testing.assert_close(slope, logits.log_softmax(-1), rtol=1e-10, atol=1e-10)
    assert node["fn"].event_shape == fn.event_shape


def test_impossible_states_have_no_nan():
    logits = torch.tensor([0.0, -torch.inf, 0.5])
    node = poutine.trace(Straighten()(lambda: pyro.sample("z", dist.OneHotCategorical(logits=logits)))).get_trace()
    assert node.nodes["z"]["fn"].log_prob(torch.tensor([1.0, 0.0, 0.0])) == logits.log_softmax(-1)[0]


def test_weights_are_per_datum_and_the_scale_stays_outside():
    model, guide = modules(SMALL["continuous"], size=40)
    sample = draw((model, guide), (DATA,))
    log_weight, factor = weights(sample.live)
    assert factor == 10
    p = {"b": model.b, "m": guide.m, "l": guide.l}
    z = torch.stack([v["z"] for v in sample.drawn()]).reshape(3, len(DATA))
    expected = SMALL["continuous"].log_weight(z, DATA, p)
    torch.testing.assert_close(log_weight, expected, rtol=1e-10, atol=1e-10)
