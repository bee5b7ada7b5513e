"""Libraries made of Inductor's code: one call and several, what is kept on disk, and what is never taken for another graph."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vi.compiling import inductor, kept, native
from pyro_vi.compiling.inductor import collecting_later, compile_graph
from pyro_vi.compiling.native import Native


def graph_of(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    with torch.no_grad():
        return make_fx(function)(*(value.clone() for value in inputs))


def walk(place: Tensor, control: Tensor, table: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A step to a number of the table and a draw; it returns the place, and its square."""
    place.add_(control[0, 1] * table[rows].sum() + torch.randn((), dtype=torch.float64))
    return place + 0, place * place


def walked() -> list[Tensor]:
    table = torch.arange(10, dtype=torch.float64) ** 2
    control = torch.stack([torch.zeros(4), torch.tensor([1.0, -2.0, 0.5, 3.0])], 1).double()
    rows = torch.tensor([9, 9, 9, 0, 3, 1, 7, 7, 2, 5, 4, 9])[3:11]  # in the midst of others
    return [torch.zeros((), dtype=torch.float64), control, table, rows]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    yield tmp_path


@pytest.mark.slow
def test_several_calls_are_as_many_single_calls():
    place, control, table, rows = walked()
    compiled = compile_graph(graph_of(walk, place, control, table, rows[:2]), [place, control, table, rows[:2]])
    assert isinstance(compiled, Native)
    torch.manual_seed(3)
    before, draws = control.clone(), torch.stack([torch.randn((), dtype=torch.float64) for _ in range(4)])
    sums = table[rows].reshape(4, 2).sum(1) * control[:, 1] + draws
    for many in (4, 3, 1):
        torch.manual_seed(3)
        place.zero_()
        places, (last, square) = compiled.several([place, control, table, rows[: 2 * many]], many, 1)
        torch.testing.assert_close(torch.tensor(places, dtype=torch.float64), sums[:many].cumsum(0))
        assert float(last) == float(place) == places[-1] and float(square) == places[-1] ** 2
        assert torch.equal(control, before)
    with pytest.raises(RuntimeError, match="too many steps"):
        compiled.several([place, control, table, torch.zeros(10, dtype=torch.int64)], 5, 1)
    with pytest.raises(RuntimeError):
        compiled.several([place, control, table, rows + 8], 4, 1)  # beyond the table
    assert torch.equal(control, before)
    with pytest.raises(TypeError):
        compiled([place, control])


@pytest.mark.slow
def test_inputs_may_be_other_tensors_and_other_values_in_the_same_tensors():
    one, two = torch.ones(3), torch.arange(3.0)
    compiled = compile_graph(graph_of(lambda a, b: (a * b + 1,), one, two), [one, two])
    for a, b in ((one, two), (two, one), (torch.full((3,), 5.0), two), (one, two)):
        (found,) = compiled([a, b])
        assert torch.equal(found, a * b + 1)
    one.data = torch.full((3,), 7.0)
    two.mul_(2)
    (found,) = compiled([one, two])
    assert torch.equal(found, 7 * two + 1)


@pytest.mark.slow
def test_a_kept_graph_needs_no_compiler(fresh, monkeypatch):
    def double(x: Tensor) -> tuple[Tensor]:
        return (x * 2.5 + torch.arange(3),)

    x = torch.ones(3)
    (first,) = compile_graph(graph_of(double, x), [x])([x])
    (record,) = (fresh / "pyro_vi").glob("*.json")
    monkeypatch.setattr(inductor, "_compile", lambda *_: pytest.fail("compiled again"))
    (again,) = compile_graph(graph_of(double, x), [x])([x])
    assert torch.equal(first, again)

    # Another shape, a number that differs in the last place, or a record that describes another graph: compiled anew.
    for graph, inputs in (
        (graph_of(double, torch.ones(1)), [torch.ones(1)]),
        (graph_of(lambda x: (x * 2.5000000000000004 + torch.arange(3),), x), [x]),
    ):
        with pytest.raises(pytest.fail.Exception):
            compile_graph(graph, inputs)
    held = json.loads(record.read_text())
    record.write_text(json.dumps({**held, "description": held["description"].replace("2.5", "2.6")}))
    with pytest.raises(pytest.fail.Exception):
        compile_graph(graph_of(double, x), [x])


def test_what_a_description_tells_apart(monkeypatch):
    def text(function: Callable[..., Any], *inputs: Tensor, **settings: Any) -> str:
        return kept.description(graph_of(function, *inputs), inputs, settings)

    x, wide = torch.ones(4), torch.ones(4, 2)[:, 0]
    base = text(lambda x: x + 1, x)
    assert base == text(lambda y: y + 1, x) != ""
    others = [
        text(lambda x: x + 1.0, x),
        text(lambda x: x - 1, x),
        text(lambda x: x + 1, x.double()),
        text(lambda x: x + 1, wide),
        text(lambda x: x + 1, x[:3]),
        text(lambda x: x + 1, x, threads=2),
    ]
    monkeypatch.setenv("TORCHINDUCTOR_FREEZING", "1")
    others.append(text(lambda x: x + 1, x))
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)
    others.append(text(lambda x: x + 1, x))
    assert len({base, *others}) == 1 + len(others)
    assert text(lambda x: x + float("nan"), x) != text(lambda x: x + float("inf"), x)


def test_what_is_not_kept(monkeypatch):
    @torch.library.custom_op("pyro_vi_tests::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    x = torch.ones(3)
    assert kept.description(graph_of(lambda x: twice(x), x), [x], {}) == ""
    assert kept.description(graph_of(lambda x: x + 1, x), [x], {}) != ""
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    assert kept.description(graph_of(lambda x: x + 1, x), [x], {}) == ""
    assert kept.find("") is None and kept.find("nothing of the kind") is None


@pytest.mark.slow
def test_where_the_code_cannot_be_built_inductor_builds_its_own(fresh, monkeypatch):
    def broken(*_: Any) -> Any:
        raise RuntimeError("the C++ compiler fails")

    monkeypatch.setattr(native.Library, "build", broken)
    x = torch.ones(3)
    compiled = compile_graph(graph_of(lambda x: (x.exp(),), x), [x])
    assert not isinstance(compiled, Native)
    torch.testing.assert_close(compiled([x])[0], x.exp())
    assert not list((fresh / "pyro_vi").glob("*.json"))


def test_a_folder_of_another_user(fresh, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert kept.find("anything") is None


def test_garbage_is_collected_again():
    import gc

    with pytest.raises(ValueError), collecting_later():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
