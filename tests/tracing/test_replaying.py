"""Replays give the numbers of the graph, bit for bit, in any order of calls; what is fixed runs once."""

import pytest
import torch
from torch import Tensor

from pyro_vi.errors import NoGraph
from pyro_vi.tracing import Replay, record


def network(weight: Tensor, bias: Tensor, x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """Results of many sizes, views, an operation in place, one result that is also an argument, and one that is fixed."""
    scale = (weight * 2).exp()
    hidden = torch.addmm(bias, noise, scale).tanh()
    out = (hidden @ scale.t() - x).square()
    made = out.sum(-1, keepdim=True).expand_as(out) * 0.5
    made = made.neg().exp_() + hidden.t().reshape(hidden.shape[1], -1).sum()
    return out.mean(), out, made.t(), hidden[:, 0], scale, noise * 1.5


def inputs(seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((3, 3), (3,), (5, 3), (5, 3))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_graph_bit_for_bit(dtype):
    recording = record(network, *inputs(0, dtype))
    graph, replay = recording.module(), Replay(recording, fixed=3)
    kept = []
    for fixed in (1, 2, 1):
        replay.fix(*inputs(fixed, dtype)[:3])
        for seed in (3, 4, 3):
            noise = inputs(seed, dtype)[3]
            found = replay(noise)
            expected = graph(*inputs(fixed, dtype)[:3], noise)
            assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
            kept.append((found, expected))
    # A later call does not write to the results of an earlier one.
    assert all(torch.equal(one, two) for found, expected in kept for one, two in zip(found, expected, strict=True))


def test_what_is_fixed_runs_once():
    replay = Replay(record(lambda w, x: w.exp() * x, torch.ones(2), torch.ones(2)), fixed=1)
    weight = torch.zeros(2)
    replay.fix(weight)
    weight += 5  # not seen before the next `fix`
    assert replay(torch.tensor([2.0, 3.0]))[0].tolist() == [2.0, 3.0]
    replay.fix(torch.zeros(2).add(0.0))
    assert replay(torch.tensor([2.0, 3.0]))[0].tolist() == [2.0, 3.0]


def test_an_operation_that_writes_to_what_stays_is_refused():
    def counting(runs: Tensor, x: Tensor) -> Tensor:
        runs.add_(1)
        return runs * x

    with pytest.raises(NoGraph, match="writes to a tensor that stays"):
        Replay(record(counting, torch.zeros(2), torch.ones(2)), fixed=1)

    def written(w: Tensor, x: Tensor) -> Tensor:
        made = w.exp()
        return made.mul_(x)

    with pytest.raises(NoGraph, match="writes to a tensor that stays"):
        Replay(record(written, torch.zeros(2), torch.ones(2)), fixed=1)
