"""The traits that an estimator has, or states itself: its bound, its gradient, its treatment of the KL."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, exact_pair, number
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vi import estimators
from pyro_vi.errors import InputError
from pyro_vi.estimators import Traits, instead_of_paths
from pyro_vi.programs.pair import Pair

every_estimator = pytest.mark.parametrize("name", estimators.TABLE)


TRAITS = {
    "trace": Traits(),
    "mean_field": Traits(kl="analytic", through_draws=True, trusts_order=True),
    "graph": Traits(),
    "enum": Traits(sums_marked=True),
    "tmc": Traits(target="tmc", sums_marked=True, scale_inside=True),
    "analytic": Traits(kl="analytic", through_draws=True),
    "stl": Traits(through_draws=True),
    "iwae": Traits(target="iwae(5)", through_draws=True),
    "dreg": Traits(target="iwae(5)", through_draws=True),
    "renyi": Traits(target="renyi(5, alpha=0.5)", through_draws=True),
    "score": Traits(),
    "mixed": Traits(),
    "vimco": Traits(target="iwae(5)"),
    "relaxed": Traits(biased=True),
}


@every_estimator
def test_every_estimator_has_the_traits_of_its_gradient_and_its_kl(name):
    assert estimators.traits_of(estimators.get(name)) == TRAITS[name]
    estimator = estimators.estimator_of(estimators.get(name))
    assert isinstance(estimator, estimators.Estimator)
    assert estimator.traits == TRAITS[name]


@pytest.mark.parametrize(
    ("name", "traits"),
    [
        ("analytic(kl='strict')", Traits(kl="analytic", through_draws=True)),
        ("score(kl='analytic')", Traits(kl="analytic")),
        ("iwae(num_particles=1)", Traits(through_draws=True)),  # one draw makes it the ELBO
        ("renyi(alpha=2, num_particles=3)", Traits(target="renyi(3, alpha=2.0)", through_draws=True)),
    ],
)
def test_traits_follow_the_options(name, traits):
    assert estimators.traits_of(estimators.get(name)) == traits


def test_a_subclass_has_the_traits_of_its_parent():
    class Mine(TraceMeanField_ELBO):
        pass

    assert estimators.traits_of(Mine()) == TRAITS["mean_field"]


def test_an_estimator_that_states_the_contract_itself_is_taken_at_its_word():
    class Mine(Trace_ELBO):
        traits = Traits(target="mine", biased=True)

        def loss_of_pair(self, pair, args):
            return torch.tensor(3.0)

        def sources_of_pair(self, pair, args):
            return {}

    mine = Mine()
    assert estimators.estimator_of(mine) is mine
    assert estimators.traits_of(mine) == mine.traits
    assert float(estimators.differentiable_loss(mine, Pair(*exact_pair()), (columns(),))) == 3


@pytest.mark.parametrize(
    ("distribution", "infer", "words"),
    [
        (
            dist.Bernoulli(number(0.4)),
            {"enumerate": "parallel"},
            "use the estimator 'enum', which sums over its states, or",
        ),
        (dist.Bernoulli(number(0.4)), {}, "use the estimator 'score' or 'mixed', or a continuous guide"),
        (dist.VonMises(number(0.4), 1.0), {}, "use the estimator 'score' or 'mixed', or guide 'diag_normal'"),
    ],
    ids=["marked", "discrete", "continuous"],
)
def test_the_remedy_for_a_draw_without_a_gradient_serves_the_site(distribution, infer, words):
    trace = poutine.trace(lambda: pyro.sample("z", distribution, infer=infer)).get_trace()
    assert instead_of_paths(trace.nodes["z"]).startswith(words)


def test_an_estimator_without_a_loss_has_traits_but_no_use():
    class Bare(ELBO):
        def _get_trace(self, *args):
            raise NotImplementedError

    assert estimators.traits_of(Bare()) == Traits()
    with pytest.raises(InputError, match=r"Bare has no differentiable_loss; use one of: trace, "):
        estimators.estimator_of(Bare())
