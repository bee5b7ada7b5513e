"""Compiled draws of the evidence are the eager ones, on blocks and chunks of any length; and the note where there are none."""

import re
from typing import Any

import jaxtyping
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from catalogue import (
    CATALOGUE,
    ConjugateGuide,
    WrongGuide,
    columns,
    conjugate_model,
    exact_pair,
    linear_gaussian,
    number,
    scalars,
)
from torch import Tensor, nn

from pyro_vi.compiling.cost import SECONDS
from pyro_vi.diagnostics import weights
from pyro_vi.diagnostics.log_evidence import evidence
from pyro_vi.diagnostics.weights import Weights
from pyro_vi.elbo import draws, facts_of
from pyro_vi.errors import InputError, UsageError
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import evaluating, isolated
from pyro_vi.support.randomness import generators

SAME = {"rtol": 1e-9, "atol": 1e-9}


def both(model: Any, guide: Any, x: Tensor, **options: Any) -> tuple[xr.Dataset, xr.Dataset]:
    """The evidence with compiled draws and without."""
    options = {"method": "iw", "particles": 50, **options}
    found = [evidence(model, guide, x, compile=mode, **options) for mode in (True, False)]
    assert [one.attrs["note"].split(";")[0] for one in found] == ["compiled draws", "eager draws"]
    return found[0], found[1]


def assert_same(found: tuple[xr.Dataset, xr.Dataset]) -> None:
    for name in ("log_evidence", "mc_se", "ess", "khat"):
        np.testing.assert_allclose(found[0][name], found[1][name], **SAME, err_msg=name)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of the draws is run as it is: everything but Inductor, which takes seconds for each graph."""

    def graph_itself(graph: Any, inputs: Any) -> Any:
        return lambda arguments: graph(*arguments)

    monkeypatch.setattr(weights, "compile_graph", graph_itself)


@pytest.mark.slow
def test_machine_code_gives_the_eager_draws():
    entry = CATALOGUE["vae"]
    assert_same(both(*entry.build(), entry.batch[0], particles=40))


@pytest.mark.slow
def test_machine_code_gives_the_eager_draws_of_a_discrete_site():
    entry = CATALOGUE["discrete"]
    assert_same(both(*entry.build(), entry.batch[0], particles=40))


@pytest.mark.parametrize(
    "name",
    ["discrete", "auxiliary", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vae", "closure", "masked_rows"))],
)
def test_compiled_draws_are_the_eager_ones(name, interpreted):
    entry = CATALOGUE[name]
    one, two = both(*entry.build(), entry.batch[0], particles=40)
    assert_same((one, two))
    again = evidence(*entry.build(), entry.batch[0], method="iw", particles=40, compile=True)
    assert again.identical(one)
    other = evidence(*entry.build(), entry.batch[0], method="iw", particles=40, compile=True, seed=1)
    assert not np.allclose(other.log_evidence, one.log_evidence, **SAME)


@pytest.mark.parametrize("particles", [2, 21, 23])
def test_any_number_of_chunks_and_blocks_of_unequal_length(monkeypatch, interpreted, particles):
    """8 data in blocks of 3, 3 and 2, the last one eager; draws in chunks of 7 and a rest."""
    chunk, rows = 7, 3
    monkeypatch.setattr(draws, "MEMORY", chunk * columns(rows).numel())
    calls = count_calls(monkeypatch)
    assert_same(both(linear_gaussian(), WrongGuide(), columns(), rows=rows, particles=particles))
    proof, blocks = 1, 2
    assert len(calls) == proof + blocks * (particles // min(chunk, particles))


def test_the_exact_guide_gives_the_evidence_of_every_block(monkeypatch, interpreted):
    """With the exact guide all weights are p(x): wrong rows, or a chunk left out, show."""
    monkeypatch.setattr(draws, "MEMORY", 4 * columns(3).numel())
    model, guide = exact_pair()
    for found in both(model, guide, columns(), rows=3, particles=10):
        np.testing.assert_allclose(found.log_evidence, model.log_evidence(columns()).detach(), **SAME)
        np.testing.assert_allclose(found.ess, 10, **SAME)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes each call of compiled draws."""
    calls: list[int] = []
    compile_graph = weights.compile_graph

    def counting(*args: Any) -> Any:
        compiled = compile_graph(*args)
        return lambda inputs: calls.append(len(inputs)) or compiled(inputs)

    monkeypatch.setattr(weights, "compile_graph", counting)
    return calls


class Rows(nn.Module):
    """q(z_n) = N(0.5 x_n, 0.7²) in one dimension; each function puts another mean in the place of 0.5 x."""

    def __init__(self, **functions: Any) -> None:
        super().__init__()
        self.slope = nn.Parameter(number(0.5))
        self.register_buffer("runs", number(0.0))
        self.functions = functions

    def forward(self, x: Tensor) -> None:
        loc = self.slope * x
        for change in self.functions.values():
            loc = change(self, loc)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.7))


def single_draws(x: Tensor) -> None:
    """As `conjugate_model`, written for one draw at a time."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
        pyro.sample("x", dist.Normal(z.reshape(len(x)), 1.0), obs=x)


def test_a_pair_that_makes_one_draw_at_a_time(monkeypatch, interpreted):
    calls = count_calls(monkeypatch)
    found = both(single_draws, Rows(), scalars(), particles=12)
    assert_same(found)
    assert len(calls) == 1 + 12
    assert not pair_vectorizes(single_draws)


def pair_vectorizes(model: Any) -> bool:
    return draws.vectorizes(pair_of(model, Rows(), (scalars(),)), (scalars(),))


def branching(x: Tensor) -> None:
    """The scale depends on the value of a draw."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0 if float(z.sum()) > 0 else 2.0), obs=x)


def listing(x: Tensor) -> None:
    """The scale depends on the values of all draws, taken out as a list."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0 if max(z.tolist()) > 0 else 2.0), obs=x)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling is taken to take no time, so that it pays."""
    monkeypatch.setattr(weights, "to_compile", lambda operations: 0.0)


@pytest.mark.parametrize(("program", "says"), [(branching, "tracing"), (listing, "tolist")])
def test_a_program_that_decides_by_a_value(program, says, interpreted, free):
    options = {"method": "iw", "particles": 12}
    with pytest.raises(
        InputError, match=rf"^the draws cannot be compiled: .*{says}.*; or take compile='auto'$"
    ) as caught:
        evidence(program, Rows(), scalars(), compile=True, **options)
    assert "\n" not in str(caught.value)
    auto, eager = (evidence(program, Rows(), scalars(), compile=mode, **options) for mode in ("auto", False))
    said = str(caught.value).removeprefix("the draws cannot be compiled: ").removesuffix("; or take compile='auto'")
    assert auto.attrs["note"] == f"eager draws: {said}"
    assert auto.drop_attrs().identical(eager.drop_attrs())


def test_auto_compiles_what_pays(monkeypatch, interpreted):
    """A compiler that takes long, one that does for each operation, and one that takes no time; the draws are the same."""
    entry = CATALOGUE["conjugate"]
    notes = {}
    monkeypatch.setitem(SECONDS, "first", 0.0)
    for case, graph, node in (("little", 1e6, 0.0), ("large", 0.0, 1e6), ("much", 0.0, 0.0)):
        monkeypatch.setitem(SECONDS, "graph", graph)
        monkeypatch.setitem(SECONDS, "node", node)
        found = evidence(*entry.build(), entry.batch[0], method="iw", particles=100)
        eager = evidence(*entry.build(), entry.batch[0], method="iw", particles=100, compile=False)
        assert_same((found, eager))
        notes[case] = found.attrs["note"]
    saves = r"eager draws: compiling would save about \d+\.\d s and take "
    assert re.fullmatch(saves + "about 1000000 s", notes["little"])
    assert re.fullmatch(saves + r"about \d+000000 s", notes["large"])
    assert notes["much"] == "compiled draws"


def test_without_a_compiler(monkeypatch, free):
    monkeypatch.setattr(weights, "why_not", lambda device: f"there is none for {device}")
    entry = CATALOGUE["conjugate"]
    with pytest.raises(InputError) as caught:
        evidence(*entry.build(), entry.batch[0], method="iw", compile=True)
    assert str(caught.value) == "the draws cannot be compiled: there is none for cpu; or take compile='auto'"
    assert evidence(*entry.build(), entry.batch[0], method="iw").attrs["note"] == "eager draws: there is none for cpu"


def test_other_numbers_are_refused(monkeypatch, interpreted):
    compile_graph = weights.compile_graph
    off = lambda compiled: lambda inputs: [value + 1e-6 for value in compiled(inputs)]  # noqa: E731
    monkeypatch.setattr(weights, "compile_graph", lambda *args: off(compile_graph(*args)))
    entry = CATALOGUE["conjugate"]
    with pytest.raises(InputError, match="compiled they give other weights than the programs"):
        evidence(*entry.build(), entry.batch[0], method="iw", compile=True)


def test_the_note_where_nothing_is_drawn():
    found = evidence(linear_gaussian(), WrongGuide(), columns(), compile=True)
    assert (found.attrs["method"], found.attrs["note"]) == ("exact", "no draws")


def test_a_guide_without_a_site_is_not_blamed_on_compiling(free):
    def empty(x: Tensor) -> None:
        pyro.param("unused", number(0.0))

    for mode in (True, "auto", False):
        with pytest.raises(InputError, match=r"^the guide has no site 'z'"):
            evidence(conjugate_model, empty, scalars(), method="iw", compile=mode)


def counted(guide: Rows, loc: Tensor) -> Tensor:
    """A buffer that counts runs in place, and moves the guide."""
    guide.runs.add_(1)
    return loc + 0.01 * guide.runs


def replaced(guide: Rows, loc: Tensor) -> Tensor:
    """The same, with a new tensor in its place."""
    guide.runs = guide.runs + 1
    return loc + 0.01 * guide.runs


@pytest.mark.parametrize("mode", [True, "auto"])
def test_a_buffer_that_counts_runs_goes_on(monkeypatch, interpreted, free, mode):
    """Choosing, tracing and proving are not among the runs."""
    monkeypatch.setattr(draws, "MEMORY", 5 * len(scalars()))
    guides = [Rows(change=counted) for _ in range(2)]
    found = [
        evidence(conjugate_model, guide, scalars(), method="iw", particles=20, compile=m)
        for guide, m in zip(guides, (mode, False), strict=True)
    ]
    assert found[0].attrs["note"] == "compiled draws"
    assert_same((found[0], found[1]))
    assert torch.equal(*(guide.runs for guide in guides))


def test_a_buffer_that_is_replaced_is_refused(free):
    with pytest.raises(InputError, match="in the place of a buffer; change it in place; or take compile='auto'"):
        evidence(conjugate_model, Rows(change=replaced), scalars(), method="iw", compile=True)


def test_a_shape_that_depends_on_the_data_is_refused(interpreted, free):
    """It would be that of the first rows, for all."""

    def shaped(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0 + len(x[x > 5])), obs=x)

    x = torch.cat([scalars(), scalars() + 9])
    options = {"method": "iw", "particles": 12, "rows": len(scalars())}
    auto, eager = (evidence(shaped, Rows(), x, compile=mode, **options) for mode in ("auto", False))
    assert "shape that depends on values" in auto.attrs["note"]
    assert auto.drop_attrs().identical(eager.drop_attrs())


def test_a_number_that_a_program_counts_is_refused(interpreted, free):
    def counting(guide: Rows, loc: Tensor) -> Tensor:
        guide.calls = getattr(guide, "calls", 0) + 1
        return loc + guide.calls

    guides = [Rows(change=counting) for _ in range(2)]
    found = [
        evidence(conjugate_model, guide, scalars(), method="iw", particles=20, compile=mode)
        for guide, mode in zip(guides, ("auto", False), strict=True)
    ]
    assert "'calls'" in found[0].attrs["note"]
    assert found[0].drop_attrs().identical(found[1].drop_attrs())


@pytest.mark.parametrize("model", [conjugate_model, branching])
def test_compiling_leaves_generators_and_parameters(interpreted, free, model):
    pair = pair_of(model, ConjugateGuide((0.2, 0.9), (0.65, 0.5)), (scalars(2),))
    with evaluating(pair), isolated(3, validation=False):
        made = Weights(pair, (scalars(2),), 10, True, facts_of(pair, (scalars(2),)))
        before, state = generators(), {name: value.clone() for name, value in pair.state_dict().items()}
        made.compile("auto", 1)
        after = generators()
        assert torch.equal(before.pop("torch"), after.pop("torch"))
        assert str(before["numpy"]) == str(after["numpy"])
    assert made.note.startswith("compiled" if model is conjugate_model else "eager draws: ")
    assert all(torch.equal(value, state[name]) for name, value in pair.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in pair.parameters())


def test_an_unknown_mode(monkeypatch):
    """Also where nothing would be compiled; without the type checks of these tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    entry = CATALOGUE["linear_gaussian_exact"]
    for method in ("iw", "exact"):
        with pytest.raises(UsageError, match=r"^compile must be True, False or 'auto', not 'yes'$"):
            evidence(*entry.build(), entry.batch[0], method=method, compile="yes")


class Jittered(nn.Module):
    """A guide whose Cholesky factor does not exist for data above 50, where it takes another."""

    def forward(self, x: Tensor) -> None:
        matrix = torch.eye(2, dtype=x.dtype) * torch.where((x > 50).any(), -1.0, 1.0)
        try:
            factor = torch.linalg.cholesky(matrix)
        except RuntimeError:
            factor = torch.linalg.cholesky(matrix + 5 * torch.eye(2, dtype=x.dtype))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.clamp(max=1.0), factor[0, 0]))


@pytest.mark.slow
@pytest.mark.parametrize("datum", [0, 4])
def test_where_compiled_draws_raise_on_a_value_they_are_eager(datum, monkeypatch, interpreted):
    """In the block that they are proved on, and in a later one."""
    monkeypatch.setattr(draws, "MEMORY", 5 * 4)
    monkeypatch.setattr(weights, "to_compile", lambda operations: 0.0)
    x = scalars(8)
    x[datum] = 99.0
    options = {"method": "iw", "particles": 50, "rows": 4}
    auto, eager = (evidence(conjugate_model, Jittered(), x, compile=mode, **options) for mode in ("auto", False))
    assert_same((auto, eager))
    assert re.match("eager draws: .* raise.*linalg.cholesky", auto.attrs["note"])
