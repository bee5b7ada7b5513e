"""Estimators that enumerate as graphs: Pyro's numbers at any parameters and batch, and Pyro as it was afterwards."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import discrete_catalogue
import pyro
import pyro.distributions as dist
import pytest
import torch
from estimator_catalogue import DATA
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, TraceTMC_ELBO, trace_elbo, trace_mean_field_elbo, traceenum_elbo, tracetmc_elbo
from pyro.infer import util as infer_util
from pyro.infer.util import Dice, torch_item
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_vi.auditing.captured import Captured, capture
from pyro_vi.errors import NoGraph
from pyro_vi.estimators.table import get
from pyro_vi.estimators.traits import differentiable_loss
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.pair import Pair
from pyro_vi.tracing.graph import stand_ins, without_items

EXACT = {"rtol": 1e-10, "atol": 1e-12, "equal_nan": True}
PARALLEL, SEQUENTIAL = {"enumerate": "parallel"}, {"enumerate": "sequential"}
THREE = {**PARALLEL, "num_samples": 3}
X = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.1], dtype=torch.float64)
Programs = tuple[Callable[[Tensor], None], Callable[[Tensor], None]]


def tensor(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def param(name: str, value: Any, **options: Any) -> Tensor:
    found: Tensor = pyro.param(name, tensor(value), **options)
    return found


def positive(name: str, value: Any) -> Tensor:
    return param(name, value, constraint=dist.constraints.positive)


def local(infer: dict[str, Any]) -> Programs:
    """A Bernoulli for each datum."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(tensor(0.35)))
            pyro.sample("x", dist.Normal(2 * z - 1, positive("noise", 1.0)), obs=x)

    def guide(x: Tensor) -> None:
        m, slope = param("m", 0.4), param("slope", -0.5)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=m + slope * x), infer=dict(infer))

    return model, guide


def impossible() -> Programs:
    """The sign of the datum bars the first or the last of three states, whose cost is ∞ − ∞."""

    def barring(x: Tensor, logits: Tensor) -> Tensor:
        barred = torch.stack([x > 0, torch.zeros_like(x, dtype=torch.bool), x < 0], -1)
        return torch.where(barred, -math.inf, logits)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=barring(x, tensor([1.0, 2.0, 3.0]))))
            pyro.sample("x", dist.Normal(z.to(x.dtype), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logits = barring(x, param("m", [0.4, -0.2, 0.1]) * x.unsqueeze(-1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits), infer=dict(PARALLEL))

    return model, guide


def mixture(size: int | None) -> Programs:
    """A mixture that is summed out in the model, on all data or on a minibatch of ``size``."""

    def model(x: Tensor) -> None:
        logits, locs = param("logits", [0.1, -0.3, 0.4]), param("locs", [-1.0, 0.2, 1.5])
        w = pyro.sample("w", dist.Normal(tensor(0.0), 1.0))
        with pyro.plate("data", size or len(x), subsample=x):
            z = pyro.sample("z", dist.Categorical(logits=logits), infer=dict(PARALLEL))
            pyro.sample("x", dist.Normal(locs[z] + w, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(param("loc", 0.1), positive("scale", 0.5)))

    return model, guide


def global_in_model() -> Programs:
    def model(x: Tensor) -> None:
        weights = param("weights", [0.2, 0.5, 0.3], constraint=dist.constraints.simplex)
        k = pyro.sample("k", dist.Categorical(weights), infer=dict(PARALLEL))
        w = pyro.sample("w", dist.Normal(param("locs", [-1.0, 0.2, 1.5])[k], 1.0))
        with pyro.plate("data", 20, subsample=x):
            pyro.sample("x", dist.Normal(w, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(param("loc", 0.1), positive("scale", 0.5)))

    return model, guide


def global_in_guide(infer: dict[str, Any]) -> Programs:
    """A global Categorical, a row of a table for it, and a Bernoulli for each datum of a minibatch given it."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(tensor(0.0), 1.0))
        k = pyro.sample("k", dist.Categorical(tensor([0.2, 0.5, 0.3])))
        loc = param("locs", [-1.0, 0.2, 1.5])[k]
        with pyro.plate("data", 20, subsample=x):
            z = pyro.sample("z", dist.Bernoulli(tensor(0.3)))
            pyro.sample("x", dist.Normal(loc + z + w, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(param("loc", 0.1), positive("scale", 0.5)))
        k = pyro.sample("k", dist.Categorical(logits=param("g", [0.1, 0.2, 0.3])), infer=dict(infer))
        with pyro.plate("data", 20, subsample=x):
            logits = param("m", [0.4, 0.1, -0.3])[k] + 0.3 * x
            pyro.sample("z", dist.Bernoulli(logits=logits), infer=dict(infer))

    return model, guide


def chain() -> Programs:
    """A hidden Markov model, summed out in the model."""

    def model(x: Tensor) -> None:
        moves = param("moves", [[0.7, 0.3], [0.2, 0.8]], constraint=dist.constraints.simplex)
        locs, z = param("locs", [-1.0, 1.0]), torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z{t}", dist.Categorical(moves[z]), infer=dict(PARALLEL))
            pyro.sample(f"x{t}", dist.Normal(locs[z], 1.0), obs=x[t])

    return model, lambda x: None


def masked(in_model: bool, scale: Callable[[Tensor], Any]) -> Programs:
    def model(x: Tensor) -> None:
        q = param("q", 0.3)
        with pyro.plate("data", len(x)), poutine.mask(mask=x > 0), poutine.scale(scale=scale(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=q), infer=dict(PARALLEL) if in_model else {})
            pyro.sample("x", dist.Normal(2 * z - 1 + q, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=x > 0), poutine.scale(scale=scale(x)):
            pyro.sample("z", dist.Bernoulli(logits=param("m", 0.4) + x), infer=dict(PARALLEL))

    return model, (lambda x: None) if in_model else guide


def normals(infer: dict[str, Any]) -> Programs:
    """Nothing discrete: a global and a local Normal."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(param("loc", 0.1), positive("scale", 0.5)), infer=dict(infer))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(param("slope", 0.5) * x + param("b", 0.2) * w, 0.7), infer=dict(infer))

    return model, guide


def sampled_in_model() -> Programs:
    """Draws of w from the prior, and for each a sum over z."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(param("loc", 0.2), 1.0), infer=dict(THREE))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=w), infer=dict(PARALLEL))
            pyro.sample("x", dist.Normal(z + w, 0.8), obs=x)

    return model, lambda x: None


def binomial(trials: Callable[[Tensor], Any]) -> Programs:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Binomial(trials(x), tensor(0.3)))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Binomial(trials(x), logits=param("m", 0.2) * x), infer=dict(PARALLEL))

    return model, guide


def one_by_one() -> Programs:
    """A plate that hands out its numbers one by one."""

    def model(x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z{i}", dist.Bernoulli(logits=param("m", 0.3)), infer=dict(PARALLEL))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])

    return model, lambda x: None


PAIRS: dict[str, Programs] = {
    "local, sampled": local({}),
    "local, parallel": local(PARALLEL),
    "local, expanded": local({**PARALLEL, "expand": True}),
    "local, sequential": local(SEQUENTIAL),
    "local, 3 samples": local(THREE),
    "impossible": impossible(),
    "mixture": mixture(None),
    "mixture, minibatch": mixture(20),
    "global in model": global_in_model(),
    "global in guide, sampled": global_in_guide({}),
    "global in guide, parallel": global_in_guide(PARALLEL),
    "global in guide, sequential": global_in_guide(SEQUENTIAL),
    "chain": chain(),
    "masked": masked(False, lambda x: 1.0),
    "masked and scaled": masked(False, lambda x: 0.5),
    "masked and scaled by the batch": masked(False, lambda x: x.abs().mean()),
    "masked in model": masked(True, lambda x: 1.0),
    "masked and scaled in model": masked(True, lambda x: 0.5),
    "masked and scaled by a tensor in model": masked(True, lambda x: torch.tensor(3)),
    "masked and scaled by the batch in model": masked(True, lambda x: (x > 0).sum()),
    "normals": normals({}),
    "normals, diagonal": normals(THREE),
    "normals, expanded": normals({**THREE, "expand": True}),
    "normals, mixture": normals({**THREE, "tmc": "mixture"}),
    "sampled in model": sampled_in_model(),
    "binomial": binomial(lambda x: 3),
    "binomial, size from the batch": binomial(lambda x: (x.abs().max() * 0 + 3).round()),
    "one by one": one_by_one(),
}
TMC = (
    *("local, sequential", "local, 3 samples", "mixture, minibatch", "global in model", "global in guide, parallel"),
    *("masked and scaled in model", "masked and scaled by the batch in model", "sampled in model"),
    *("normals", "normals, diagonal", "normals, expanded", "normals, mixture", "one by one"),
)
ONLY_TMC = {"normals, diagonal", "normals, expanded", "normals, mixture", "masked and scaled by the batch in model"}
QUICK = (
    *("local, sampled", "local, parallel", "local, sequential", "impossible", "mixture, minibatch", "chain"),
    *("global in guide, parallel", "masked and scaled by the batch", "masked and scaled in model", "sampled in model"),
)
CASES = [
    *[
        pytest.param(name, "enum", marks=() if name in QUICK else pytest.mark.slow)
        for name in PAIRS
        if name not in {*ONLY_TMC, "binomial, size from the batch"}
    ],
    *[pytest.param(name, "tmc", marks=() if name == "normals, diagonal" else pytest.mark.slow) for name in TMC],
    ("local, sequential", "enum(num_particles=2)"),
    ("mixture, minibatch", "enum(num_particles=2, vectorize_particles=True)"),
    pytest.param(
        "global in guide, parallel", "enum(num_particles=2, vectorize_particles=True)", marks=pytest.mark.slow
    ),
    pytest.param("sampled in model", "tmc(num_particles=2)", marks=pytest.mark.slow),
]
STAYS = {"local, sampled", "local, 3 samples", "global in guide, sampled", "normals, mixture"}
"""Pairs with draws that depend on parameters, or on other draws."""


def built(programs: Programs) -> tuple[Pair, list[Tensor]]:
    pair = pair_of(*programs, (X,))
    return pair, [parameter for _, parameter in pair.owned((X,)).values()]


def captured(elbo: str, pair: Pair, parameters: list[Tensor], x: Tensor = X) -> Captured:
    with isolated(0, validation=False):
        return capture(get(elbo), pair, (x,), parameters)


def eager(elbo: str, pair: Pair, parameters: list[Tensor], x: Tensor, seed: int) -> list[Tensor]:
    with isolated(seed, validation=False):
        loss = differentiable_loss(get(elbo), pair, (x,))
        found = (
            torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else [None] * len(parameters)
        )
    return [loss.detach(), *(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True))]


def run(graph: Captured, parameters: list[Tensor], x: Tensor, seed: int) -> list[Tensor]:
    with isolated(seed):
        return list(graph([parameter.detach() for parameter in parameters], graph.draw(), (x,)))


@pytest.mark.parametrize(("name", "elbo"), CASES)
def test_graphs_give_pyros_numbers_at_other_parameters_batch_and_draws(name, elbo):
    """Other signs in the batch mask other rows and bar other states; zeros mask all rows and bar no state."""
    pair, parameters = built(PAIRS[name])
    graph = captured(elbo, pair, parameters)
    assert graph.lifted == (name not in STAYS)
    expected = eager(elbo, pair, parameters, X, 1)
    assert all(value.isfinite().all() for value in expected)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in expected[1:])
    torch.testing.assert_close(run(graph, parameters, X, 1), expected, **EXACT)
    generator = torch.Generator().manual_seed(9)
    for seed, x in ((2, 0.2 - X), (3, 0 * X)):
        with torch.no_grad():
            for parameter in parameters:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        expected = eager(elbo, pair, parameters, x, seed)
        torch.testing.assert_close(run(graph, parameters, x, seed), expected, **EXACT)
    if not graph.lifted or not graph.draws:
        return
    draws = []
    for seed in (5, 6):
        with isolated(seed):
            draws.append(graph.draw())
    stacked = [torch.stack(column) for column in zip(*draws, strict=True)]
    many = graph.many([parameter.detach() for parameter in parameters], stacked, (X,))
    single = [eager(elbo, pair, parameters, X, seed) for seed in (5, 6)]
    torch.testing.assert_close(list(many), [torch.stack(column) for column in zip(*single, strict=True)], **EXACT)


@pytest.mark.parametrize("infer", [PARALLEL, SEQUENTIAL], ids=["parallel", "sequential"])
@pytest.mark.parametrize("name", ["bernoulli", "one_hot"])
def test_graphs_give_the_enumerated_gradient(name, infer):
    """Against sums over the states that are written out, without Pyro's contraction."""
    entry = discrete_catalogue.PAIRS[name]
    pair = pair_of(*entry.build(infer["enumerate"]), (DATA,))
    graph = captured("enum", pair, list(pair.parameters()), DATA)
    _, *gradients = run(graph, list(pair.parameters()), DATA, 1)
    found = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.testing.assert_close(found, entry.gradient("elbo", 1), **EXACT)


def test_a_graph_gives_the_evidence_of_a_mixture():
    """-Σ over data of log Σ over components, in closed form at new parameters and data."""

    def model(x):
        logits, locs = param("logits", [0.1, -0.3, 0.4]), param("locs", [-1.0, 0.2, 1.5])
        with pyro.plate("data", 20, subsample=x):
            z = pyro.sample("z", dist.Categorical(logits=logits), infer=dict(PARALLEL))
            pyro.sample("x", dist.Normal(locs[z], 0.8), obs=x)

    pair, parameters = built((model, lambda x: None))
    graph = captured("enum", pair, parameters)
    logits, locs = (tensor(value).requires_grad_() for value in ([0.5, 0.2, -1.0], [2.0, 0.1, -0.7]))
    assert [tuple(parameter.shape) for parameter in parameters] == [(3,), (3,)]
    assert torch.equal(parameters[0], tensor([0.1, -0.3, 0.4]))
    x = -X
    terms = logits.log_softmax(-1) + dist.Normal(locs, 0.8).log_prob(x.unsqueeze(-1))
    expected = -20 / len(x) * terms.logsumexp(-1).sum()
    found = run(graph, [logits, locs], x, 1)
    torch.testing.assert_close(found, [expected.detach(), *torch.autograd.grad(expected, [logits, locs])], **EXACT)


# What has no graph.


@pytest.mark.parametrize(
    ("name", "elbo", "reason"),
    [
        ("masked and scaled by the batch in model", "enum", "Pyro compares scales by their values"),
        ("binomial, size from the batch", "enum", "the size of its support is the value of a tensor"),
        ("binomial, size from the batch", "tmc", "the size of its support is the value of a tensor"),
    ],
)
def test_what_pyro_decides_by_values_of_the_programs_has_no_graph(name, elbo, reason):
    pair, parameters = built(PAIRS[name])
    assert eager(elbo, pair, parameters, X, 1)[0].isfinite()
    with pytest.raises(NoGraph, match=f"{reason}: a value out of a tracing tensor") as caught:
        captured(elbo, pair, parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("elbo", ["enum", "tmc"])
def test_a_plate_that_hands_out_random_numbers_has_no_graph(elbo):
    """Each run takes another subsample, and a graph would keep the first one."""

    def model(x):
        for i in pyro.plate("data", len(x), subsample_size=2):
            z = pyro.sample(f"z{i}", dist.Bernoulli(logits=param("m", 0.3)), infer=dict(PARALLEL))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])

    pair, parameters = built((model, lambda x: None))
    with pytest.raises(NoGraph, match="value out of a tracing tensor"):
        captured(elbo, pair, parameters)


# What stands in for Pyro's names, and that it does not outlive a capture.

ORIGINALS: list[tuple[Any, str, Any]] = [
    (trace_elbo, "torch_item", torch_item),
    (trace_elbo, "warn_if_nan", warn_if_nan),
    (trace_mean_field_elbo, "torch_item", torch_item),
    (trace_mean_field_elbo, "warn_if_nan", warn_if_nan),
    (traceenum_elbo, "warn_if_nan", warn_if_nan),
    (tracetmc_elbo, "warn_if_nan", warn_if_nan),
    (Dice, "compute_expectation", Dice.compute_expectation),
    (infer_util, "_fulldot", infer_util._fulldot),
    (traceenum_elbo, "_get_common_scale", traceenum_elbo._get_common_scale),
    (torch.distributions.Binomial, "enumerate_support", torch.distributions.Binomial.enumerate_support),
    (dist.BetaBinomial, "enumerate_support", dist.BetaBinomial.enumerate_support),
]


def assert_untouched() -> None:
    for owner, name, original in ORIGINALS:
        assert vars(owner)[name] is original, name
    assert not torch.overrides._get_current_function_mode_stack()


def test_each_stand_in_is_for_a_name_of_pyro_that_the_estimators_use():
    assert [(owner, name) for owner, name, _ in stand_ins()] == [(owner, name) for owner, name, _ in ORIGINALS]
    assert_untouched()
    assert "warn_if_nan" in TraceEnum_ELBO.differentiable_loss.__code__.co_names
    assert "warn_if_nan" in TraceTMC_ELBO.differentiable_loss.__code__.co_names
    assert "_get_common_scale" in traceenum_elbo._compute_model_factors.__code__.co_names
    assert traceenum_elbo.Dice is Dice
    names = Dice.compute_expectation.__code__.co_names
    assert {"all", "masked_select", "_fulldot"} <= set(names)
    # The one look at values in there, and what it decides.
    source = inspect.getsource(Dice.compute_expectation)
    assert source.count(".all()") == 1
    assert "mask = prob > 0\n" in source
    assert "if torch._C._get_tracing_state() or not mask.all():" in source


@pytest.mark.parametrize("module", [traceenum_elbo, tracetmc_elbo])
def test_nothing_else_in_the_estimators_looks_at_values(module):
    """``float`` in `_get_common_scale` is stood in for; the rest of the losses that take items is never run by a capture."""
    looks = ("item", "tolist", "numpy", "bool", "float", "int", "any", "all", "nonzero", "equal", "allclose")
    functions = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]
    cls = next(
        c for c in vars(module).values() if inspect.isclass(c) and c.__name__ in ("TraceEnum_ELBO", "TraceTMC_ELBO")
    )
    functions += [cls._get_trace, cls._get_traces, cls.differentiable_loss]
    found = {f.__name__: [n for n in looks if n in inspect.unwrap(f).__code__.co_names] for f in functions}
    assert {name: names for name, names in found.items() if names} == (
        {"_get_common_scale": ["float"], "_get_trace": ["any"], "_get_traces": ["float"]}
        if module is traceenum_elbo
        else {"_get_trace": ["any"], "_get_traces": ["float"]}
    )


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("elbo", ["enum", "tmc"])
def test_nothing_stands_in_after_a_capture(elbo, fails):
    seen = []

    def guide(x):
        seen.append([vars(owner)[name] is original for owner, name, original in ORIGINALS])
        m = param("m", 0.4)
        if fails and m > 0:
            pass
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=m + x), infer=dict(PARALLEL))

    pair, parameters = built((PAIRS["local, parallel"][0], guide))
    seen.clear()
    if fails:
        with pytest.raises(NoGraph):
            captured(elbo, pair, parameters)
    else:
        captured(elbo, pair, parameters)
    # All were replaced: for the recording, and where that fails for the trace that follows it.
    assert [any(same) for same in seen].count(False) == 1 + fails
    assert_untouched()


def test_nothing_stands_in_after_an_error_in_the_block():
    with pytest.raises(KeyError), without_items():
        raise KeyError
    assert_untouched()


def test_stand_ins_give_the_numbers_of_the_originals():
    """Without a trace: values and gradients, where a state has no probability and its cost is infinite or nan."""
    prob = tensor([[0.2, 0.0, 0.8], [0.5, 0.5, math.nan]])
    cost = tensor([[1.5, -math.inf, 0.3], [math.nan, 2.0, 7.0]])
    cost[1, 0] = -1.0
    kept = prob > 0
    inputs = [prob.requires_grad_(), cost.requires_grad_()]
    expected = infer_util._fulldot(prob.masked_select(kept), cost.masked_select(kept))
    with without_items():
        found = infer_util._fulldot(prob, cost)
    torch.testing.assert_close(found, expected, **EXACT)
    assert found.isfinite()
    for one, two in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, two, **EXACT)


@pytest.mark.parametrize("index", [1, -1, torch.tensor(1), torch.tensor(-3), torch.tensor(2, dtype=torch.int32)])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 0)])
def test_a_row_of_a_table_is_the_same_by_an_index_that_stays_a_tensor(index, shape):
    table = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape).requires_grad_()
    with without_items():
        found = table[index]
    assert torch.equal(found, table[index])
    one, two = (torch.autograd.grad((2 * row).sum(), table)[0] for row in (found, table[index]))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "index",
    [torch.tensor(True), torch.tensor([1]), torch.tensor([[0, 2], [1, 1]]), (torch.tensor(1), 0), None, ..., slice(2)],
)
def test_other_indices_are_torchs_own(index):
    table = torch.arange(6.0).reshape(3, 2)
    with without_items():
        found = table[index]
    assert torch.equal(found, table[index])


def test_a_row_that_is_not_there_is_an_error():
    with without_items(), pytest.raises(IndexError):
        torch.zeros(3)[torch.tensor(3)]
