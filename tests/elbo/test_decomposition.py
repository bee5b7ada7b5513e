"""The decomposition: its sum is Pyro's loss, its parts are the closed forms, and it obeys the evidence identity."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import (
    BATCH,
    CATALOGUE,
    Entry,
    WrongGuide,
    columns,
    conjugate_model,
    exact_pair,
    linear_gaussian,
    number,
    scalars,
)
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vi.elbo.decomposition import KLSource, Terms, from_run, terms
from pyro_vi.elbo.traces import draw_traces
from pyro_vi.errors import InputError
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.layout import prototype
from pyro_vi.programs.pair import Pair

EXACT = {"rtol": 1e-10, "atol": 1e-10}
PYRO = {"sampled": Trace_ELBO, "analytic": TraceMeanField_ELBO}
every_entry = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)


def pyro_loss(kl: str, entry: Entry, seed: int) -> float:
    """The loss of Pyro's own estimator, from a fresh pair in a parameter store of its own."""
    model, guide = entry.build()
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):  # else mean_field refuses a discrete guide
        torch.manual_seed(seed)
        return PYRO[kl]().loss(model, guide, *entry.batch)


def at(pair: Pair, values: dict[str, Tensor], *args: Tensor) -> Terms:
    """Terms of the draw that takes these values."""

    class Give(Messenger):
        def _pyro_sample(self, msg):
            if msg["name"] in values:
                msg["value"], msg["done"] = values[msg["name"]], True

    def guide(*args):
        with Give():
            return pair.guide(*args)

    with isolated():
        return from_run(draw_traces(pair.model, guide, args), len(args[0]))


@every_entry
@pytest.mark.parametrize("kl", PYRO)
def test_sum_is_pyros_loss_under_the_same_seed(entry, kl):
    model, guide = entry.build()
    for seed in (1, 2):
        ours = terms(model, guide, entry.batch, kl=kl, seed=seed).loss.detach()
        torch.testing.assert_close(float(ours), pyro_loss(kl, entry, seed), rtol=1e-10, atol=1e-10)


@every_entry
def test_shapes_are_per_datum(entry):
    found = terms(*entry.build(), entry.batch, seed=1)
    assert (found.num_data, found.rows) == (entry.num_data, entry.rows)
    for part in (found.elbo, found.kl, found.reconstruction, found.log_weight):
        assert part.shape == (entry.rows,)
        assert part.dtype == torch.float64
    assert {name: site.local for name, site in found.sites.items() if site.latent} == entry.local
    for site in found.sites.values():
        for value in (site.log_p, site.log_q, site.kl):
            assert value is None or value.shape == ((entry.rows,) if site.local else ())


@pytest.mark.parametrize("name", [n for n, e in CATALOGUE.items() if len(e.batch[0]) == e.rows])
def test_many_draws_in_a_plate_keep_their_dimension(name):
    """Of every pair whose data plate is vectorised, and as long as the batch."""
    entry = CATALOGUE[name]
    pair = pair_of(*entry.build(), entry.batch)
    layout = prototype(pair.model, entry.batch)
    nesting = max(layout.max_plate_nesting, prototype(pair.guide, entry.batch).max_plate_nesting)
    with isolated(1):
        run = draw_traces(pair.model, pair.guide, entry.batch, 5, nesting)
    found = from_run(run, entry.rows)
    assert found.elbo.shape == (5, entry.rows)
    assert found.loss.shape == (5,)
    # Draw k in the plate has the terms of a single run on its values.
    guide_layout = prototype(pair.guide, entry.batch)
    for k in range(5):
        values = {}
        for name, site in guide_layout.sites.items():
            values[name] = run.guide_trace.nodes[name]["value"][k].reshape(site.batch_shape + site.event_shape)
        torch.testing.assert_close(at(pair, values, *entry.batch).elbo, found.elbo[k], **EXACT)


@every_entry
def test_kl_sources(entry):
    model, guide = entry.build()
    found = terms(model, guide, entry.batch, seed=1).sources
    assert {name: source.kind for name, source in found.items()} == entry.sources
    assert all(bool(source.reason) == (source.kind == "sampled") for source in found.values())
    asked = terms(model, guide, entry.batch, kl="sampled", seed=1)
    assert asked.sources == dict.fromkeys(entry.sources, KLSource("sampled"))
    assert all(site.kl is None for site in asked.sites.values())
    torch.testing.assert_close(asked.log_weight, asked.elbo, **EXACT)


@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if entry.separate])
def test_a_datum_changes_its_own_terms_only(name):
    entry = CATALOGUE[name]
    (x,) = entry.batch
    other = x.clone()
    other[1] = 1 - x[1]
    model, guide = entry.build()
    for kl in PYRO:
        before, after = (terms(model, guide, batch, kl=kl, seed=1).elbo for batch in (x, other))
        changed = (before - after).abs() > 1e-9
        assert changed.tolist() == [row == 1 for row in range(entry.rows)]


def test_reason_names_the_distributions_without_a_closed_form():
    entry = CATALOGUE["lognormal_halfcauchy"]
    source = terms(*entry.build(), entry.batch, seed=1).sources["z"]
    assert str(source) == "sampled (no closed form of KL(LogNormal || HalfCauchy) is registered)"


def test_reason_of_a_site_that_only_the_guide_has():
    entry = CATALOGUE["auxiliary"]
    assert str(terms(*entry.build(), entry.batch, seed=1).sources["u"]) == "sampled (the model has no such site)"


def test_a_latent_that_the_guide_lacks_counts_as_in_pyro():
    def model(x):
        w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(number(0.3), 0.8))

    x = scalars()
    for seed in (4, 5):
        found = terms(model, guide, x, kl="sampled", seed=seed)
        with pyro.validation_enabled(False):  # with validation Pyro warns of the missing site
            torch.manual_seed(seed)
            expected = Trace_ELBO().loss(model, guide, x)
        torch.testing.assert_close(float(found.loss), expected, rtol=1e-10, atol=1e-10)
        assert set(found.sources) == {"z"}


def test_global_site_is_shared_by_all_data():
    """By hand: the ELBO per datum holds 1/50 of KL(q(w) || p(w)), and the full z and x terms of its datum."""
    entry = CATALOGUE["global"]
    found = terms(*entry.build(), entry.batch, seed=1)
    global_kl = kl_divergence(dist.Normal(number(0.2), 0.6), dist.Normal(number(0.5), 2.0))
    torch.testing.assert_close(found.sites["w"].kl, global_kl, **EXACT)
    torch.testing.assert_close(found.kl, found.sites["z"].kl + global_kl / 50, **EXACT)
    torch.testing.assert_close(found.reconstruction, found.sites["x"].log_p, **EXACT)


def test_masked_observations_have_no_terms():
    entry = CATALOGUE["masked"]
    found = terms(*entry.build(), entry.batch, seed=1)
    assert (found.reconstruction == 0).tolist() == [row % 3 == 0 for row in range(BATCH)]
    entry = CATALOGUE["masked_rows"]
    assert (terms(*entry.build(), entry.batch, seed=1).elbo == 0).tolist() == [row >= 5 for row in range(BATCH)]


def test_kl_of_a_delta_holds_its_log_density():
    """An AutoNormal's sites are such Deltas; Pyro's own closed form (pyro-ppl 1.9.2) leaves the log-density out."""
    entry = CATALOGUE["auxiliary"]
    found = terms(*entry.build(), entry.batch, seed=1)
    torch.testing.assert_close(found.sites["z"].kl, found.sites["z"].log_q - found.sites["z"].log_p, **EXACT)
    assert (found.sites["z"].log_q.abs() > 0.01).any()


def test_kl_of_a_diagonal_guide_is_the_textbook_form():
    """KL(N(m, s²) || N(0, 1)) = -1/2 Σ (1 + log s² - m² - s²) (Kingma and Welling 2013, arXiv:1312.6114, appendix B)."""
    x, guide = columns(), WrongGuide()
    q = guide.distribution(x).base_dist
    expected = -0.5 * (1 + q.variance.log() - q.mean.square() - q.variance).sum(-1)
    found = terms(linear_gaussian(), guide, x, seed=1)
    torch.testing.assert_close(found.sites["z"].kl, expected, **EXACT)
    torch.testing.assert_close(found.kl, expected, **EXACT)


def sigma_points(q: dist.MultivariateNormal) -> list[Tensor]:
    """2 D points whose equal-weight average is the expectation under ``q`` of any quadratic function, exactly."""
    spread = math.sqrt(q.event_shape[0]) * q.scale_tril
    return [q.loc + sign * spread[..., :, d] for d in range(q.event_shape[0]) for sign in (1, -1)]


@pytest.mark.parametrize("full_rank", [False, True])
def test_evidence_identity_of_a_wrong_guide(full_rank):
    """log p(x) = ELBO + KL(q || posterior) for each datum: the terms are quadratic in z, so sigma points are exact."""
    x, model, guide = columns(), linear_gaussian(), WrongGuide(full_rank)
    q = guide.distribution(x)
    if not full_rank:
        q = dist.MultivariateNormal(q.mean, scale_tril=q.stddev.diag_embed())
    expected = model.log_evidence(x) - kl_divergence(q, model.posterior(x)["z"])
    found = [at(Pair(model, guide), {"z": z}, x) for z in sigma_points(q)]
    for draws in ([t.elbo for t in found], [t.log_weight for t in found]):
        torch.testing.assert_close(torch.stack(draws).mean(0), expected, **EXACT)
    assert (expected < model.log_evidence(x) - 0.01).all()  # the guide is wrong for every datum


def test_every_draw_of_the_exact_guide_is_the_evidence():
    (model, guide), x = exact_pair(), columns()
    for seed in range(5):
        found = terms(model, guide, x, seed=seed)
        torch.testing.assert_close(found.log_weight, model.log_evidence(x), **EXACT)
        assert not torch.allclose(found.elbo, model.log_evidence(x))  # with the analytic KL a draw is not


def test_jensens_bound_on_average():
    """The mean ELBO of a wrong guide is below log p(x) for every datum, by KL(q || posterior), at 4 standard errors."""
    x, model, guide = columns(), linear_gaussian(), WrongGuide()
    with isolated(3):
        run = draw_traces(model, guide, (x,), 20_000, 1)
    elbo = from_run(run, BATCH).elbo
    q = guide.distribution(x)
    gap = kl_divergence(dist.MultivariateNormal(q.mean, scale_tril=q.stddev.diag_embed()), model.posterior(x)["z"])
    error = elbo.std(0) / 20_000**0.5
    assert ((elbo.mean(0) - (model.log_evidence(x) - gap)).abs() < 4 * error).all()
    assert (elbo.mean(0) + 4 * error < model.log_evidence(x)).all()


def test_equal_seeds_give_equal_terms_and_leave_the_generator():
    entry = CATALOGUE["closure"]
    model, guide = entry.build()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, second, third = (terms(model, guide, entry.batch, seed=seed).elbo for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(torch.rand(3), expected)


def test_divergence_of_an_observed_site_is_refused():
    found = terms(conjugate_model, CATALOGUE["conjugate"].build()[1], CATALOGUE["conjugate"].batch, seed=1)
    with pytest.raises(ValueError, match="'x' is observed and has no KL"):
        _ = found.sites["x"].divergence


def test_a_program_that_fails_says_what_and_on_which_shape():
    with pytest.raises(InputError, match=r"the guide fails on a batch of shape \(8, 2\)"):
        terms(linear_gaussian(), lambda x: WrongGuide()(x), columns(features=2))
