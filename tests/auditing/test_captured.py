"""Captured graphs are the programs: same values, gradients and draws, at any parameters, on any batch, one or many at once."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import CATALOGUE, ConjugateGuide, columns, conjugate_model, number, scalars
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO, trace_elbo, trace_mean_field_elbo
from pyro.infer.util import torch_item
from pyro.util import warn_if_nan
from torch import Tensor, nn

from pyro_vi.auditing.auditor import audit
from pyro_vi.auditing.captured import Captured, capture
from pyro_vi.data.dataset import Batch
from pyro_vi.errors import NoGraph
from pyro_vi.estimators.table import TABLE, get
from pyro_vi.estimators.traits import differentiable_loss
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.pair import Pair

EXACT = {"rtol": 1e-10, "atol": 1e-12}
ELBOS = {
    **{name: name for name in ("trace", "mean_field", "graph", "enum", "tmc", "analytic", "stl")},
    **{name: f"{name}(num_particles=3)" for name in ("iwae", "dreg", "renyi", "score", "mixed", "vimco")},
    "relaxed": "relaxed",
}


def hierarchical_pair() -> tuple[Any, Any]:
    """The guide draws b given a, and both before the local z."""

    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(number(0.0), 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(b, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", number(0.4))
        scale = pyro.param("scale", number(0.6), constraint=dist.constraints.positive)
        a = pyro.sample("a", dist.Normal(slope, scale))
        b = pyro.sample("b", dist.Normal(slope * a, 0.7))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * (x + b), scale))

    return model, guide


class Twice(dist.Normal):
    """A Normal whose draw is made of two draws of noise: .6² + .8² = 1."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = [torch.empty(shape, dtype=self.loc.dtype).normal_() for _ in range(2)]
        return self.loc + self.scale * (0.6 * noise[0] + 0.8 * noise[1])


def two_noises_pair() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", number(0.6), constraint=dist.constraints.positive)
        w = pyro.sample("w", Twice(0.1 + 0 * scale, scale))
        with pyro.plate("data", len(x)):
            pyro.sample("z", Twice(0.5 * (x + w), scale))

    return model, guide


def low_rank_pair() -> tuple[Any, Any]:
    """A guide whose density cannot be batched: torch adds to a diagonal in place."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        factor = pyro.param("factor", torch.tensor([[0.3], [0.2], [-0.1]], dtype=x.dtype))
        diagonal = pyro.param("diagonal", torch.full((3,), 0.4, dtype=x.dtype), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LowRankMultivariateNormal(0.5 * x, factor, diagonal))

    return model, guide


class Tied(nn.Module):
    """A program with tied weights: encoder and decoder are one matrix, with two names, in a module that both share."""

    def __init__(self, network: nn.Linear, guide: bool) -> None:
        super().__init__()
        self.network, self.again, self.guide = network, network.weight, guide

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if self.guide:
                pyro.sample("z", dist.Normal(self.network(x), 0.5).to_event(1))
            else:
                z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ self.again, 0.7).to_event(1), obs=x)


def tied_pair() -> tuple[Any, Any]:
    network = nn.Linear(3, 2).double()
    return Tied(network, guide=False), Tied(network, guide=True)


def blind_uniform_pair() -> tuple[Any, Any]:
    """A Uniform guide told not to reparameterise: a score-function surrogate, whose value is not the loss, of lifted draws."""

    def guide(x: Tensor) -> None:
        width = pyro.param("width", number(1.4), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(0.3 * x - width, 0.3 * x + width).has_rsample_(False))

    return conjugate_model, guide


def entry(name: str) -> tuple[Callable[[], tuple[Any, Any]], Batch]:
    return CATALOGUE[name].build, CATALOGUE[name].batch


# Pair -> how to build it, its batch, and the sites of the draws that one evaluation of one particle takes, in their order.
PAIRS: dict[str, tuple[Callable[[], tuple[Any, Any]], Batch, list[str]]] = {
    "closure": (*entry("closure"), ["z"]),
    "linear_gaussian_exact": (*entry("linear_gaussian_exact"), ["z"]),
    "bound_vae": (*entry("bound_vae"), ["z"]),
    "pyro_module": (*entry("pyro_module"), ["w", "z"]),
    "global": (*entry("global"), ["w", "z"]),
    "inner_subsample": (*entry("inner_subsample"), ["w", "data", "z"]),
    "nested_outside": (*entry("nested_outside"), ["w", "u", "z"]),
    "masked_rows": (*entry("masked_rows"), ["z"]),
    "auxiliary": (*entry("auxiliary"), ["u"]),
    "hierarchical": (hierarchical_pair, (scalars(),), ["a", "b", "z"]),
    "two_noises": (two_noises_pair, (scalars(),), ["w", "w", "z", "z"]),
    "tied": (tied_pair, (columns(),), ["z"]),
    "blind_uniform": (blind_uniform_pair, (scalars(),), ["z"]),
    "discrete": (*entry("discrete"), ["z"]),
}
QUICK = ("trace", "mean_field", "enum", "stl", "dreg", "score")
ALIKE = [
    *[("closure", elbo) for elbo in ELBOS if elbo not in QUICK],
    *[("linear_gaussian_exact", elbo) for elbo in ("trace", "analytic", "stl", "dreg")],
    *[("pyro_module", "trace"), ("bound_vae", "vimco"), ("tied", "dreg")],
    *[("nested_outside", "stl"), ("masked_rows", "trace"), ("auxiliary", "stl")],
    *[("hierarchical", "trace"), ("hierarchical", "score"), ("two_noises", "trace"), ("blind_uniform", "trace")],
]
CASES = [
    *[("closure", elbo) for elbo in QUICK],
    *[("pyro_module", "stl"), ("global", "mean_field"), ("inner_subsample", "stl")],
    *[("hierarchical", "stl"), ("two_noises", "stl"), ("discrete", "relaxed")],
    *[pytest.param(*case, marks=pytest.mark.slow) for case in ALIKE],
]


def built(name: str) -> tuple[Pair, list[Tensor], Batch, list[str]]:
    build, args, sites = PAIRS[name]
    pair = pair_of(*build(), args)
    return pair, [parameter for _, parameter in pair.owned(args).values()], args, sites


def captured(elbo: ELBO, pair: Pair, parameters: list[Tensor], args: Batch) -> Captured:
    with isolated(0, validation=False):
        return capture(elbo, pair, args, parameters)


def eager(elbo: ELBO, pair: Pair, parameters: list[Tensor], args: Batch, seed: int) -> list[Tensor]:
    """Loss and gradients as a fit takes them."""
    with isolated(seed, validation=False):
        loss = differentiable_loss(elbo, pair, args)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss.detach(), *(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True))]


def drawn(graph: Captured, seed: int) -> list[Tensor]:
    with isolated(seed):
        return graph.draw()


def other_batch(args: Batch) -> Batch:
    return tuple(torch.where((x == 0) | (x == 1), 1 - x, 0.7 * x + 0.2) for x in args)


def test_every_estimator_of_the_table_is_captured():
    assert sorted(ELBOS) == sorted(TABLE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "elbo_name"), CASES)
def test_captured_value_and_gradients_are_the_eager_ones(name, elbo_name):
    """From the same seed: at the parameters and batch of the capture, at others, and of many draws at once."""
    pair, parameters, args, sites = built(name)
    elbo = get(ELBOS[elbo_name])
    graph = captured(elbo, pair, parameters, args)
    assert graph.lifted
    assert [draw.site for draw in graph.draws] == sites
    before = [parameter.detach().clone() for parameter in parameters]
    expected = eager(elbo, pair, parameters, args, seed=1)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in expected[1:]) or name == "linear_gaussian_exact"
    torch.testing.assert_close(list(graph(before, drawn(graph, 1), args)), expected, **EXACT)

    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    moved, other = [parameter.detach() for parameter in parameters], other_batch(args)
    single = []
    for seed in (2, 3, 4):
        single.append(eager(elbo, pair, parameters, other, seed))
        torch.testing.assert_close(list(graph(moved, drawn(graph, seed), other)), single[-1], **EXACT)

    assert not torch.equal(drawn(graph, 2)[0], drawn(graph, 3)[0])
    stacked = [torch.stack(column) for column in zip(*(drawn(graph, seed) for seed in (2, 3, 4)), strict=True)]
    many = graph.many(moved, stacked, other)
    torch.testing.assert_close(list(many), [torch.stack(column) for column in zip(*single, strict=True)], **EXACT)


@pytest.mark.parametrize(
    "name",
    ["tied", *(pytest.param(n, marks=pytest.mark.slow) for n in ("closure", "linear_gaussian_exact", "pyro_module"))],
)
def test_parameters_are_the_same_objects_after_a_capture(name):
    """By identity and value, wherever they stand, also where one stands in several places."""
    pair, parameters, args, _ = built(name)

    def places() -> list[tuple[str, int]]:
        return [
            (f"{where}.{key}", id(value))
            for where, module in pair.named_modules()
            for key, value in (*module._parameters.items(), *module._buffers.items())
        ]

    before, values = places(), [parameter.detach().clone() for parameter in parameters]
    captured(get("stl"), pair, parameters, args)
    assert places() == before
    assert all(torch.equal(p, v) and p.grad is None for p, v in zip(parameters, values, strict=True))
    if name == "tied":
        assert pair.model.network is pair.guide.network
        assert pair.model.again is pair.guide.network.weight
        assert [p is pair.model.again for p in parameters] == [True, False]


def test_parameters_are_the_same_objects_after_a_capture_that_fails():
    pair, parameters, args, _ = built("tied")
    pair.model.forward = lambda x: pair.model.again.detach().sum().item()
    with pytest.raises(NoGraph):
        captured(get("trace"), pair, parameters, args)
    assert pair.model.again is pair.guide.network.weight is parameters[0]


# Pyro's estimators take numbers out of tensors; what stands in for that must not outlive a capture.


def test_the_names_that_a_capture_replaces_are_those_of_pyro():
    assert trace_elbo.torch_item is trace_mean_field_elbo.torch_item is torch_item
    assert trace_elbo.warn_if_nan is trace_mean_field_elbo.warn_if_nan is warn_if_nan
    assert {"torch_item", "warn_if_nan"} <= set(Trace_ELBO.differentiable_loss.__code__.co_names)
    assert "torch_item" in Trace_ELBO._differentiable_loss_particle.__code__.co_names
    assert "torch_item" in TraceMeanField_ELBO._differentiable_loss_particle.__code__.co_names


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
def test_nothing_replaced_outlives_a_capture(elbo, fails):
    seen = []

    def guide(x):
        seen.append(trace_elbo.torch_item is torch_item)
        loc = pyro.param("loc", number(0.3))
        if fails and loc > 0:
            seen.append(True)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    x = scalars()
    pair = pair_of(conjugate_model, guide, (x,))
    seen.clear()
    if fails:
        with pytest.raises(NoGraph):
            captured(get(elbo), pair, list(pair.parameters()), (x,))
    else:
        captured(get(elbo), pair, list(pair.parameters()), (x,))
    assert False in seen  # it was replaced for a while
    for module in (trace_elbo, trace_mean_field_elbo):
        assert module.torch_item is torch_item
        assert module.warn_if_nan is warn_if_nan


def test_a_capture_leaves_generator_and_store():
    pair, parameters, args, _ = built("closure")
    pyro.param("mine", number(1.0))
    with isolated(5, validation=False):
        state = torch.get_rng_state()
        capture(get("score(num_particles=2)"), pair, args, parameters)
        moved = not torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()
    assert not moved


# What has no graph, or one with draws that stay in it.


def gamma_pair() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(number(2.0), 1.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        shape = pyro.param("shape", number(2.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(shape, 2.0 + 0.1 * x))

    return model, guide


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "elbo"),
    [(CATALOGUE["discrete"].build, "score(num_particles=2)"), (gamma_pair, "trace")],
    ids=["Bernoulli", "Gamma"],
)
def test_draws_that_depend_on_parameters_are_not_lifted_and_looped_over(build, elbo):
    args = (scalars(),)
    pair = pair_of(*build(), args)
    graph = captured(get(elbo), pair, list(pair.parameters()), args)
    assert not graph.lifted
    assert graph.draws == ()
    found = audit(*build(), args, elbos=elbo, draws=20)
    assert found.method.values.tolist() == ["loop"]


@pytest.mark.parametrize("elbo", ["trace", "graph", "score(num_particles=2)"])
def test_a_graph_with_its_own_draws_is_right_for_the_draws_that_it_makes(elbo):
    """A Bernoulli's draw is made in the graph, from the same generator: also then value and gradients are the eager ones."""
    pair, parameters, args, _ = built("discrete")
    graph = captured(get(elbo), pair, parameters, args)
    for seed in (1, 2):
        with isolated(seed):
            found = list(graph([p.detach() for p in parameters], graph.draw(), args))
        torch.testing.assert_close(found, eager(get(elbo), pair, parameters, args, seed), **EXACT)


@pytest.mark.slow
def test_what_cannot_be_batched_is_looped_over(capfd):
    args = (columns(),)
    pair = pair_of(*low_rank_pair(), args)
    graph = captured(get("trace"), pair, list(pair.parameters()), args)
    assert graph.lifted
    assert [draw.site for draw in graph.draws] == ["z", "z"]
    expected = eager(get("trace"), pair, list(pair.parameters()), args, 1)
    found = graph([p.detach() for p in pair.parameters()], drawn(graph, 1), args)
    torch.testing.assert_close(list(found), expected, **EXACT)
    assert audit(*low_rank_pair(), args, elbos="trace", draws=20).method.values.tolist() == ["loop"]


def branching(with_if: bool) -> tuple[Any, Any]:
    """The likelihood's scale depends on the sign of w: by Python's if, or by torch.where."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
        scale = (number(0.5) if w > 0 else number(2.0)) if with_if else torch.where(w > 0, number(0.5), number(2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, scale), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", number(0.1)), 0.8))

    return model, guide


@pytest.mark.slow
def test_a_branch_by_the_value_of_a_draw_has_no_graph_and_is_looped_over():
    """The numbers are those of the same model without the branch, many draws at once."""
    x = scalars()
    pair = pair_of(*branching(True), (x,))
    with pytest.raises(NoGraph, match="value out of a tracing tensor"):
        captured(get("trace"), pair, list(pair.parameters()), (x,))
    looped, at_once = (audit(*branching(with_if), x, elbos=("trace", "stl"), draws=40) for with_if in (True, False))
    assert (looped.method == "loop").all()
    assert (at_once.method == "vmap").all()
    for key in ("value_mean", "value_sd", "grad_mean", "grad_var"):
        torch.testing.assert_close(looped[key].values, at_once[key].values, **EXACT)


def test_a_branch_by_the_value_of_the_batch_has_no_graph():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0 if x.sum() > 0 else 2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = number(1.3).reshape(1)
    pair = pair_of(model, ConjugateGuide((0.2, 0.9)), (x,))
    with pytest.raises(NoGraph):
        captured(get("trace"), pair, list(pair.parameters()), (x,))


@pytest.mark.slow
def test_a_shape_that_depends_on_a_draw_has_no_graph():
    """How many draws are above 0 would be held for all draws; it is looped over, to the numbers of a sum of the mask."""

    def counting(number_of: Any) -> Any:
        def model(x: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0).expand([3]).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(z.mean() + number_of(z), 1.0), obs=x)

        return model

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", number(0.1)), 0.8).expand([3]).to_event(1))

    x = scalars()
    by_shape, by_sum = counting(lambda z: len(z[z > 0])), counting(lambda z: (z > 0).sum())
    pair = pair_of(by_shape, guide, (x,))
    with pytest.raises(NoGraph, match=r"shape that depends on values \(x\[mask\]\).*; use torch.where"):
        captured(get("trace"), pair, list(pair.parameters()), (x,))
    looped, at_once = (audit(model, guide, x, elbos="trace", draws=40) for model in (by_shape, by_sum))
    assert (looped.method == "loop").all()
    assert (at_once.method == "vmap").all()
    torch.testing.assert_close(looped.grad_var.values, at_once.grad_var.values, **EXACT)


def test_a_capture_error_is_one_line():
    x = scalars()
    pair = pair_of(*branching(True), (x,))
    with pytest.raises(NoGraph) as caught:
        captured(get("trace"), pair, list(pair.parameters()), (x,))
    assert str(caught.value).startswith("the programs decide by a value")
    assert "\n" not in str(caught.value)


def test_two_captures_on_the_same_draws_have_common_random_numbers():
    """∂/∂m of −log w: trace has z − (x − z), mean_field m − (x − z) with z = m + s ε; they differ by s ε."""
    x = torch.tensor([1.3, -0.4], dtype=torch.float64)
    pair = pair_of(conjugate_model, ConjugateGuide((0.2, 0.9), (0.65, 0.5)), (x,))
    parameters = [pair.guide.m0, pair.guide.m1]
    trace, mean_field = (captured(get(elbo), pair, parameters, (x,)) for elbo in ("trace", "mean_field"))
    for seed in range(3):
        (noise,) = draws = drawn(trace, seed)
        assert torch.equal(noise, drawn(mean_field, seed)[0])
        values = [parameter.detach() for parameter in parameters]
        _, *one = trace(values, draws, (x,))
        _, *two = mean_field(values, draws, (x,))
        m, s = torch.tensor([0.2, 0.65], dtype=torch.float64), torch.tensor([0.9, 0.5], dtype=torch.float64)
        torch.testing.assert_close(torch.stack(one), 2 * (m + s * noise) - x, **EXACT)
        torch.testing.assert_close(torch.stack(two), m + (m + s * noise) - x, **EXACT)
