"""Topic models: their densities by hand, their priors, and what they refuse."""

import dataclasses
import math

import pyro
import pytest
import torch
from catalogue import spec

import pyro_vi
from pyro_vi.data import load
from pyro_vi.elbo.decomposition import terms
from pyro_vi.errors import InputError
from pyro_vi.guides.prior import Prior
from pyro_vi.models.topic import PRIORS, WORDS, Topic, WordCounts

EXACT = {"rtol": 1e-10, "atol": 1e-10}
COUNTS = torch.tensor([[3, 0, 1, 2, 0], [0, 0, 4, 0, 1], [1, 1, 1, 1, 1], [0, 7, 0, 0, 0]], dtype=torch.float64)
TEXTS = dataclasses.replace(spec(40, 5), support="nonnegative_integer")


def by_hand(counts: list[float], probs: list[float]) -> float:
    """log n! − Σ log x_w! + Σ x_w log p_w, in Python."""
    value = math.lgamma(sum(counts) + 1)
    for x, p in zip(counts, probs, strict=True):
        value += x * math.log(p) - math.lgamma(x + 1)
    return value


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("prior", PRIORS)
def test_log_likelihood_is_the_sum_over_words(prior, words):
    model = Topic(TEXTS, topics=3, prior=prior, words=words)
    with torch.no_grad():
        model.scaled.normal_(0.0, 0.1)
    theta = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]], dtype=torch.float64)
    code = theta if prior == "dirichlet" else theta.log() + 2.0
    weights = model.weights.tolist()
    for row in range(4):
        shares = theta[row].tolist()
        if words == "mixture":
            topics = [[math.exp(v) / sum(map(math.exp, topic)) for v in topic] for topic in weights]
            probs = [sum(s * topic[w] for s, topic in zip(shares, topics, strict=True)) for w in range(5)]
        else:
            scores = [math.exp(sum(s * topic[w] for s, topic in zip(shares, weights, strict=True))) for w in range(5)]
            probs = [score / sum(scores) for score in scores]
        found = model.observation(code, COUNTS.sum(-1)).log_prob(COUNTS)[row]
        assert float(found.detach()) == pytest.approx(by_hand(COUNTS[row].tolist(), probs), rel=1e-10)
        torch.testing.assert_close(model.decode(code)[row].detach(), torch.tensor(probs, dtype=torch.float64), **EXACT)


def test_one_topic_has_the_evidence_of_a_multinomial():
    model = Topic(TEXTS, topics=1)
    found = terms(model, Prior(model, (COUNTS,)), COUNTS, seed=1)
    expected = torch.distributions.Multinomial(logits=model.weights[0], validate_args=False).log_prob(COUNTS)
    torch.testing.assert_close((found.reconstruction - found.kl).detach(), expected.detach(), **EXACT)


def test_dirichlet_shares_give_the_evidence_of_a_dirichlet_multinomial():
    """Topics that each have one word: x ~ Dirichlet-multinomial(α), by importance sampling from the prior."""
    model = Topic(dataclasses.replace(TEXTS, event_shape=(2,)), topics=2, prior="dirichlet", concentration=0.7)
    with torch.no_grad():
        model.scaled.copy_(torch.tensor([[6.0, -6.0], [-6.0, 6.0]]))
    x = torch.tensor([[3.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    theta = torch.distributions.Dirichlet(torch.full((2,), 0.7, dtype=torch.float64)).sample((40000,))
    weight = model.observation(theta[:, None], x.sum(-1)).log_prob(x).exp().detach()
    exact = pyro.distributions.DirichletMultinomial(torch.full((2,), 0.7, dtype=torch.float64), x.sum(-1))
    error = (weight.mean(0) - exact.log_prob(x).exp()).abs()
    assert bool((error < 4 * weight.std(0) / 200).all())


def test_the_prior_is_in_the_data_plate_and_learned_if_asked():
    trace = pyro.poutine.trace(Topic(TEXTS, topics=3, scale=2.0)).get_trace(COUNTS)
    assert trace.nodes["x"]["scale"] == 10 and trace.nodes["eta"]["scale"] == 10
    assert trace.nodes["eta"]["fn"].base_dist.scale.flatten()[0].item() == pytest.approx(2.0, rel=1e-12)
    fixed, learned = ([n for n, _ in Topic(TEXTS, learn_prior=on).named_parameters()] for on in (False, True))
    assert (fixed, learned) == (["scaled"], ["scaled", "loc", "log_scale"])


def test_draws_have_the_total_of_their_row_and_the_mean_of_the_density():
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], dtype=torch.float64)
    counts = WordCounts(probs.log(), torch.tensor([4.0, 9.0], dtype=torch.float64))
    drawn = counts.sample((2000,))
    assert drawn.shape == (2000, 2, 3) and bool((drawn.sum(-1) == counts.total).all())
    torch.testing.assert_close(counts.mean, counts.total[:, None] * probs)
    sd = (counts.total[:, None] * probs * (1 - probs)).sqrt()
    assert bool(((drawn.mean(0) - counts.mean).abs() < 4 * sd / 2000**0.5).all())


def test_top_words_are_those_with_the_largest_weights():
    model = Topic(TEXTS, topics=2)
    with torch.no_grad():
        model.scaled.copy_(torch.tensor([[0.0, 3, 1, 2, -1], [5.0, 0, 1, 2, 3]]))
    assert model.top_words(2, list("abcde")) == [["b", "d"], ["a", "e"]]
    assert model.top_words(3) == [["1", "3", "2"], ["0", "4", "3"]]
    with pytest.raises(InputError, match="has 2 words, and a datum 5 counts"):
        model.top_words(2, ["a", "b"])


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["diag_normal", "full_normal", "structured", "flow", "mixture", "prior"])
@pytest.mark.parametrize("prior", PRIORS)
def test_guides_of_the_shelf_fit_it(prior, guide):
    run = pyro_vi.fit(
        f"topic(topics=3, prior={prior!r})", guide, load(COUNTS.long().repeat(3, 1), heldout=0), elbo="trace", steps=5,
        progress=False,
    )  # fmt: skip
    assert math.isfinite(run.history[-1]["loss"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"topics": 1, "prior": "dirichlet"}, "at least 2, not 1"),
        ({"prior": "normal"}, "prior must be 'logistic_normal' or 'dirichlet'"),
        ({"words": "sum"}, "words must be 'mixture' or 'product'"),
        ({"scale": 0.0}, "scale must be positive"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Topic(TEXTS, **options)


def test_data_that_are_no_counts_are_refused():
    with pytest.raises(InputError, match="one number for each word"):
        Topic(spec())
