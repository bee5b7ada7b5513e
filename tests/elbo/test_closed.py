"""A closed form of the KL is taken only where it is the KL term of the ELBO, whoever asks."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import number, scalars
from pyro import poutine
from pyro.distributions.transforms import block_autoregressive, iterated
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow

import pyro_vi
from pyro_vi.elbo import dependence_of, draw_traces, evaluate, terms, vectorizes
from pyro_vi.errors import InputError
from pyro_vi.estimators import get
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.programs import pair_of

X = scalars(40)


def chain(x):
    """a → b → x; log p(x) = log N(x; 0, 1.31)."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(number(0.0), 1.0))
        b = pyro.sample("b", dist.Normal(0.9 * a, 0.5))
        pyro.sample("x", dist.Normal(b, 0.5), obs=x)


def reversed_chain(x):
    """The posterior, drawn from b to a, so that every draw of log p − log q is log p(x)."""
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Normal(1.06 / 1.31 * x, number(1.06 * 0.25 / 1.31).sqrt()))
        pyro.sample("a", dist.Normal(0.9 / 1.06 * b, number(0.25 / 1.06).sqrt()))


def evidence(x):
    return dist.Normal(number(0.0), number(1.31).sqrt()).log_prob(x)


def test_the_elbo_of_given_data_is_right_where_the_guide_draws_in_another_order():
    """The closed form of b would lower it by .4. All KLs are sampled there, so that their noise cancels, here exactly."""
    found = evaluate(pair_of(chain, reversed_chain, (X,)), (X,), draws=3, seed=1)
    torch.testing.assert_close(found.elbo_per_datum, evidence(X), rtol=1e-10, atol=1e-10)


def test_terms_and_sources_say_why():
    found = terms(chain, reversed_chain, X, seed=0).sources
    assert str(found["b"]) == "sampled (its prior depends on 'a', which the guide draws given 'b')"
    assert str(found["a"]) == "analytic"


def test_pyros_mean_field_is_named_as_what_it_is():
    pair = pair_of(chain, reversed_chain, (X,))
    found = estimator_of(get("mean_field")).sources_of_pair(pair, (X,))
    assert str(found["b"]) == "analytic (not right here: its prior depends on 'a', which the guide draws given 'b')"


def test_dependence_is_found_once_for_a_pair():
    runs = []

    def counted(x):
        runs.append(1)
        reversed_chain(x)

    pair = pair_of(chain, counted, (X,))
    evaluate(pair, (X,), draws=1)
    runs.clear()
    evaluate(pair, (X,), draws=1)
    evaluate(pair, (X[:7],), draws=1)
    assert len(runs) == 2


def test_the_order_of_statements_decides_where_values_cannot_be_tracked():
    def hidden(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(0.8 * x, 0.4))
            if isinstance(b, pyro.ops.provenance.ProvenanceTensor):
                raise RuntimeError("takes plain tensors only")
            pyro.sample("a", dist.Normal(0.7 * b, 0.45))

    pair = pair_of(chain, hidden, (X,))
    assert list(dependence_of(pair, (X,), draw_traces(pair.model, pair.guide, (X,)))) == ["b"]


def test_a_mask_on_one_side_is_sampled_in_given_data_too():
    """Of the row that the model does not see, −log q is all that is left: −.5 + ½ log 2πe .7² with its sign."""
    seen = torch.tensor([True, False])

    def model(x):
        with pyro.plate("data", 2), poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(x / 2, number(0.5).sqrt()))

    x = torch.stack([number(1.3), number(0.0)])
    found = evaluate(pair_of(model, guide, (x,)), (x,), draws=20_000).elbo_per_datum
    entropy = dist.Normal(number(0.0), number(0.5).sqrt()).entropy()
    expected = torch.stack([dist.Normal(number(0.0), number(2.0).sqrt()).log_prob(x[0]), entropy])
    assert (found - expected).abs().max() < 4 * 0.5**0.5 / 20_000**0.5


# Sites that are neither data nor latents.


def subsampled(extra):
    def model(x):
        w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
        extra(w)
        with pyro.plate("data", 40, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    return model


def shared(x):
    pyro.sample("w", dist.Normal(number(0.1), 0.3))


def test_a_deterministic_site_is_no_data_and_a_factor_counts_where_it_stands():
    plain, noted, weighed = (
        terms(subsampled(extra), shared, X[:10], kl="sampled", seed=2)
        for extra in (
            lambda w: None,
            lambda w: pyro.deterministic("twice", 2 * w),
            lambda w: pyro.factor("penalty", number(-3.0)),
        )
    )
    assert (noted.num_data, noted.rows, weighed.num_data, weighed.rows) == (40, 10, 40, 10)
    assert list(noted.sites) == ["w", "x"]
    torch.testing.assert_close(noted.elbo, plain.elbo, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weighed.elbo, plain.elbo - 3 / 40, rtol=1e-12, atol=1e-12)
    assert not weighed.sites["penalty"].latent


def test_a_factor_of_the_guide_counts_as_in_pyro():
    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.7))
            pyro.factor("f", 0.3 * z, has_rsample=True)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    found = terms(model, guide, X, kl="sampled", seed=3)
    torch.manual_seed(3)
    assert float(found.loss) == pytest.approx(Trace_ELBO().loss(model, guide, X), rel=1e-10)
    assert set(found.sources) == {"z"}


@pytest.mark.parametrize("obs", [True, False])
def test_a_guide_that_samples_data_is_refused_by_name(obs):
    def guide(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(x, 1.0))
            pyro.sample("a", dist.Normal(b, 1.0))
            pyro.sample("x", dist.Normal(number(0.0), 1.0), obs=x if obs else None)

    with pytest.raises(InputError, match=r"the guide samples 'x', which the model observes.*leave 'x' out"):
        terms(chain, guide, X)


def test_a_flow_that_is_known_only_with_its_draw_is_drawn_one_at_a_time():
    def model(x):
        m = pyro.sample("m", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)

    x = torch.ones(6, 2)
    guide = AutoNormalizingFlow(model, lambda size: iterated(2, block_autoregressive, size))
    pair = pair_of(model, guide, (x,))
    assert not vectorizes(pair, (x,))
    assert evaluate(pair, (x,), draws=3).elbo_per_datum.isfinite().all()
    with pytest.raises(InputError, match=r"scores given draws, which the guide cannot do.*use 'trace'"):
        pyro_vi.audit(model, guide, x, elbos="stl", draws=20)
