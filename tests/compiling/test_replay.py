"""A replayed graph gives the bits of the graph, on fixed memory: by operations, by random graphs, and over several calls."""

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from pyro_vi.compiling.looking import memory
from pyro_vi.compiling.replay import Replay
from pyro_vi.errors import NoGraph
from pyro_vi.tracing import Recording, flat

DTYPES = [torch.float64, torch.float32]


def real(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def graph_of(
    function: Callable[..., Any], inputs: Sequence[Tensor], make: Callable[..., Recording] = flat
) -> Recording:
    with torch.random.fork_rng():
        return make(function, *(value.detach().clone() for value in inputs))


def traced(function: Callable[..., Any], *inputs: Tensor) -> Recording:
    return Recording.of(make_fx(function)(*inputs))


def bits(value: Tensor) -> Tensor:
    """The bits of a tensor, so that NaN equals NaN and −0 is not 0."""
    return value.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def same(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and one.dtype == two.dtype and torch.equal(bits(one), bits(two))


def run(graph: Recording, inputs: Sequence[Tensor], seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    with torch.no_grad():
        return list(graph.module()(*(value.clone() for value in inputs)))


def assert_replays(
    function: Callable[..., Any], kept: Sequence[Tensor], sources: Sequence[Sequence[Tensor]], **options: Any
) -> Replay:
    """The replay has the bits of the graph and its draws on every source, by turns; its inputs stay as they are."""
    _assert_replays(graph_of(function, [*kept, *sources[0]], traced), kept, sources, **options)
    return _assert_replays(graph_of(function, [*kept, *sources[0]]), kept, sources, **options)


def _assert_replays(
    graph: Recording, kept: Sequence[Tensor], sources: Sequence[Sequence[Tensor]], **options: Any
) -> Replay:
    options = {"copied": range(len(sources[0])), **options}
    before, state = [value.clone() for value in kept], torch.get_rng_state()
    replay = Replay(graph, [*kept, *sources[0]], len(kept), **options)
    assert torch.equal(torch.get_rng_state(), state)
    for seed, source in enumerate([*sources, *sources, sources[-1]]):
        wanted = run(graph, [*kept, *source], seed)
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        given = [value.clone() for value in source]
        found = replay(given)
        assert torch.equal(torch.get_rng_state(), after), "another number of draws"
        assert len(found) == len(wanted)
        for i, (one, two) in enumerate(zip(found, wanted, strict=True)):
            assert same(one, two), f"result {i} of call {seed}"
        assert all(map(same, given, source))
        assert all(map(same, kept, before))
    owned = [memory(value) for value in replay.results if value.numel()]
    given = [*kept, *sources[0], *sources[-1]]
    assert not {*owned} & {memory(value) for value in given}
    return replay


def own_memory(replay: Replay) -> bool:
    """True if no two results share bytes."""
    spans = []
    for value in replay.results:
        if value.numel():
            first = value.data_ptr()
            last = first + value.element_size() * sum(
                (n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)
            )
            spans.append((first, last + value.element_size()))
    spans.sort()
    return all(end <= start for (_, end), (start, _) in pairwise(spans))


# ---- operations, with their backward passes


def _with_gradients(module: Any, x: Tensor) -> tuple[Tensor, ...]:
    values = [p.detach().requires_grad_() for p in module.parameters()]
    names = [name for name, _ in module.named_parameters()]
    x = x.detach().requires_grad_()
    result = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
    result = result[0] if isinstance(result, tuple) else result
    loss = result.square().sum()
    return (loss.detach(), result.detach(), *torch.autograd.grad(loss, [x, *values]))


def layer(make: Callable[[], Any], shape: tuple[int, ...]) -> Any:
    torch.manual_seed(0)
    made = make()
    return lambda x: _with_gradients(made.to(x.dtype), x.reshape(-1)[: torch.Size(shape).numel()].reshape(shape))


def only_of_weight(x: Tensor) -> tuple[Tensor, ...]:
    """A convolution whose input needs no gradient: its backward gives none in place of the first result."""
    weight, bias = x.reshape(-1)[:18].reshape(2, 1, 3, 3).detach(), x.reshape(-1)[:2].detach()
    weight, bias = weight.requires_grad_(), bias.clone().requires_grad_()
    image = x.reshape(-1)[:36].reshape(1, 1, 6, 6).detach()
    loss = functional.conv2d(image, weight, bias).square().sum()
    return (loss.detach(), *torch.autograd.grad(loss, [weight, bias]))


def only_of_bias(x: Tensor) -> tuple[Tensor, ...]:
    bias = x.reshape(-1)[:2].detach().clone().requires_grad_()
    image, weight = x.reshape(-1)[:36].reshape(1, 1, 6, 6).detach(), x.reshape(-1)[:18].reshape(2, 1, 3, 3).detach()
    loss = functional.conv2d(image, weight, bias).square().sum()
    return (loss.detach(), *torch.autograd.grad(loss, [bias]))


def running(x: Tensor) -> tuple[Tensor, ...]:
    """Batch normalisation, which changes its running statistics behind its schema."""
    mean, var = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    result = functional.batch_norm(x, mean, var, None, None, True)
    return result, mean, var


def unused_running(x: Tensor) -> tuple[Tensor, ...]:
    mean, var = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    functional.batch_norm(x, mean, var, None, None, True)
    return mean, var


def in_place(x: Tensor) -> tuple[Tensor, ...]:
    y = x.clone()
    row = y[0]
    before = row * 2
    y.mul_(3)
    row.add_(1)
    y[:, 1].copy_(before[0])
    return y, before, row, row * 2


def embedded(x: Tensor) -> tuple[Tensor, ...]:
    table = x.detach().requires_grad_()
    loss = functional.embedding(torch.tensor([0, 2, 0]), table, padding_idx=2).square().sum()
    return (loss.detach(), *torch.autograd.grad(loss, [table]))


def scattered(x: Tensor) -> tuple[Tensor, ...]:
    index = torch.tensor([0, 1, 0, 2, 1, 3])[: x.shape[0]]
    y = x.new_zeros(4, x.shape[1]).index_add(0, index, x)
    z = x.new_zeros(4, x.shape[1]).index_put((index,), x, accumulate=True)
    return y, z, x.gather(0, index[:, None].expand_as(x).clamp(max=x.shape[0] - 1)), x[index.clamp(max=x.shape[0] - 1)]


OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    "the input": lambda x: [x],
    "a view of the input": lambda x: [x[0], x.t(), x.expand(2, *x.shape)],
    "twice the same": lambda x: [y := x * 2, y],
    "a constant": lambda x: [torch.ones(3, dtype=x.dtype), torch.zeros((), dtype=x.dtype), x.new_full((2,), 3.0)],
    "an expanded result": lambda x: [(x.sum() * 2).expand(3, 2), x[:1].exp().expand(4, *x.shape[1:])],
    "views of one result": lambda x: [(y := x + 1)[0], y[1:], y.t(), y],
    "numbers": lambda x: [x.sum(), (x.sum() + 1) * 2, x.sum().square().exp().log()],
    "no elements": lambda x: [x[:0].sum(), x[:0] * 2, x[:0].sum(0), torch.cat([x[:0], x])],
    "integers and truth": lambda x: [
        (x > 0).sum(),
        (x > 0) & (x < 1),
        (x > 0).long() * 2,
        (x * 10).long() // 3,
        (x > 0).any(),
        ~(x > 0),
    ],
    "conversions": lambda x: [x.float().double() * 2, (x > 0).to(x.dtype) * x, x.to(torch.int32), x.half().float()],
    "split": lambda x: [*x.split(2), *x.unbind(1), *(x * 2).chunk(2, 1), *torch.tensor_split(x + 1, 3)],
    "sort": lambda x: [*x.sort(0), *x.sort(1, descending=True), *x.sort(dim=1, stable=True), x.argsort(0)],
    "topk": lambda x: [*x.topk(2, 1), *x.kthvalue(1, 0), *x.median(1), *x.mode(0)],
    "extremes": lambda x: [*x.max(0), *x.min(1), x.max(), x.amax((0, 1)), x.argmax(1), *x.cummax(0), *torch.aminmax(x)],
    "moments": lambda x: [*torch.var_mean(x, 0), *torch.std_mean(x), x.mean(1), x.var(0, unbiased=False), x.std(1)],
    "products": lambda x: [x @ x.t(), x.t().mv(x[:, 0]), torch.outer(x[0], x[1]), torch.bmm(x[None], x.t()[None])],
    "sums": lambda x: [
        x.sum(dtype=torch.float64),
        x.cumsum(0),
        x.logsumexp(1),
        x.prod(0),
        (x > 0).sum(0, dtype=x.dtype),
    ],
    "kept dimensions": lambda x: [x.sum(0, keepdim=True), x.amax(1, True), x.logsumexp(0, True), x.softmax(1)],
    "quotients": lambda x: [x / 3, torch.div(x, 0.3, rounding_mode="floor"), x // 0.7, x % 0.3, x.fmod(0.2)],
    "scaled sums": lambda x: [torch.add(x, x.t().t(), alpha=2), torch.sub(x, 1, alpha=3), x.addcmul(x, x, value=0.5)],
    "conditions": lambda x: [torch.where(x > 0, x, 0.0), x.clamp(-0.5, 0.5), x.clamp_min(0), x.masked_fill(x > 0, 1.0)],
    "triangles": lambda x: [
        x.tril(),
        x.triu(1),
        torch.diag(x[0]),
        x.diagonal(),
        x.flip(0),
        x.roll(1, 0),
        x.repeat(2, 1),
    ],
    "indices": scattered,
    "in place": in_place,
    "filled": lambda x: [
        torch.empty(3, dtype=x.dtype).fill_(2),
        torch.zeros_like(x).masked_scatter_(x > 0, x),
        x.new_empty(2).zero_(),
    ],
    "running statistics": running,
    "running statistics alone": unused_running,
    "batch norm": layer(lambda: nn.BatchNorm1d(3, track_running_stats=False), (4, 3)),
    "layer norm": layer(lambda: nn.LayerNorm(3), (4, 3)),
    "group norm": layer(lambda: nn.GroupNorm(1, 3), (4, 3)),
    "GRU cell": layer(lambda: nn.GRUCell(3, 4), (4, 3)),
    "LSTM cell": layer(lambda: nn.LSTMCell(3, 4), (4, 3)),
    "RNN cell": layer(lambda: nn.RNNCell(3, 4), (4, 3)),
    "convolution": layer(lambda: nn.Conv2d(1, 2, 3, padding=1), (1, 1, 4, 3)),
    "strided convolution": layer(lambda: nn.Conv1d(3, 2, 2, stride=2), (1, 3, 4)),
    "transposed convolution": layer(lambda: nn.ConvTranspose2d(1, 2, 3), (1, 1, 4, 3)),
    "convolution, no gradient of the input": only_of_weight,
    "convolution, gradient of the bias alone": only_of_bias,
    "pooling": layer(lambda: nn.Sequential(nn.Conv1d(1, 2, 1), nn.MaxPool1d(2)), (1, 1, 6)),
    "mean pooling": layer(lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.AvgPool2d(2)), (1, 1, 4, 3)),
    "attention": layer(lambda: nn.TransformerEncoderLayer(2, 1, 3, dropout=0.0), (2, 3, 2)),
    "activations": layer(lambda: nn.Sequential(nn.Linear(3, 3), nn.ELU(), nn.SiLU(), nn.GELU(), nn.Softplus()), (4, 3)),
    "soft maximum": layer(lambda: nn.Sequential(nn.Linear(3, 3), nn.LogSoftmax(1)), (4, 3)),
    "embedding": embedded,
    "Cholesky factor": lambda x: [
        f := torch.linalg.cholesky(x.t() @ x + torch.eye(3, dtype=x.dtype)),
        torch.linalg.solve_triangular(f, x.t(), upper=False),
        torch.cholesky_solve(x.t(), f),
        f.logdet(),
    ],
    "factors": lambda x: [*torch.linalg.qr(x), *torch.linalg.slogdet(x.t() @ x), torch.linalg.inv(x.t() @ x)],
    "special": lambda x: [
        torch.lgamma(x.abs() + 1),
        torch.digamma(x.abs()),
        torch.erf(x),
        torch.special.ndtri(x.sigmoid()),
    ],
    "signs of zero": lambda x: [
        1 / (x * 0),
        1 / (x * 0 + 0),
        1 / (0 + x * 0.0),
        1 / (x * 0 - 0.0),
        1 / (-(x * 0) + 0.0),
    ],
    "not finite": lambda x: [x.log(), (x / 0) * 0, x * float("inf")],
    "written twice": lambda x: [torch.zeros(2, 3, dtype=x.dtype).add_(x[0]).mul_(2).sub_(1), x.clone().zero_()],
    "complex": lambda x: [torch.fft.rfft(x).real, torch.fft.irfft(torch.fft.rfft(x))],
}
RANDOM: dict[str, Callable[[Tensor], Any]] = {
    "normal": lambda x: [
        torch.randn(3, dtype=x.dtype),
        torch.randn_like(x),
        torch.normal(x, x.abs()),
        torch.normal(0.0, 1.0, (40,)),
    ],
    "uniform": lambda x: [
        torch.rand(5, dtype=x.dtype),
        torch.rand_like(x),
        x.clone().uniform_(1, 2),
        torch.rand(2, 20),
    ],
    "in place": lambda x: [
        x.clone().normal_(),
        x.clone().exponential_(),
        x.clone().cauchy_(),
        x.clone().log_normal_(),
        x.clone().geometric_(0.5),
    ],
    "Bernoulli": lambda x: [
        torch.bernoulli(x.sigmoid()),
        x.sigmoid().bernoulli(),
        x.clone().bernoulli_(0.3),
        torch.empty_like(x).bernoulli_(x.sigmoid()),
    ],
    "dropout": lambda x: [functional.dropout(x, 0.3, True), functional.alpha_dropout(x, 0.3, True)],
    "gamma": lambda x: [
        torch._standard_gamma(x.abs() + 0.1),
        torch._sample_dirichlet(x.abs() + 0.1),
        torch.poisson(x.abs()),
    ],
    "categorical": lambda x: [
        torch.multinomial(x.softmax(1), 2, True),
        torch.multinomial(x.softmax(1), 1),
        torch.binomial(x.abs().ceil(), x.sigmoid()),
    ],
    "integers": lambda x: [torch.randint(0, 9, (4,)), torch.randperm(5), torch.randint(3, (2, 2), dtype=torch.int32)],
    "unused": lambda x: [x * 2, (torch.randn(3), torch.randn(3))[1], torch.randn_like(x)],
    "twice": lambda x: [torch.randn(3), torch.randn(3), torch.rand(2), torch.rand(2)],
}
"""Draws: in the order and number of the graph's, also those that nobody uses."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*OPERATIONS, *(f"random: {name}" for name in RANDOM)])
def test_each_operation(name, dtype):
    function = RANDOM[name.removeprefix("random: ")] if name not in OPERATIONS else OPERATIONS[name]
    rows = 12 if "pool" in name or "convolution" in name else 4
    sources = [[real(rows, 3, seed=seed, dtype=dtype)] for seed in range(3)]
    replay = assert_replays(lambda x: list(function(x)), [], sources)
    assert own_memory(replay)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", ["in place", "split", "sort", "extremes", "moments", "products", "an expanded result"])
def test_few_rows(name, rows):
    """Strides of a dimension of length one say nothing."""
    if name in ("moments", "products", "in place") and rows == 1:
        name = "numbers"
    sources = [[real(rows, 3, seed=seed)] for seed in range(3)]
    assert_replays(lambda x: list(OPERATIONS[name](x)), [], sources)


# ---- random graphs


class Maker:
    """Random tensor programs with views and changes in place: the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        draw = random.Random(self.seed)
        values: list[Tensor] = [*inputs, torch.full((3,), 1.0, dtype=inputs[0].dtype), inputs[0].new_zeros(2, 3)]
        mine: list[Tensor] = []  # that may be changed
        for _ in range(draw.randint(5, 25)):
            one, two = draw.choice(values), draw.choice(values)
            kind = draw.randrange(9)
            if kind == 0 and mine:
                changed = draw.choice(mine)
                self._change(draw, changed, two)
                continue
            if kind == 1:
                made = one.clone()
            elif kind == 2:
                made = self._view(draw, one)
            elif kind == 3:
                made = one + draw.choice([0.0, 1.0, 2.5])
            elif kind == 4:
                made = draw.choice([torch.mul, torch.add, torch.sub])(*_alike(one, two))
            elif kind == 5:
                made = draw.choice([torch.tanh, torch.neg, torch.abs, torch.sin, torch.relu])(one)
            elif kind == 6:
                made = one * draw.choice([1.0, 0.5]) if draw.random() < 0.7 else torch.randn_like(one)
            elif kind == 7:
                made = one.sum(draw.randrange(one.dim()), keepdim=draw.random() < 0.5) if one.dim() else one / 1
            else:
                made = torch.where(one > 0, one, one.new_zeros(()))
            values.append(made)
            if kind in (1, 5) or (kind == 2 and any(one is value for value in mine)):
                mine.append(made)  # a view of what may be changed may be changed
        results = draw.sample(values, draw.randint(1, min(5, len(values))))
        return [*results, results[0]]

    def _view(self, draw: random.Random, one: Tensor) -> Tensor:
        if not one.dim():
            return draw.choice([one.view(1), one.expand(2), one.detach()])
        return draw.choice(
            [
                one[0],
                one[-1:],
                one.reshape(-1),
                one.mT if one.dim() > 1 else one,
                one.unsqueeze(0),
                one.expand(2, *one.shape),
            ]
        )

    def _change(self, draw: random.Random, changed: Tensor, other: Tensor) -> None:
        if any(step == 0 and size > 1 for step, size in zip(changed.stride(), changed.shape, strict=True)):
            return
        kind = draw.randrange(5)
        if kind == 0:
            changed.mul_(0.5)
        elif kind == 1:
            changed.zero_()
        elif kind == 2 and memory(other) != memory(changed) and _fits(other, changed):
            changed.copy_(other)
        elif kind == 3:
            changed.normal_()
        elif kind == 4 and memory(other) != memory(changed) and _fits(other, changed):
            changed.add_(other)


def _alike(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    return (one, two) if _fits(two, one) or _fits(one, two) else (one, one)


def _fits(one: Tensor, other: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(one.shape, other.shape) == other.shape
    except RuntimeError:
        return False


def fuzz(seed: int) -> None:
    dtype = DTYPES[seed % 2]
    kept = [real(2, 3, seed=seed, dtype=dtype), real(3, seed=seed + 1, dtype=dtype)]
    sources = [[real(4, 3, seed=s, dtype=dtype), real(seed=s + 9, dtype=dtype)] for s in range(3)]
    copied: Sequence[int] = ((0, 1), (0,), ())[seed % 3]
    beside = (0, 1) if seed % 5 == 0 else ()
    replay = assert_replays(Maker(seed), kept, sources, copied=copied, beside=beside)
    assert own_memory(replay)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
def test_random_graphs(block):
    for seed in range(block * 25, block * 25 + 25):
        fuzz(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_many_random_graphs(block):
    for seed in range(100 + block * 100, 200 + block * 100):
        fuzz(seed)


# ---- memory


def long_chain(weight: Tensor, x: Tensor) -> list[Tensor]:
    for _ in range(30):
        x = torch.tanh(x @ weight) + 1
    return [x.sum()]


def blocks(replay: Replay) -> list[Tensor]:
    """The blocks of memory that a replay writes to."""
    return list({block.data_ptr(): block for block in replay._plan.pools.values()}.values())


@pytest.mark.slow
def test_memory_is_used_again():
    """Sixty values of 8 kB in the memory of a few."""
    weight, x = real(8, 8), real(128, 8, seed=1)
    replay = assert_replays(long_chain, [weight], [[x], [2 * x]])
    assert sum(map(len, blocks(replay))) <= 4 * x.nbytes


def test_values_that_are_needed_stay_apart():
    """Every value until the last operation."""

    def all_needed(x: Tensor) -> list[Tensor]:
        values = [torch.sin(x * i) for i in range(2, 20)]
        return [torch.stack(values).sum(0)]

    assert_replays(all_needed, [], [[real(64, seed=seed)] for seed in range(2)])


def test_nothing_is_allocated_in_a_call():
    """Results lie where they lay, and so does every value."""
    replay = assert_replays(long_chain, [real(8, 8)], [[real(16, 8, seed=1)], [real(16, 8, seed=2)]])
    where = [value.data_ptr() for value in replay([real(16, 8, seed=3)])]
    assert where == [value.data_ptr() for value in replay([real(16, 8, seed=4)])]


def test_results_may_be_changed_between_two_calls():
    """As optimizers do with gradients: also those that are constants, inputs or views of each other."""
    weight = real(3)

    def results(weight: Tensor, x: Tensor) -> list[Tensor]:
        y = weight * x.sum(0)
        return [weight, x, torch.ones(3, dtype=x.dtype), y, y, y[:2], weight.expand(2, 3)]

    sources = [[real(4, 3, seed=seed)] for seed in range(3)]
    graph = graph_of(results, [weight, *sources[0]])
    replay = Replay(graph, [weight, *sources[0]], 1, copied=(0,))
    for source in sources:
        found = replay(source)
        assert all(map(same, found, run(graph, [weight, *source], 0)))
        for value in found[:-1]:
            value.fill_(99)
    assert same(weight, real(3))


# ---- results side by side


def gradients(weight: Tensor, bias: Tensor, x: Tensor) -> list[Tensor]:
    values = [value.detach().requires_grad_() for value in (weight, bias)]
    loss = torch.tanh(x @ values[0] + values[1]).square().sum()
    return [loss.detach(), *torch.autograd.grad(loss, values)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 2, 8, 31])
def test_results_side_by_side(width, dtype):
    """As one vector, with zeros between; its norm is the joint norm."""
    kept = [real(3, width, dtype=dtype), real(width, seed=1, dtype=dtype)]
    sources = [[real(5, 3, seed=seed, dtype=dtype)] for seed in range(3)]
    replay = assert_replays(gradients, kept, sources, beside=(1, 2))
    assert replay.beside is not None
    found = replay(sources[0])
    joint = torch.cat([value.reshape(-1) for value in found[1:]]).norm()
    torch.testing.assert_close(replay.beside.norm(), joint, rtol=1e-6, atol=0)
    assert torch.count_nonzero(replay.beside) == sum(value.numel() for value in found[1:])
    replay.beside.mul_(2)
    found = [value.clone() for value in found]
    assert all(same(one, 2 * two) for one, two in zip(found[1:], replay(sources[0])[1:], strict=True))


APART: dict[str, Callable[..., list[Tensor]]] = {
    "other dtypes": lambda w, x: [x.sum(), w * 2, w.float()],
    "one memory": lambda w, x: [x.sum(), (y := w * 2), y],
    "a parameter": lambda w, x: [x.sum(), w, w * 2],
    "a constant": lambda w, x: [x.sum(), torch.ones_like(w), w * 2],
    "an expanded one": lambda w, x: [x.sum(), (w.sum() * 2).expand(3), w * 2],
    "a part of another": lambda w, x: [x.sum(), (w * 3)[:2], w * 2],
    "no elements": lambda w, x: [x.sum(), w[:0] * 2, w * 2],
    "a number": lambda w, x: [x.sum(), w.sum(), w * 2],
    "in another order": lambda w, x: [x.sum(), (w[:, None] * x[0]).t(), w * 2],
}


@pytest.mark.parametrize("name", APART)
def test_results_that_can_or_cannot_lie_side_by_side(name):
    """Right numbers in both cases, and a vector only if it has them all."""
    sources = [[real(3, 3, seed=seed)] for seed in range(2)]
    replay = assert_replays(APART[name], [real(3)], sources, beside=(1, 2))
    if replay.beside is not None:
        found = replay(sources[0])
        joint = torch.cat([value.reshape(-1) for value in found[1:]]).norm()
        torch.testing.assert_close(replay.beside.norm(), joint, rtol=1e-12, atol=0)


def test_no_results_side_by_side():
    assert assert_replays(lambda x: [x.sum()], [], [[real(3)], [real(3, seed=1)]]).beside is None


# ---- inputs


def picked(weight: Tensor, stored: Tensor, rows: Tensor) -> list[Tensor]:
    x = stored.t()[:, rows].t()
    return [(x * weight).sum(), x.reshape(-1) * 2]


def test_another_stored_column():
    """Stored columns are read where they lie; another one, of other values or another layout, takes a new list of calls."""
    weight, rows = real(3), torch.tensor([4, 0, 2])
    columns = [real(6, 3, seed=0), real(6, 3, seed=1), real(3, 6, seed=2).t(), real(6, 4, seed=3)[:, 1:]]
    graph = graph_of(picked, [weight, columns[0], rows])
    replay = Replay(graph, [weight, columns[0], rows], 1, copied=(1,))
    for column in [*columns, *columns]:
        for chosen in (rows, rows.flip(0)):
            assert all(map(same, replay([column, chosen]), run(graph, [weight, column, chosen], 0)))
    columns[-1][0] = 7.0  # in place
    assert all(map(same, replay([columns[-1], rows]), run(graph, [weight, columns[-1], rows], 0)))


def test_one_column_given_twice_may_be_two_later():
    column, other = real(6, 3), real(6, 3, seed=1)

    def both(one: Tensor, two: Tensor) -> list[Tensor]:
        return [(one.t() @ two).sum() + (one[1:] - two[1:]).exp().sum()]

    graph = graph_of(both, [column, column])
    replay = Replay(graph, [column, column], 0, copied=())
    for given in ([column, column], [column, other], [other, column], [other, other]):
        assert all(map(same, replay(given), run(graph, given, 0)))


def test_a_stored_column_that_does_not_fit_is_an_error_in_each_call():
    """And not the numbers of the column before it."""
    weight, rows, column = real(3), torch.tensor([1, 0]), real(6, 3)

    def viewed(weight: Tensor, stored: Tensor, rows: Tensor) -> list[Tensor]:
        return [(stored.view(-1)[:3] * weight).sum() + stored[rows].sum()]

    graph = graph_of(viewed, [weight, column, rows])
    replay = Replay(graph, [weight, column, rows], 1, copied=(1,))
    expected = replay([column, rows])[0].clone()
    other = real(3, 6).t()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            replay([other, rows])
    assert same(replay([column, rows])[0], expected)


def test_a_parameter_that_moves_is_seen():
    weight, source = real(3), [real(4, 3)]
    graph = graph_of(lambda w, x: [(w * x).sum(), w.exp()], [weight, *source])
    replay = Replay(graph, [weight, *source], 1, copied=(0,))
    for _ in range(3):
        weight.add_(1)
        assert all(map(same, replay(source), run(graph, [weight, *source], 0)))


def test_a_closure_that_changes_between_two_calls_is_seen():
    """A tensor of the programs is read where it lies, and nothing that is computed from it is kept."""
    held, source = real(3), [real(4, 3)]
    graph = graph_of(lambda x: [(held.exp() * x).sum(), held * 1.0, held.sum() + 0.0], source)
    replay = Replay(graph, source, 0, copied=(0,))
    for _ in range(3):
        held.add_(1)
        assert all(map(same, replay(source), run(graph, source, 0)))


def test_a_literal_is_a_constant():
    graph = graph_of(lambda x: [x * torch.tensor(2.0, dtype=x.dtype).exp()], [real(3)])
    replay = Replay(graph, [real(3)], 0, copied=(0,))
    assert len(replay.calls) == 1


def test_copied_inputs_that_the_graph_changes():
    """The caller's stay as they are, and equal calls give equal results."""

    def changing(x: Tensor) -> list[Tensor]:
        x.mul_(2).clamp_(min=0)
        return [x.sum(), x]

    assert_replays(changing, [], [[real(4, 3, seed=seed)] for seed in range(3)])
    source = [real(4, 3)]
    replay = Replay(graph_of(changing, source), source, 0, copied=(0,))
    first = [value.clone() for value in replay(source)]
    assert all(map(same, replay(source), first))


def changing_parameter(weight: Tensor, stored: Tensor, x: Tensor) -> list[Tensor]:
    weight.add_(1)
    return [weight * x]


def changing_column(weight: Tensor, stored: Tensor, x: Tensor) -> list[Tensor]:
    stored[0].zero_()
    return [weight * x]


def normalising_column(weight: Tensor, stored: Tensor, x: Tensor) -> list[Tensor]:
    return [functional.batch_norm(x[None].expand(4, 3), stored[0], stored[1].exp(), training=True)]


@pytest.mark.parametrize("function", [changing_parameter, changing_column, normalising_column])
def test_a_graph_that_changes_what_it_is_given_is_refused(function):
    """Before it runs, so that nothing has changed."""
    inputs = [real(3), real(6, 3, seed=1), real(3, seed=2)]
    before = [value.clone() for value in inputs]
    with pytest.raises(NoGraph, match=r"^the programs change a parameter or data in place"):
        Replay(graph_of(function, inputs), inputs, 1, copied=(1,))
    assert all(map(same, inputs, before))


def test_a_graph_that_changes_a_closure_is_refused():
    held = real(3)

    def counting(x: Tensor) -> list[Tensor]:
        held.add_(1)
        return [x * held]

    graph = graph_of(counting, [real(3)])
    before = held.clone()
    with pytest.raises(NoGraph, match="in place"):
        Replay(graph, [real(3)], 0, copied=(0,))
    assert same(held, before)


def test_an_operation_that_raises_on_some_values():
    """The error comes out, and the next call is right."""
    good, bad = real(3, 3) @ real(3, 3).t() + torch.eye(3), -torch.eye(3, dtype=torch.float64)
    graph = graph_of(lambda m: [torch.linalg.cholesky(m)], [good])
    replay = Replay(graph, [good], 0, copied=(0,))
    expected = replay([good])[0].clone()
    with pytest.raises(torch.linalg.LinAlgError):
        replay([bad])
    assert same(replay([good])[0], expected)


def test_a_check_whose_value_nobody_uses_is_kept():
    def checked(m: Tensor) -> list[Tensor]:
        torch.linalg.cholesky(m)
        return [m * 2]

    good = torch.eye(2, dtype=torch.float64)
    replay = Replay(graph_of(checked, [good]), [good], 0, copied=(0,))
    with pytest.raises(torch.linalg.LinAlgError):
        replay([-good])
