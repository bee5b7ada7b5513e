"""The contract of every estimator in the table: an unbiased gradient of the bound that it names, and a good guest of Pyro."""

import copy
import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimator_catalogue import (
    DATA,
    NAMES,
    OURS,
    SERVES,
    SMALL,
    START,
    Small,
    assert_near,
    exact_loss,
    functions,
    make,
    mean_gradient,
    modules,
    parameters,
    straight_through_gradient,
)
from pyro.infer import SVI
from torch import Tensor

from pyro_vi import estimators
from pyro_vi.errors import InputError
from pyro_vi.estimators.traits import differentiable_loss
from pyro_vi.programs.layout import data_plate
from pyro_vi.programs.pair import Pair

COPIES, EVALUATIONS = 300, 30
"""Copies of each datum, so that one evaluation is many draws, and evaluations: their spread is known to about 1 in 8."""


CASES = [(name, kind) for name, serves in SERVES.items() for kind in serves.pairs]

every_estimator = pytest.mark.parametrize("name", estimators.TABLE)
every_case = pytest.mark.parametrize(("name", "kind"), CASES)
both_ways = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "loop"])


def build(name: str, kind: str, **options: Any) -> tuple[Any, Any]:
    return modules(SMALL[kind], infer=SERVES[name].infer.get(kind), **options)


def expected_gradient(name: str, kind: str, x: Tensor, alpha: float = 0.5) -> Tensor:
    serves, p = SERVES[name], parameters()
    if serves.biased:
        return straight_through_gradient(x, temperature=0.5)
    loss = exact_loss(SMALL[kind], x, p, serves.bound, serves.count, alpha)
    return torch.stack(torch.autograd.grad(loss, [p[n] for n in NAMES]))


def loss_and_gradient(elbo: Any, pair: Pair, x: Tensor) -> tuple[Tensor, Tensor]:
    loss = differentiable_loss(elbo, pair, (x,))
    found = torch.autograd.grad(loss, list(pair.parameters()), allow_unused=True)
    return loss.detach(), torch.stack([torch.zeros(()).to(x) if g is None else g for g in found])


def test_every_name_of_the_table_says_what_it_serves():
    assert list(SERVES) == list(estimators.TABLE)


@every_case
@both_ways
def test_the_mean_gradient_is_that_of_the_bound(name, kind, vectorize):
    """By quadrature or enumeration (`exact_loss`); the relaxed gradient's own expectation, for it is biased."""
    elbo = make(name, vectorize_particles=vectorize)
    found, error = mean_gradient(elbo, *build(name, kind), DATA.repeat(COPIES), EVALUATIONS)
    assert_near(found / COPIES, expected_gradient(name, kind, DATA), error / COPIES, largest_error=0.1)


@pytest.mark.slow
@every_case
def test_the_mean_gradient_is_that_of_the_bound_in_float32(name, kind):
    model, guide = build(name, kind, dtype=torch.float32)
    found, error = mean_gradient(make(name), model, guide, DATA.float().repeat(COPIES), EVALUATIONS)
    # A sum of 800 terms of order 1, rounded: 800 times 6e-8.
    expected = expected_gradient(name, kind, DATA)
    assert_near(found / COPIES, expected, error / COPIES, largest_error=0.1, rounding=5e-5)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_loss_and_gradients_keep_the_dtype(name, kind, dtype):
    loss, gradient = loss_and_gradient(make(name), Pair(*build(name, kind, dtype=dtype)), DATA.to(dtype))
    assert loss.dtype == gradient.dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if SERVES[case[0]].subsamples])
def test_the_mean_over_all_minibatches_is_that_of_the_full_data(name, kind):
    """All six minibatches of 2 of the 4 data, under a plate of the full size."""
    found, error = minibatches(name, kind)
    assert_near(found, expected_gradient(name, kind, DATA), error, largest_error=0.1)


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if not SERVES[case[0]].subsamples])
def test_what_does_not_subsample_is_off_by_more_than_the_error(name, kind):
    """So that the list of `SERVES` says what is: it must be taken out there if this fails."""
    found, error = minibatches(name, kind)
    assert ((found - expected_gradient(name, kind, DATA)).abs() > 8 * error).any()


def minibatches(name: str, kind: str) -> tuple[Tensor, Tensor]:
    model, guide = build(name, kind, size=len(DATA) * COPIES)
    parts = []
    for seed, rows in enumerate(itertools.combinations(range(len(DATA)), 2)):
        parts.append(mean_gradient(make(name), model, guide, DATA[list(rows)].repeat(COPIES), 10, seed))
    found = torch.stack([mean for mean, _ in parts]).mean(0)
    error = torch.stack([se for _, se in parts]).square().sum(0).sqrt() / len(parts)
    return found / COPIES, error / COPIES


@pytest.mark.slow
@every_case
@both_ways
def test_the_mean_loss_is_the_negative_bound(name, kind, vectorize):
    serves, elbo = SERVES[name], make(name, vectorize_particles=vectorize)
    with torch.no_grad():
        expected = exact_loss(SMALL[kind], DATA, parameters(), serves.bound, serves.count, 0.5)
    programs, x = build(name, kind), DATA.repeat(COPIES)
    torch.manual_seed(1)
    losses = torch.tensor([elbo.loss(*programs, x) for _ in range(EVALUATIONS)], dtype=torch.float64) / COPIES
    assert_near(losses.mean(), expected, losses.std() / EVALUATIONS**0.5, largest_error=0.05)


@every_case
def test_equal_seeds_give_equal_bits(name, kind):
    found = []
    for elbo in (make(name), make(name)):
        pair = Pair(*build(name, kind))
        for _ in range(2):  # an object's first evaluation, which finds things out, and its second
            torch.manual_seed(3)
            found.append(loss_and_gradient(elbo, pair, DATA))
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])
    torch.manual_seed(4)
    loss, gradient = loss_and_gradient(elbo, pair, DATA)
    exact = name == "enum" and kind == "discrete"  # nothing is drawn there
    assert torch.equal(gradient, found[0][1]) == exact


@every_case
@both_ways
def test_three_ways_to_the_loss_are_one(name, kind, vectorize):
    elbo = make(name, vectorize_particles=vectorize)
    pair, programs = Pair(*build(name, kind)), functions(SMALL[kind], SERVES[name].infer.get(kind))
    torch.manual_seed(5)
    loss, gradient = loss_and_gradient(elbo, pair, DATA)
    torch.manual_seed(5)
    assert elbo.loss(*programs, DATA) == pytest.approx(float(loss), rel=1e-10)
    torch.manual_seed(5)
    assert elbo.loss_and_grads(*programs, DATA) == pytest.approx(float(loss), rel=1e-10)
    stored = torch.stack([pyro.param(n).grad for n in NAMES])
    torch.testing.assert_close(stored, gradient, rtol=1e-10, atol=1e-10)
    pyro.clear_param_store()


@pytest.mark.parametrize("name", OURS)
def test_loss_and_grads_adds_to_the_gradients_of_plain_modules(name):
    """Pyro's own do so only where the programs have param statements."""
    pair, elbo = Pair(*build(name, SERVES[name].pairs[-1])), make(name)
    torch.manual_seed(5)
    _, gradient = loss_and_gradient(elbo, pair, DATA)
    for p in pair.parameters():
        p.grad = torch.ones_like(p)
    torch.manual_seed(5)
    elbo.loss_and_grads(pair.model, pair.guide, DATA)
    stored = torch.stack([p.grad for p in pair.parameters()])
    torch.testing.assert_close(stored, gradient + 1, rtol=1e-10, atol=1e-10)


@every_case
def test_functions_in_svi_and_modules_under_torch_optim_take_the_same_steps(name, kind):
    steps, rate = 3, 0.05
    model, guide = functions(SMALL[kind], SERVES[name].infer.get(kind))
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, pyro.optim.SGD({"lr": rate}), loss=make(name))
        torch.manual_seed(6)
        losses = [svi.step(DATA) for _ in range(steps)]
        store = {n: pyro.param(n).detach().clone() for n in NAMES}
    pair, elbo = Pair(*build(name, kind)), make(name)
    optimizer = torch.optim.SGD(pair.parameters(), lr=rate)
    # Pyro's graph estimator has no differentiable_loss, so that its ELBOModule does not run.
    module = elbo(pair.model, pair.guide) if hasattr(elbo, "differentiable_loss") else None
    torch.manual_seed(6)
    for step in range(steps):
        optimizer.zero_grad()
        loss = module(DATA) if module is not None else differentiable_loss(elbo, pair, (DATA,))
        assert float(loss.detach()) == pytest.approx(losses[step], rel=1e-10)
        loss.backward()
        optimizer.step()
    for n, parameter in zip(NAMES, pair.parameters(), strict=True):
        torch.testing.assert_close(store[n], parameter.detach(), rtol=1e-10, atol=1e-10)
    assert any(abs(float(store[n]) - START[n]) > 1e-6 for n in NAMES)


def test_only_pyros_graph_estimator_is_no_elbo_module():
    assert [n for n, e in estimators.TABLE.items() if not hasattr(e.cls, "differentiable_loss")] == ["graph"]


class Noise:
    """Given noise in a fixed order, however many numbers are asked for at once."""

    def __init__(self) -> None:
        self.numbers = torch.randn(1000, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        self.used = 0

    def take(self, shape: torch.Size) -> Tensor:
        start, self.used = self.used, self.used + shape.numel()
        return self.numbers[start : self.used].reshape(shape)


class GivenNormal(dist.Normal):
    """A Normal whose draws come from given noise."""

    def __init__(self, loc: Any, scale: Any, noise: Noise) -> None:
        super().__init__(loc, scale)
        self.noise = noise

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return GivenNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise.take(self._extended_shape(sample_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()


class GivenBernoulli(dist.Bernoulli):
    """A Bernoulli whose draws come from given noise."""

    def __init__(self, logits: Tensor, noise: Noise) -> None:
        super().__init__(logits=logits)
        self.noise = noise

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return GivenBernoulli(self.logits.expand(batch_shape), self.noise)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        uniform = torch.special.ndtr(self.noise.take(self._extended_shape(sample_shape)))
        return (uniform < self.probs.detach()).to(self.logits.dtype)


# The relaxation makes its own draws: test_relaxed.py compares both ways with its expectation.
@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] != "relaxed"])
def test_vectorized_and_loop_are_equal_on_given_draws(name, kind):
    found = []
    for vectorize in (True, False):
        noise = Noise()
        small = SMALL[kind]

        def guide(x: Tensor, m: Tensor, slope: Tensor, noise: Noise = noise) -> Any:
            if kind == "continuous":
                return GivenNormal(m, slope.exp(), noise)
            return GivenBernoulli(m + slope * x, noise)

        given = Small(small.prior, guide, small.mean, small.log_weight, small.points)
        pair = Pair(*modules(given))
        elbo = make(name, num_particles=4, vectorize_particles=vectorize)
        loss_and_gradient(elbo, pair, DATA)  # the first evaluation finds the plates, on draws of its own
        noise.used = 0
        found.append(loss_and_gradient(elbo, pair, DATA))
        assert noise.used == 4 * len(DATA)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-10)


@every_case
@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("torchs", [True, False])
def test_global_state_stays_as_it_is(name, kind, validation, torchs):
    """Also where torch's validation of distributions is not as Pyro's, as when zuko has been imported."""

    def state():
        flags = dict(pyro.settings.get()), torch.distributions.Distribution._validate_args
        return flags, torch.get_default_dtype(), list(pyro.get_param_store().keys())

    elbo, pair = make(name), Pair(*build(name, kind))
    with pyro.validation_enabled(validation):
        torch.distributions.Distribution.set_default_validate_args(torchs)
        pyro.param("mine", torch.tensor(1.0))
        before = state()
        loss_and_gradient(elbo, pair, DATA)
        elbo.loss(pair.model, pair.guide, DATA)
        elbo.loss_and_grads(pair.model, pair.guide, DATA)
        assert state() == before
        pyro.clear_param_store()


@pytest.mark.parametrize("name", OURS)
def test_a_deep_copy_forgets_the_pairs_that_were_met(name):
    elbo = make(name, num_particles=4)
    pair = Pair(*build(name, SERVES[name].pairs[-1]))
    elbo.loss(pair.model, pair.guide, DATA)
    assert len(elbo._plans) == 1
    assert vars(copy.deepcopy(elbo)) == {**vars(elbo), "_plans": {}}


def deeper(kind: str) -> tuple[Any, Any]:
    """A pair with the data at dimension −2 of a second plate."""

    def draw(x: Tensor, parameter: Tensor) -> Any:
        if kind == "continuous":
            return dist.Normal(parameter * x, 0.7)
        return dist.Bernoulli(logits=parameter * x)

    def model(x: Tensor) -> None:
        with data_plate(None, x, dim=-2), pyro.plate("features", 2, dim=-1):
            z = pyro.sample("z", draw(torch.zeros_like(x), x.new_tensor(0.3)))
            pyro.sample("x", dist.Normal(z, x.new_ones(())), obs=x)

    def guide(x: Tensor) -> None:
        with data_plate(None, x, dim=-2), pyro.plate("features", 2, dim=-1):
            pyro.sample("z", draw(x, pyro.param("slope", x.new_tensor(0.4))))

    return model, guide


@pytest.mark.parametrize("name", OURS)
@both_ways
def test_one_object_serves_two_models(name, vectorize):
    """Pyro's guess the depth of plates at the first pair and keep it; in either order, each loss is that of a fresh object."""
    kind = SERVES[name].pairs[-1]
    flat, nested = (functions(SMALL[kind]), DATA), (deeper(kind), torch.stack([DATA, -DATA], -1))
    for order in ((flat, nested), (nested, flat)):
        shared = make(name, num_particles=4, vectorize_particles=vectorize)
        for (model, guide), x in (*order, *order):
            fresh = make(name, num_particles=4, vectorize_particles=vectorize)
            losses = []
            for elbo in (shared, fresh):
                torch.manual_seed(9)
                losses.append(elbo.loss(model, guide, x))
            assert losses[0] == losses[1]
    pyro.clear_param_store()


def test_pyros_own_object_does_not_serve_two_models():
    """The error that the test above guards against: the particles' plate collides with a plate of the second model."""
    shared = estimators.get("trace", num_particles=4, vectorize_particles=True)
    shared.loss(*functions(SMALL["continuous"]), DATA)
    with pytest.raises((ValueError, RuntimeError)):
        shared.loss(*deeper("continuous"), torch.stack([DATA, -DATA], -1))
    pyro.clear_param_store()


@pytest.mark.parametrize("name", OURS)
def test_plans_do_not_pile_up_with_bound_methods(name):
    """``vae.model`` is a new object at each look; a loop over steps must not find the pair anew each time."""

    class Both:
        def __init__(self) -> None:
            self.programs = modules(SMALL[SERVES[name].pairs[-1]])

        def model(self, x: Tensor) -> None:
            self.programs[0](x)

        def guide(self, x: Tensor) -> None:
            self.programs[1](x)

    both, elbo = Both(), make(name)
    for _ in range(5):
        elbo.loss(both.model, both.guide, DATA)
    assert len(elbo._plans) == 1


@pytest.mark.parametrize("name", OURS)
def test_particles_are_made_in_one_run_only_where_that_is_right(name):
    """A model that takes ``w[0]`` from the left gives other numbers in an outer plate of 2, silently."""
    if "continuous" in SERVES[name].pairs:
        prior, posterior = dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Normal(torch.tensor([0.3, 0.9]), 0.2)
    else:
        prior, posterior = dist.Bernoulli(torch.full((2,), 0.4)).to_event(1), dist.Bernoulli(torch.tensor([0.3, 0.9]))
    x = torch.tensor([0.5, -2.0])

    def model(x: Tensor) -> None:
        w = pyro.sample("w", prior)
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(w[0] + w[1] * x, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", posterior.to_event(1))

    def losses(**options: Any) -> list[float]:
        elbo = make(name, num_particles=2, **options)
        torch.manual_seed(2)
        return [elbo.loss(model, guide, x) for _ in range(5)]

    assert losses() == losses(vectorize_particles=False)
    with pytest.raises(InputError, match="leave vectorize_particles out"):
        losses(vectorize_particles=True)


@pytest.mark.parametrize("name", OURS)
def test_particles_are_made_in_one_run_where_they_can(name):
    model, guide = functions(SMALL[SERVES[name].pairs[-1]])
    calls = []

    def counted(x: Tensor) -> None:
        calls.append(1)
        guide(x)

    elbo = make(name, num_particles=4)
    elbo.loss(model, counted, DATA)
    calls.clear()
    elbo.loss(model, counted, DATA)
    assert len(calls) == 1
    pyro.clear_param_store()
