"""Combinations of bounds, gradients and treatments of the KL; bounds of data that share a latent."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import conjugate_model
from estimator_catalogue import (
    DATA,
    NAMES,
    OURS,
    SERVES,
    SMALL,
    assert_near,
    exact_loss,
    make,
    mean_gradient,
    modules,
    parameters,
)
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vi import estimators
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators.bound import BOUNDS, KLS, LEGAL, Bound
from pyro_vi.estimators.gradients import GRADIENTS

LATENT = {"total": "continuous", "path": "continuous", "doubly": "continuous"}


UNBIASED = [gradient for gradient in GRADIENTS if gradient != "relaxed"]  # that one: test_relaxed.py


def composes(bound, gradient, kl):
    return gradient in LEGAL[bound] and (kl == "sampled" or (bound == "elbo" and gradient != "path"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bound", "gradient", "kl"),
    [c for c in itertools.product(BOUNDS, UNBIASED, KLS) if composes(*c)],
)
def test_what_composes_has_the_gradient_of_its_bound(bound, gradient, kl):
    elbo = Bound(bound=bound, gradient=gradient, kl=kl, alpha=0.5, num_particles=3)
    for kind in [LATENT[gradient]] if gradient in LATENT else SMALL:
        p = parameters()
        loss = exact_loss(SMALL[kind], DATA, p, bound, 1 if bound == "elbo" else 3, 0.5)
        expected = torch.stack(torch.autograd.grad(loss, [p[n] for n in NAMES]))
        found, error = mean_gradient(elbo, *modules(SMALL[kind]), DATA.repeat(200), 40)
        assert_near(found / 200, expected, error / 200, largest_error=0.05)


@pytest.mark.parametrize(
    ("bound", "gradient", "kl"), [c for c in itertools.product(BOUNDS, GRADIENTS, KLS) if not composes(*c)]
)
def test_what_does_not_compose_is_refused_with_a_remedy(bound, gradient, kl):
    with pytest.raises(UsageError, match=r"do not compose: .*use ") as caught:
        Bound(bound=bound, gradient=gradient, kl=kl, alpha=0.5, num_particles=3)
    message = str(caught.value)
    assert f"'{bound}'" in message or f"'{gradient}'" in message
    # The remedy is a name of the table, or words that compose with the bound.
    remedy = message.rpartition("use ")[2]
    gradients = [g for g in GRADIENTS if f"'{g}'" in remedy]
    assert any(f"'{name}'" in remedy for name in estimators.TABLE) or remedy in ("kl='sampled'",) or gradients
    if remedy.startswith("gradient="):
        assert gradients
        assert all(g in LEGAL[bound] for g in gradients)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_particles": 0}, "at least 1"),
        ({"num_particles": -3}, "at least 1"),
        ({"bound": "iwea"}, "did you mean 'iwae'"),
        ({"gradient": "paths"}, "did you mean 'path'"),
        ({"kl": "analytical"}, "did you mean 'analytic'"),
        ({"gradient": "score"}, "num_particles to 2 or more"),
        ({"gradient": "mixed"}, "num_particles to 2 or more"),
        ({"bound": "iwae", "gradient": "vimco"}, "num_particles to 2 or more"),
        ({"gradient": "relaxed", "temperature": 0.0}, "above 0"),
        ({"gradient": "relaxed", "temperature": -1.0}, "above 0"),
        ({"gradient": "relaxed", "temperature": math.nan}, "above 0"),
        ({"gradient": "relaxed", "temperature": math.inf}, "above 0"),
        ({"bound": "iwae", "gradient": "relaxed"}, "bias .* is not known; use 'vimco'"),
        ({"bound": "renyi", "gradient": "relaxed"}, "bias .* is not known; use 'vimco'"),
        ({"bound": "renyi", "alpha": 1.0}, "use 'trace'"),
        ({"bound": "renyi", "alpha": math.nan}, "alpha must be a number that is finite"),
        ({"bound": "renyi", "alpha": math.inf}, "alpha must be a number that is finite"),
    ],
)
def test_bad_words_and_numbers_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        Bound(**options)


@pytest.mark.parametrize("name", OURS)
def test_every_name_refuses_no_draws(name):
    with pytest.raises(UsageError, match="num_particles"):
        estimators.get(name, num_particles=0)


def test_whole_numbers_will_do():
    assert Bound(bound="renyi", alpha=2).alpha == 2
    assert Bound(gradient="relaxed", temperature=1).temperature == 1


# A global latent, under a subsampled plate: w ~ N(.5, 2²), z_n | w ~ N(w, 1), x_n | z_n ~ N(z_n, .7²); the guide has
# w ~ N(a, e^r²), z_n | w ~ N(m + c w, .8²).

NUM_DATA = 10


class GlobalModel(nn.Module):
    def forward(self, x):
        w = pyro.sample("w", dist.Normal(x.new_tensor(0.5), 2.0))
        with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)


class GlobalGuide(nn.Module):
    START = (("a", 0.2), ("r", -0.7), ("m", 0.3), ("c", 0.5))

    def __init__(self):
        super().__init__()
        for name, value in self.START:
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def forward(self, x):
        w = pyro.sample("w", dist.Normal(self.a, self.r.exp()))
        with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(self.m + self.c * w, 0.8))


def global_gradient(x):
    """Of −ELBO: every expectation is of a square, E(u − k)² = (E u − k)² + Var u."""
    guide = GlobalGuide()
    a, s, m, c = guide.a, guide.r.exp(), guide.m, guide.c
    prior_w = -0.5 * ((a - 0.5) ** 2 + s**2) / 4
    prior_z = -0.5 * ((m + (c - 1) * a) ** 2 + 0.8**2 + ((c - 1) * s) ** 2)
    likelihood = -0.5 * ((x - m - c * a) ** 2 + 0.8**2 + (c * s) ** 2) / 0.7**2
    elbo = prior_w + guide.r + (prior_z + likelihood).sum() * NUM_DATA / len(x)
    return torch.stack(torch.autograd.grad(-elbo, list(guide.parameters())))


ELBOS = [n for n, s in SERVES.items() if s.bound == "elbo" and "continuous" in s.pairs]


@pytest.mark.slow
@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "loop"])
@pytest.mark.parametrize("name", ELBOS)
def test_a_global_latent_under_a_subsampled_plate_has_the_gradient_of_the_elbo(name, vectorize):
    elbo = make(name, num_particles=200 if vectorize else 10, vectorize_particles=vectorize)
    found, error = mean_gradient(elbo, GlobalModel(), GlobalGuide(), DATA, 50)
    # The data are 5/2 times 4, and the gradients of order 10.
    assert_near(found, global_gradient(DATA), error, largest_error=2.0 if vectorize or name != "score" else 8.0)


MANY = [n for n in OURS if SERVES[n].bound != "elbo"]


@pytest.mark.parametrize("name", MANY)
def test_a_global_latent_under_a_subsampled_plate_is_refused_by_many_sample_bounds(name):
    with pytest.raises(InputError, match=r"site 'w' is shared by all data.*all 10.*not 4; use the ELBO"):
        make(name).loss(GlobalModel(), GlobalGuide(), DATA)


def shared_model(x):
    w = pyro.sample("w", dist.Normal(x.new_zeros(()), x.new_tensor(1.5)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, x.new_ones(())), obs=x)


class SharedGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        self.l = nn.Parameter(torch.tensor(-0.4, dtype=torch.float64))

    def forward(self, x):
        pyro.sample("w", dist.Normal(self.m, self.l.exp()))


@pytest.mark.slow
@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "loop"])
@pytest.mark.parametrize("name", MANY)
def test_a_global_latent_on_all_data_has_one_joint_weight(name, vectorize):
    """Value and gradient by quadrature over three draws of w."""
    points, mass = np.polynomial.hermite_e.hermegauss(30)
    noise, mass = torch.as_tensor(points), torch.as_tensor(mass / mass.sum())
    guide = SharedGuide()
    w = guide.m + guide.l.exp() * noise
    log_weight = dist.Normal(0.0, 1.5).log_prob(w) + dist.Normal(w.unsqueeze(-1), 1.0).log_prob(DATA).sum(-1)
    log_weight = log_weight - dist.Normal(guide.m, guide.l.exp()).log_prob(w)
    grid = torch.cartesian_prod(*[torch.arange(30)] * 3)
    order = 0.5 if name == "renyi" else 0.0
    bound = (((1 - order) * log_weight[grid]).logsumexp(-1) - math.log(3)) / (1 - order)
    loss = -(mass[grid].prod(-1) * bound).sum()
    expected = torch.stack(torch.autograd.grad(loss, list(guide.parameters())))
    elbo = make(name, vectorize_particles=vectorize)
    found, error = mean_gradient(elbo, nn_model(shared_model), guide, DATA, 200)
    assert_near(found, expected, error, largest_error=0.2)
    torch.manual_seed(1)
    losses = torch.tensor([elbo.loss(shared_model, guide, DATA) for _ in range(150)], dtype=torch.float64)
    assert_near(losses.mean(), float(loss.detach()), losses.std() / math.sqrt(150), largest_error=0.05)


def nn_model(program):
    """A function without parameters as a module."""

    class Model(nn.Module):
        def forward(self, x):
            program(x)

    return Model()


# Plates besides the data's.


def groups_pair(subsample, sequential=False):
    """Latents for each of 2 groups, in a plate outside of the data's; what is subsampled is not the data plate."""

    def run(x, observed):
        if sequential:
            for i in pyro.plate("groups", 4, 2):
                z = pyro.sample(f"z_{i}", dist.Normal(x.new_zeros(()), 1.0))
                if observed:
                    pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])
            return
        outer, inner = (4, len(x)) if subsample == "groups" else (2, len(x))
        groups = pyro.plate("groups", outer, subsample=torch.arange(2), dim=-2)
        size = 2 * len(x) if subsample == "items" else inner
        items = pyro.plate("items", size, subsample=torch.arange(len(x)), dim=-1)
        with groups:
            z = pyro.sample("z", dist.Normal(x.new_zeros(2, 1), 1.0))
            with items:
                if observed:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(2, -1))

    return lambda x: run(x, True), lambda x: run(x, False)


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("plate", ["items", "sequential"])
def test_a_scale_that_would_stand_inside_the_logarithm_is_refused(name, plate):
    """Trap 1 by another road: the plate that is subsampled is not the one over which weights are taken."""
    elbo = make(name)
    with pytest.raises(InputError, match=r"use the ELBO"):
        elbo.loss(*groups_pair(plate, plate == "sequential"), DATA)


def test_subsampled_groups_are_the_data():
    """Each group has its latent and all its items, so that weights are taken over groups, and their scale stands outside."""
    model, guide = groups_pair("groups")
    torch.manual_seed(0)
    z = torch.randn(2, 1, dtype=DATA.dtype)
    weight = dist.Normal(z, 1.0).log_prob(DATA.expand(2, -1)).sum(-1)  # the guide is the prior
    with pyro.poutine.condition(data={}):
        torch.manual_seed(0)
        assert make("iwae", num_particles=1).loss(model, guide, DATA) == pytest.approx(
            -2 * float(weight.sum()), rel=1e-10
        )


@pytest.mark.parametrize("name", [n for n in ELBOS if n in OURS and n != "analytic"])
def test_the_elbo_is_served_there_as_by_pyro(name):
    # In the loop over a sequential plate the draws share their minibatch, and Pyro's do not: one draw there.
    for plate in ("groups", "items", "sequential"):
        count = 1 if plate == "sequential" and name not in ("score", "mixed") else 2
        pair = groups_pair(plate, plate == "sequential")
        found = []
        for elbo in (Trace_ELBO(num_particles=count), make(name, num_particles=count, vectorize_particles=False)):
            torch.manual_seed(2)
            found.append(elbo.loss(*pair, DATA))
        if plate != "sequential" or count == 1:
            assert found[0] == pytest.approx(found[1], rel=1e-10)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("where", ["other plate", "no plate"])
def test_a_guide_whose_site_is_not_in_the_data_plate_is_refused(name, where):
    """Its log q is no datum's, and would count once for each: −13.09 for 6.55 on four data."""

    def guide(x):
        if where == "no plate":
            pyro.sample("z", dist.Normal(0.3 * x, 0.8).to_event(1))
        else:
            with pyro.plate("batch", len(x)):
                pyro.sample("z", dist.Normal(0.3 * x, 0.8))

    with pytest.raises(InputError, match=r"'z' is in the data's plate 'data'.*pyro.plate\('data'"):
        make(name, vectorize_particles=False).loss(conjugate_model, guide, DATA)


@pytest.mark.parametrize("name", OURS)
def test_a_site_that_the_guide_lacks_is_refused(name):
    """A latent that the guide lacks: Pyro's draw it from the prior, with a warning only."""

    def model(x):
        v = pyro.sample("v", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(v, 1.0), obs=x)

    def guide(x):
        pass

    with pytest.raises(InputError, match="no site 'v'"):
        make(name).loss(model, guide, DATA)
