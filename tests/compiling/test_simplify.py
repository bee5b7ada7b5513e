"""The rules that make a graph smaller: what they drop, merge and fold, and what they leave alone."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from pyro_vi.compiling import simplify as module_of
from pyro_vi.compiling.looking import look, memory, name_of
from pyro_vi.compiling.simplify import simplify
from pyro_vi.errors import NoGraph
from pyro_vi.tracing import Recording

X, Y = torch.tensor([[1.5, -0.5, 2.0], [0.25, 3.0, -1.0]]), torch.tensor([0.5, 4.0, -2.0])


def left(function: Callable[..., Any], *inputs: Tensor, free: Sequence[int] = ()) -> list[str]:
    """The names of the operations that are left, with the same results."""
    inputs = inputs or (X, Y)
    traced = make_fx(lambda *given: list(function(*given)))(*(value.clone() for value in inputs))
    small, seen = simplify(Recording.of(traced), inputs, free)
    assert_equal(traced, small.module(), inputs)
    assert_equal(traced, small.module(), [value.flip(0) if value.is_floating_point() else value for value in inputs])
    assert {*seen.values} == {node for node in small.graph.nodes if node.op != "output"}
    return operations(small)


def operations(module: Recording) -> list[str]:
    return [name_of(node) or node.target.__name__ for node in module.graph.nodes if node.op == "call_function"]


def assert_equal(one: fx.GraphModule, two: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    results = []
    for module in (one, two):
        torch.manual_seed(5)
        with torch.no_grad():
            results.append([*module(*(value.clone() for value in inputs)), torch.get_rng_state()])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        if a.is_floating_point():
            assert torch.equal(a.signbit(), b.signbit())


# ---- views and copies


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, y: [x.t().t() * 2], ["mul"]),
        (lambda x, y: [x.view(6).view(2, 3).exp()], ["exp"]),
        (lambda x, y: [x.detach().expand(2, 3).exp()], ["exp"]),
        (lambda x, y: [x[0].exp() + x[0].exp()], ["select", "exp", "add"]),
        (lambda x, y: [x.unsqueeze(0).squeeze(0).exp()], ["exp"]),
        (lambda x, y: [x[:1].expand(1, 3).exp()], ["slice", "exp"]),
        (lambda x, y: [x.t().exp(), x.t().sin()], ["t", "exp", "sin"]),
        (lambda x, y: [x.clone().exp()], ["exp"]),
        (lambda x, y: [x.clone().clone()[0].contiguous().exp()], ["select", "exp"]),
        (lambda x, y: [x.to(x.dtype, copy=True).exp()], ["exp"]),
        (lambda x, y: [x.t().contiguous().view(-1).exp()], ["t", "clone", "view", "exp"]),  # another layout
        (lambda x, y: [x.double().float().exp()], ["_to_copy", "_to_copy", "exp"]),
    ],
)
def test_views_and_copies(function, expected):
    assert left(function) == expected


def test_a_copy_that_is_changed_stays():
    def changed(x: Tensor, y: Tensor) -> list[Tensor]:
        z = x.clone()
        z[0].add_(y)
        return [z * 2, x * 2]

    assert left(changed) == ["clone", "select", "add_", "mul", "mul"]


def test_a_copy_of_what_is_changed_afterwards_stays():
    def changed(x: Tensor, y: Tensor) -> list[Tensor]:
        z = x * 2
        before = z.clone()
        z.add_(1)
        return [before.exp(), z.exp()]

    assert left(changed) == ["mul", "clone", "add_", "exp", "exp"]


def test_a_view_of_what_is_changed_stays_a_view():
    def changed(x: Tensor, y: Tensor) -> list[Tensor]:
        z = x * 2
        row = z[0]
        first = row.exp()
        z.add_(1)
        return [first, z[0].exp()]

    assert left(changed).count("exp") == 2


def test_running_statistics_are_changed_although_no_schema_says_so():
    def norm(x: Tensor, y: Tensor) -> list[Tensor]:
        mean, var = y.clone(), y.exp()
        return [functional.batch_norm(x, mean, var, training=True), mean, var]

    assert left(norm) == ["clone", "exp", "native_batch_norm", "getitem"]
    assert left(lambda x, y: norm(x, y)[1:]) == ["clone", "exp", "native_batch_norm"]


def test_statistics_that_are_only_read_are_not():
    inputs = torch.randn(4, 3), torch.zeros(3), torch.ones(3)
    assert left(lambda x, m, v: [functional.batch_norm(x, m.clone(), v, training=False)], *inputs) == [
        "native_batch_norm",
        "getitem",
    ]


# ---- constants


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, y: [x * torch.ones(3).exp().sum()], ["mul"]),
        (lambda x, y: [x + torch.zeros_like(x).add(2).log()], ["add"]),
        (lambda x, y: [x * torch.arange(3).float()], ["mul"]),
        (lambda x, y: [x * torch.tensor(2.0).log()], ["mul"]),
        (lambda x, y: [x * x.new_full((2, 3), 5.0).sqrt()], ["mul"]),
        (lambda x, y: [torch.eye(3) @ torch.ones(3, 2)], ["clone"]),  # the caller may change a result
        (lambda x, y: [x * torch.rand(3).exp()], ["rand", "exp", "mul"]),
    ],
)
def test_constants_are_computed_once(function, expected):
    assert left(function) == expected


def test_a_constant_that_is_changed_in_place_is_made_anew():
    def changed(x: Tensor, y: Tensor) -> list[Tensor]:
        z = torch.zeros(3)
        z.add_(y)
        return [z * 2]

    assert left(changed) == ["zeros", "add_", "mul"]


def test_a_tensor_of_the_programs_is_no_constant():
    held = torch.ones(3)
    assert left(lambda x, y: [x * held.exp()]) == ["exp", "mul"]
    assert left(lambda x, y: [x / held]) == ["div"]


def test_constants_are_kept_up_to_a_size(monkeypatch):
    monkeypatch.setattr(module_of, "FOLDED", 3 * 4)
    assert left(lambda x, y: [x * torch.arange(3.0)]) == ["mul"]
    assert left(lambda x, y: [x + torch.arange(6.0).exp().view(2, 3)]) == ["arange", "exp", "view", "add"]


def test_a_tensor_of_one_number_becomes_that_number():
    traced = make_fx(lambda x: [x * torch.full((2, 3), 3.0), x - torch.full((2, 3), 2.0), torch.full((2, 3), 2.0) / x])(
        X
    )
    small, seen = simplify(Recording.of(traced), [X])
    assert_equal(traced, small.module(), [X])
    held = [seen.values[node] for node in small.graph.nodes if node.op == "get_attr" and node.users]
    assert [value.shape for value in held] == [()] * 3


# ---- neutral operands


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: [(x * 1).exp()],
        lambda x, y: [(1.0 * x).exp()],
        lambda x, y: [(x / 1).exp()],
        lambda x, y: [(x - 0).exp()],
        lambda x, y: [(x + -0.0).exp()],
        lambda x, y: [(x**1).exp()],
        lambda x, y: [(x * torch.ones(3)).exp()],
        lambda x, y: [(torch.ones(2, 3) * x).exp()],
        lambda x, y: [(x / torch.ones(())).exp()],
        lambda x, y: [(x - torch.zeros(2, 3)).exp()],
    ],
)
def test_neutral_operands(function):
    assert left(function) == ["exp"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: [1 / x],
        lambda x, y: [0 - x],
        lambda x, y: [1**x],
        lambda x, y: [y * torch.ones(2, 3)],  # of another shape
        lambda x, y: [x.long() * 1.0],  # of another dtype
        lambda x, y: [x.half() * torch.ones(3)],
        lambda x, y: [torch.add(torch.zeros(2, 3), x, alpha=2)],
        lambda x, y: [torch.sub(torch.zeros(2, 3), x)],
        lambda x, y: [torch.div(x, 1, rounding_mode="floor")],
        lambda x, y: [1 / (x * 0 + 0)],  # −0 + 0 is 0
        lambda x, y: [1 / (x * 0 + torch.zeros(2, 3))],
        lambda x, y: [1 / (x * 0 - (-0.0))],
        lambda x, y: [1 / (x * 0 + torch.tensor([0.0, -0.0, 0.0]))],
        lambda x, y: [1 / (x * torch.tensor([[-0.0, 0.0, -0.0], [0.0, 0.0, 0.0]]))],
    ],
)
def test_operands_that_are_not_neutral(function):
    assert left(function) != []
    names = left(function)
    assert names[-1] in ("reciprocal", "mul", "div", "add", "sub", "rsub", "pow")


def test_a_neutral_operand_of_what_is_changed_makes_a_copy():
    def changed(x: Tensor, y: Tensor) -> list[Tensor]:
        z = x + y
        kept = z * 1
        z.zero_()
        return [kept, z]

    assert left(changed) == ["add", "mul", "zero_"]


# ---- equal operations


def test_equal_operations_are_one():
    assert left(lambda x, y: [(x + y).exp() * (x + y).exp()]) == ["add", "exp", "mul"]
    assert left(lambda x, y: [x.sum(0), x.sum(0, keepdim=True)]) == ["sum", "sum"]
    assert left(lambda x, y: [x.max(0)[0], x.max(0)[1]]) == ["max", "getitem", "getitem"]
    assert left(lambda x, y: [x.to(torch.float64), x.to(torch.int64)]) == ["_to_copy", "_to_copy"]
    assert left(lambda x, y: [x * 2, x * 2.0, x * True]).count("mul") >= 2


def test_equal_results_are_two_tensors():
    assert left(lambda x, y: [x.exp(), x.exp()]) == ["exp", "clone"]


def test_draws_are_never_one():
    assert left(lambda x, y: [torch.randn(3) + torch.randn(3)]) == ["randn", "randn", "add"]
    assert left(lambda x, y: [torch.bernoulli(y.sigmoid()) - torch.bernoulli(y.sigmoid())]).count("bernoulli") == 2
    assert left(lambda x, y: [functional.dropout(y) + functional.dropout(y)]).count("native_dropout") in (0, 2)


def test_equal_operations_before_and_after_a_change_are_two():
    def changed(x: Tensor, y: Tensor) -> list[Tensor]:
        z = x * 2
        before = z.sum()
        z.add_(y)
        return [before, z.sum()]

    assert left(changed).count("sum") == 2


def test_results_of_equal_operations_of_which_one_is_changed_are_two():
    def changed(x: Tensor, y: Tensor) -> list[Tensor]:
        one, two = x * 2, x * 2
        one.add_(1)
        return [one, two]

    assert left(changed) == ["mul", "mul", "add_"]


def test_empty_memory_is_never_shared():
    def filled(x: Tensor, y: Tensor) -> list[Tensor]:
        return [torch.empty(3).fill_(1) + y, torch.empty(3).fill_(2) * y]

    assert left(filled).count("empty") == 2


# ---- what is not used


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, y: [(x.exp(), y * 2)[1]], ["mul"]),
        (lambda x, y: [(x.sort(0), y * 2)[1]], ["mul"]),
        (lambda x, y: [(torch.randn(3).exp(), y * 2)[1]], ["randn", "mul"]),
        (lambda x, y: [(x.clone().normal_(), y * 2)[1]], ["clone", "normal_", "mul"]),
        (lambda x, y: [(x.clone().zero_(), y * 2)[1]], ["clone", "zero_", "mul"]),
        (lambda x, y: [(torch.linalg.cholesky(torch.eye(2) * y[0]), y * 2)[1]], None),
    ],
)
def test_what_is_not_used_is_left_out_unless_it_acts(function, expected):
    names = left(function, X, Y.abs())
    assert names == expected if expected is not None else "_linalg_check_errors" in names


# ---- results and memory


def test_results_have_memory_of_their_own():
    """Also views of copies that are no longer made."""

    def results(x: Tensor, y: Tensor) -> list[Tensor]:
        return [x.clone().t(), x.clone()[0], (y * 1)[1:], y, torch.ones(3), (z := x.exp())[0], z]

    traced = make_fx(results)(X, Y)
    small, _ = simplify(Recording.of(traced), [X, Y])
    given = [X.clone(), Y.clone()]
    for _ in range(2):  # a constant may have been changed, too
        found = small.module()(*given)
        for one, two in zip(found, traced(X, Y), strict=True):
            assert torch.equal(one, two)
        places = [memory(value) for value in found]
        assert len({*places, *map(memory, given)}) == len(places) + 2
        for value in found:
            value.fill_(9)
        assert torch.equal(given[0], X) and torch.equal(given[1], Y)


def test_a_change_of_an_input_is_refused_unless_it_is_free():
    def changing(x: Tensor, y: Tensor) -> list[Tensor]:
        x[0].add_(1)
        return [x * y]

    traced, given = make_fx(changing)(X.clone(), Y), X.clone()
    with pytest.raises(NoGraph, match="change a parameter or data in place"):
        simplify(Recording.of(traced), [given, Y])
    assert torch.equal(given, X)
    small, seen = simplify(Recording.of(traced), [given, Y], free=[0])
    assert operations(small) == ["select", "add_", "mul"]
    assert seen.changed == {memory(given)}


def test_what_a_run_shows():
    traced = make_fx(lambda x, y: [(z := x + y).mul_(2), z.max(0)[0]])(X, Y)
    seen = look(Recording.of(traced), [X, Y])
    names = [name for node in seen.values if (name := name_of(node))]
    assert names == ["add", "mul_", "max"]
    assert len(seen.inputs) == 2
    assert seen.changed == {memory(next(seen.values[node] for node in seen.values if name_of(node) == "add"))}


def test_a_tensor_that_is_turned_in_place_becomes_a_view():
    def turned(x: Tensor) -> list[Tensor]:
        y = x * 2
        y.transpose_(0, 1)
        z = y + 1
        z.unsqueeze_(0)
        return [z * z, y]

    x = torch.randn(3, 2, dtype=torch.float64)
    graph = make_fx(turned)(x)
    small, _ = simplify(Recording.of(graph), [x])
    for one, two in zip(small.module()(x), turned(x), strict=True):
        assert torch.equal(one, two) and one.stride() == two.stride()
    names = [str(node.target) for node in small.graph.nodes]
    assert "aten.transpose.int" in names and not any("transpose_" in name or "unsqueeze_" in name for name in names)


def test_a_tensor_that_is_resized_in_place_has_no_graph():
    def resized(x: Tensor) -> list[Tensor]:
        y = x * 2
        y.resize_(2)
        return [y]

    with pytest.raises(NoGraph, match="change the shape of a tensor in place"):
        simplify(Recording.of(make_fx(resized)(torch.ones(3))), [torch.ones(3)])
