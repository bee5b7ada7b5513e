"""Every guide with every model: it fits, draws, saves, loads and compiles, or it is refused for a stated reason.

The guides are all that have a name; the models and the refusals are those of `shelf_catalogue`.
"""

import io
import math
import re
from collections.abc import Iterator
from statistics import median
from typing import Any

import jaxtyping
import pytest
import torch
from differential.harness import float64
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from shelf_catalogue import COLUMNS, MATRIX, SHELF, Guide, Refusal, cell, matrix, quick, traced

import pyro_vi
from pyro_vi import estimators, guides, models
from pyro_vi.data import Data, numbered
from pyro_vi.data.loading import load
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators.objective import Objective
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.programs import Pair, build_pair, isolated, support_of, swapped, takes_row_numbers
from pyro_vi.programs.lookup import AUTOGUIDES
from pyro_vi.tracing import reason, trace

STEPS = 30


CELLS = [
    pytest.param(guide, column, id=f"{guide}-{column}", marks=() if quick(guide, column) else pytest.mark.slow)
    for guide in SHELF
    for column in COLUMNS
]


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Double precision. Types are checked by all other tests: here that would take half of the time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with float64():
        yield


def data_of(values: Any, model: Any) -> Data:
    return load(values, heldout=0.0, integers=None if isinstance(model, str) else True)


def elbo_of(column: str) -> Any:
    entry = COLUMNS[column]
    return estimators.get("enum", max_plate_nesting=entry.nesting) if entry.discrete else estimators.get("trace")


def built(guide: str, column: str, seed: int = 0) -> tuple[Pair, tuple[Any, ...]]:
    """A pair and its batch, which is all data."""
    model, values = COLUMNS[column].make()
    data = data_of(values, model)
    data = numbered(data) if takes_row_numbers(guide) else data
    return build_pair(model, SHELF[guide].named(guide), data, seed=seed), data.example(data.spec.num_data)


def test_every_guide_says_what_it_serves_and_every_model_is_tried() -> None:
    assert [*SHELF] == [*guides.TABLE, *AUTOGUIDES]
    assert {*models.TABLE} <= {*COLUMNS}
    assert all({*row.refused} <= {*COLUMNS} for row in SHELF.values())


def test_the_document_is_that_of_the_table() -> None:
    assert MATRIX.read_text(encoding="utf-8") == matrix(), "run python tests/shelf_catalogue.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ConditionalAutoRegressiveNN input_dim = 1")  # of Pyro's flow of a single number
@pytest.mark.parametrize(("guide", "column"), CELLS)
def test_a_guide_serves_a_model_or_is_refused(guide: str, column: str) -> None:
    expected = cell(guide, column)
    if isinstance(expected, Refusal):
        with pytest.raises(InputError, match=expected.words) as caught:
            built(guide, column)
        assert str(caught.value).startswith(f"guide '{guide}' ") and "\n" not in str(caught.value)
        return
    (pair, batch), elbo = built(guide, column), elbo_of(column)
    assert bool(pair.owned()) == (expected == "✓")
    if expected == "✓":
        assert_learns(pair, elbo, batch, SHELF[guide], COLUMNS[column].idle)
    assert_draws(pair, batch)
    assert_saved(pair, elbo, batch, built(guide, column, seed=1)[0])


def assert_learns(pair: Pair, elbo: Any, batch: tuple[Any, ...], row: Guide, idle: str) -> None:
    """Losses are finite and fall, and each parameter gets a gradient.

    All steps have the same draws: the loss is a function of the parameters then, and does not fall by chance. The draws of a
    Student distribution take random numbers of another count at other parameters, and a single one may be far away.
    """
    parameters, estimator = {name: parameter for name, (_, parameter) in pair.owned().items()}, estimator_of(elbo)
    optimizer = torch.optim.Adam(parameters.values(), lr=row.rate)
    losses, without = [], {n for n in parameters if not any(p and re.search(p, n) for p in (row.idle, idle))}
    with isolated(2, validation=False):
        draws = torch.get_rng_state()
        for _ in range(STEPS):
            torch.set_rng_state(draws)
            optimizer.zero_grad()
            loss = estimator.loss_of_pair(pair, batch)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            without -= {n for n in without if (g := parameters[n].grad) is not None and bool((g != 0).any())}
    assert all(map(math.isfinite, losses))
    assert not without, f"no gradient: {', '.join(sorted(without))}"
    assert all(bool(p.isfinite().all()) for p in parameters.values())
    assert median(losses[-10:]) < median(losses[:3])


def assert_draws(pair: Pair, batch: tuple[Any, ...]) -> None:
    """Each latent site that the estimator does not sum out is drawn, with the shape and the support of its prior."""
    with isolated(3, validation=False), torch.no_grad():
        drawn = poutine.trace(pair.guide).get_trace(*batch)
        nodes = poutine.trace(poutine.replay(pair.model, trace=drawn)).get_trace(*batch).nodes
    latent = {
        n: v for n, v in nodes.items() if v["type"] == "sample" and not (v["is_observed"] or site_is_subsample(v))
    }
    served = [name for name in latent if name in drawn.nodes]
    assert served and all(latent[name]["infer"].get("enumerate") for name in latent if name not in served)
    for name in served:
        prior, value = latent[name]["fn"], drawn.nodes[name]["value"]
        assert value.shape == prior.batch_shape + prior.event_shape, name
        assert bool(support_of(prior).check(value).all()) and bool(prior.log_prob(value).isfinite().all()), name


def assert_saved(pair: Pair, elbo: Any, batch: tuple[Any, ...], other: Pair) -> None:
    """A pair from another seed has the same loss, once it has the parameters."""
    file = io.BytesIO()
    torch.save(pair.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    losses = []
    for one in (pair, other):
        with isolated(4, validation=False):
            losses.append(elbo.loss(one.model, one.guide, *batch))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "guide", [name for name, row in SHELF.items() if not row.learns and cell(name, "keywords") == "–"]
)
def test_a_pair_without_parameters_is_not_fitted(guide: str, column: str = "keywords") -> None:
    model, data = COLUMNS[column].make()
    with pytest.raises(UsageError, match="the pair has no parameters to fit; look at it with `audit` or `evidence`"):
        pyro_vi.fit(model, guide, data, elbo="enum" if COLUMNS[column].discrete else "trace", steps=1, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("guide", "column"), [(g, c) for g in SHELF for c in COLUMNS if traced(g, c)])
def test_a_step_has_a_graph(guide: str, column: str) -> None:
    """What is compiled is a graph of the loss: it has the loss of the programs under the same draws."""
    with isolated(0, validation=False):  # distributions that a program keeps would check their values in the graph
        pair, batch = built(guide, column)
    objective = Objective(pair, elbo_of(column))
    parameters = list(pair.parameters())
    tensors = [i for i, value in enumerate(batch) if isinstance(value, torch.Tensor)]

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        args = list(batch)
        for i, value in zip(tensors, inputs[len(parameters) :], strict=True):
            args[i] = value
        live = [value.detach().requires_grad_() for value in inputs[: len(parameters)]]
        with swapped(pair, dict(zip(map(id, parameters), live, strict=True))):
            return objective(tuple(args))

    inputs = [*(p.detach() for p in parameters), *(batch[i] for i in tensors)]
    with isolated(5, validation=False):
        expected = objective(batch)
    with isolated(6, validation=False):
        try:
            graph = trace(loss, *inputs)
        except Exception as error:
            assert SHELF[guide].eager and re.search(SHELF[guide].eager, reason(error)), reason(error)
            return
    assert not SHELF[guide].eager
    with isolated(5, validation=False):
        torch.testing.assert_close(graph(*inputs).detach(), expected.detach(), rtol=1e-9, atol=0)


@pytest.mark.slow
def test_compiled_steps_are_the_eager_ones() -> None:
    guide, column = "full_normal", "keywords"
    model, values = COLUMNS[column].make()
    runs = [
        pyro_vi.fit(
            *(model, SHELF[guide].named(guide), data_of(values, model)),
            **{"elbo": elbo_of(column), "steps": 5, "batch_size": None, "compile": way, "progress": False},
        )
        for way in (False, True)
    ]
    assert runs[1].compiled
    for name, value in runs[0].params.items():
        torch.testing.assert_close(runs[1].params[name], value, rtol=1e-7, atol=1e-9)
