"""Every guide with every model: it fits, draws, saves, loads and compiles, or it is refused for a stated reason.

The guides are all that have a name; the models and the refusals are those of `shelf_catalogue`.
"""

import io
import math
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from differential.harness import float64
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from shelf_catalogue import COLUMNS, MATRIX, QUICK, SHELF, Refusal, cell, matrix

import pyro_vi
from pyro_vi import estimators, guides, models
from pyro_vi.data.loading import load
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators.objective import Objective
from pyro_vi.programs import Pair, build_pair, isolated, support_of, swapped
from pyro_vi.programs.lookup import AUTOGUIDES
from pyro_vi.tracing import trace

STEPS, RATE = 30, 0.05


def cells(refused: bool = True) -> list[Any]:
    """All cells, or those that are served; slow where neither the guide nor the model is quick."""
    return [
        pytest.param(guide, column, id=f"{guide}-{column}", marks=() if quick else pytest.mark.slow)
        for guide in SHELF
        for column in COLUMNS
        if refused or not isinstance(cell(guide, column), Refusal)
        for quick in [isinstance(cell(guide, column), Refusal) or (guide in QUICK and COLUMNS[column].quick)]
    ]


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Double precision. Types are checked by all other tests: here that would take half of the time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with float64():
        yield


def built(guide: str, column: str, seed: int = 0) -> tuple[Pair, Objective, tuple[Any, ...]]:
    """A pair with the objective of its fit and its batch, which is all data."""
    entry = COLUMNS[column]
    model, values = entry.make()
    data = load(values, heldout=0.0, integers=None if isinstance(model, str) else True)
    pair = build_pair(model, SHELF[guide].named(guide), data, seed=seed)
    options = {"max_plate_nesting": entry.nesting} if entry.discrete else {}
    return (
        pair,
        Objective(pair, estimators.get("enum" if entry.discrete else "trace", **options)),
        data.example(data.spec.num_data),
    )


def test_every_guide_says_what_it_serves_and_every_model_is_tried() -> None:
    assert [*SHELF] == [*guides.TABLE, *AUTOGUIDES]
    assert {*models.TABLE} <= {*COLUMNS}
    assert all({*row.refused} <= {*COLUMNS} for row in SHELF.values())


def test_the_document_is_that_of_the_table() -> None:
    assert MATRIX.read_text(encoding="utf-8") == matrix(), "run python tests/shelf_catalogue.py"


@pytest.mark.parametrize(("guide", "column"), cells())
def test_a_guide_serves_a_model_or_is_refused(guide: str, column: str) -> None:
    expected = cell(guide, column)
    if isinstance(expected, Refusal):
        with pytest.raises(InputError, match=expected.words) as caught:
            built(guide, column)
        assert str(caught.value).startswith(f"guide '{guide}' ") and "\n" not in str(caught.value)
        return
    pair, objective, batch = built(guide, column)
    assert bool(pair.owned()) == (expected == "✓")
    if expected == "✓":
        assert_learns(pair, objective, batch)
    assert_draws(pair, batch)
    assert_saved(pair, objective, batch, built(guide, column, seed=1)[0])


def assert_learns(pair: Pair, objective: Objective, batch: tuple[Any, ...]) -> None:
    """Losses are finite and fall, and each parameter gets a gradient."""
    parameters = {name: parameter for name, (_, parameter) in pair.owned().items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=RATE)
    losses, without = [], set(parameters)
    with isolated(2, validation=False):
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = objective(batch)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            without -= {n for n in without if (g := parameters[n].grad) is not None and bool((g != 0).any())}
    assert all(map(math.isfinite, losses))
    assert not without, f"no gradient: {', '.join(sorted(without))}"
    assert all(bool(p.isfinite().all()) for p in parameters.values())
    assert sum(losses[-10:]) / 10 < sum(losses[:3]) / 3


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


def assert_saved(pair: Pair, objective: Objective, batch: tuple[Any, ...], other: Pair) -> None:
    """A pair from another seed has the same loss, once it has the parameters."""
    file = io.BytesIO()
    torch.save(pair.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    losses = []
    for one in (pair, other):
        with isolated(4, validation=False):
            losses.append(objective.elbo.loss(one.model, one.guide, *batch))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("guide", "column"), [(g, c) for g in SHELF for c in COLUMNS if cell(g, c) == "–"])
def test_a_pair_without_parameters_is_not_fitted(guide: str, column: str) -> None:
    model, data = COLUMNS[column].make()
    with pytest.raises(UsageError, match="the pair has no parameters to fit; look at it with `audit` or `evidence`"):
        pyro_vi.fit(model, guide, data, elbo="enum" if COLUMNS[column].discrete else "trace", steps=1, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("guide", "column"), cells(refused=False))
def test_a_step_has_a_graph(guide: str, column: str) -> None:
    """What is compiled is a graph of the loss: it has the loss of the programs under the same draws."""
    pair, objective, batch = built(guide, column)
    parameters = list(pair.parameters())
    tensors = [i for i, value in enumerate(batch) if isinstance(value, torch.Tensor)]

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        args, given = list(batch), inputs[len(parameters) :]
        for i, value in zip(tensors, given, strict=True):
            args[i] = value
        with swapped(pair, dict(zip(map(id, parameters), inputs, strict=False))):
            return objective(tuple(args))

    inputs = [*(p.detach() for p in parameters), *(batch[i] for i in tensors)]
    with isolated(5, validation=False):
        expected = objective(batch)
    with isolated(6, validation=False):
        graph = trace(loss, *inputs)
    with isolated(5, validation=False):
        torch.testing.assert_close(graph(*inputs), expected.detach(), rtol=1e-9, atol=0)
