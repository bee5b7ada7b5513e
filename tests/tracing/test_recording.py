"""Recorded graphs are the functions: same numbers for other inputs, in place or not; and what cannot be recorded is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_vi.tracing import flat, lifted, record, recording, without_values

OUTSIDE = torch.tensor([1.0, -2.0, 0.5])


def in_place(x: Tensor) -> Tensor:
    made = torch.zeros(3)
    made[1:] = x[:2]
    return made.exp_() + made.view(-1)


def gradient(x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad((x.tanh() * OUTSIDE).square().sum(), x)
    return found


def parts(x: Tensor) -> Tensor:
    one, two = x.split([1, 2])
    return torch.cat([two, one]) + x.max(0).values


@pytest.mark.parametrize("function", [in_place, gradient, parts, lambda x: x * OUTSIDE, lambda x: torch.stack([x, x])])
def test_the_graph_gives_the_numbers_of_the_function_for_other_inputs(function: Callable[[Tensor], Tensor]):
    graph = record(function, torch.tensor([0.1, 0.2, 0.3])).module()
    x = torch.tensor([-1.0, 3.0, 0.25])
    assert torch.equal(graph(x), function(x))


def test_draws_become_inputs_and_are_the_same_numbers():
    recording = record(lambda x: x + torch.empty(3).normal_() * torch.rand(3), torch.zeros(3))
    draws, complete = lifted(recording.graph)
    assert complete
    assert [draw.law for draw in draws] == [("normal", 0.0, 1.0), ("uniform", 0.0, 1.0)]
    torch.manual_seed(0)
    expected = torch.empty(3).normal_() * torch.rand(3)
    torch.manual_seed(0)
    noise = [draw.make() for draw in draws]
    assert torch.equal(recording.module()(torch.zeros(3), *noise), expected)


def test_a_dtype_is_no_value():
    def function(x: Tensor, y: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, y.dtype)) + y.to(torch.result_type(x, y)).exp()

    inputs = (torch.tensor([1.5]), torch.tensor([0.5], dtype=torch.float64))
    assert torch.equal(record(function, *inputs).module()(*inputs), function(*inputs))


def test_large_values_are_traced_and_not_kept(monkeypatch):
    """A recording keeps the values of all operations; each memory counts once."""

    def function(x: Tensor) -> Tensor:
        return x.exp().t().reshape(-1).tanh().tanh().sum()

    x = torch.ones(50, 20)
    monkeypatch.setattr(recording, "MOST", 5 * x.nbytes + 4)
    record(function, x)
    monkeypatch.setattr(recording, "MOST", 5 * x.nbytes)
    with pytest.raises(NotImplementedError, match="too much memory"):
        record(function, x)
    assert torch.equal(flat(function, x).module()(2 * x), function(2 * x))


def branches(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def reads_what_was_written(x: Tensor) -> Tensor:
    """The number is in memory that another tensor wrote to."""
    made = torch.zeros(3)
    made[1:] = x[1:]
    return x * float(made.sum())


def lists(x: Tensor) -> Tensor:
    return x * max(x.tolist())


def compares(x: Tensor) -> Tensor:
    return x if torch.equal(x, OUTSIDE) else -x


def reads_a_draw(x: Tensor) -> Tensor:
    return x * float(torch.zeros(3).uniform_().sum())


def reads_a_constant_that_was_changed(x: Tensor) -> Tensor:
    made = torch.zeros(3)
    view = made[:2]
    made.add_(x)
    return x * float(view.sum())


@pytest.mark.parametrize(
    "function",
    [branches, reads_what_was_written, lists, compares, reads_a_draw, reads_a_constant_that_was_changed],
)
def test_reading_a_value_is_refused(function):
    with pytest.raises(RuntimeError, match="value"):
        record(function, torch.ones(3))


@pytest.mark.parametrize(
    "number",
    [
        lambda: float(OUTSIDE[:0].numel() + 2),
        lambda: float(torch.arange(3).max()),
        lambda: int(torch.tensor([1, 2]).max()),
        lambda: max(OUTSIDE.abs().tolist()),
    ],
    ids=["a length", "made", "written", "outside"],
)
def test_a_number_made_of_constants_alone_may_be_read(number):
    """It is 2 in each case."""
    assert torch.equal(record(lambda x: x * number(), torch.ones(3)).module()(OUTSIDE), OUTSIDE * 2)


def test_elements_are_set_by_their_numbers():
    """The operation takes a list of indices, which it does not change."""

    def lower(x: Tensor) -> Tensor:
        made = torch.zeros(2, 2)
        made[torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])] = x
        return made

    assert torch.equal(record(lower, torch.ones(3)).module()(OUTSIDE), lower(OUTSIDE))


def test_tensors_of_written_numbers_are_marked():
    """They never change, while a tensor from outside may."""
    recording = record(lambda x: x * torch.tensor(2.0) + OUTSIDE, torch.ones(3))
    constants = [node for node in recording.graph.nodes if node.op == "get_attr"]
    assert [(recording.constant(node).numel(), node.meta.get("literal", False)) for node in constants] == [
        (1, True),
        (3, False),
    ]


def test_what_cannot_be_recorded_is_traced():
    """A list of tensors is written to; a trace knows each of them."""

    def function(x: Tensor) -> Tensor:
        both = [x + 1, x + 2]
        torch._foreach_mul_(both, 2.0)
        return both[0] * both[1]

    with pytest.raises(NotImplementedError, match="list of tensors"):
        record(function, torch.ones(3))
    seen = []
    graph = flat(function, torch.ones(3), watch=lambda graph: seen.append(graph is None)).module()
    assert torch.equal(graph(OUTSIDE), function(OUTSIDE))
    assert seen == [False, True]


def test_memory_from_outside_is_not_written_to():
    held = torch.zeros(3)
    with pytest.raises(NotImplementedError, match="from outside"):
        record(lambda x: held.add_(x) * 2, torch.ones(3))
    assert torch.equal(held, torch.zeros(3))


def test_a_view_behind_the_recorder_is_refused():
    """A graph would freeze the numbers of the first input."""
    x = torch.ones(3)
    with pytest.raises(NotImplementedError, match="memory of a recorded tensor"):
        record(lambda given: given * x, x)


def test_a_graph_without_values_holds_no_memory():
    recording = record(lambda x: x.exp() + 1, torch.ones(3))
    without_values(recording.graph)
    values = [node.meta["val"] for node in recording.graph.nodes if "val" in node.meta]
    assert {(value.device.type, tuple(value.shape)) for value in values} == {("meta", (3,))}
