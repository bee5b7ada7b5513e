"""Products as loops, or by a library: the same numbers, and nothing left behind in the compiler's tables."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import gelu, silu

from pyro_vi.compiling import products
from pyro_vi.compiling.inductor import compile_graph

LARGE, MIDDLE, SMALL = (128, 784, 400), (64, 64, 64), (8, 5, 3)


def step(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A layer, and both gradients of its sum of squares."""
    y = x @ w.t()
    return y, y @ w, y.t() @ x


def operands(rows: int, wide: int, narrow: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(rows, wide, generator=generator).to(dtype),
        torch.randn(narrow, wide, generator=generator).to(dtype),
    ]


SIZES = [LARGE, MIDDLE, SMALL, (1, 5, 3), (8, 1, 3), (8, 5, 1), (7, 33, 17)]
DTYPES = [torch.float32, torch.float64]
CASES = list(itertools.product(SIZES, DTYPES))
DIGITS = {torch.float32: 1e-5, torch.float64: 1e-13}


def assert_near(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    digits = DIGITS[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=digits, atol=digits * float(exact.abs().max()))


@pytest.fixture(scope="module")
def multiplied() -> list[tuple[Tensor, ...]]:
    """The results of `step` for each case, out of one compiled graph: each graph by itself takes seconds."""

    def steps(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(result for x, w in zip(inputs[::2], inputs[1::2], strict=True) for result in step(x, w))

    inputs = [value for sizes, dtype in CASES for value in operands(*sizes, dtype)]
    found = compile_graph(make_fx(steps)(*inputs), inputs)(list(inputs))
    return [tuple(found[i : i + 3]) for i in range(0, len(found), 3)]


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "dtype"), CASES, ids=str)
def test_the_products_are_those_of_torch(sizes, dtype, multiplied):
    """Plain, and with either factor a transpose."""
    exact = step(*(value.double() for value in operands(*sizes, dtype)))
    for found, expected in zip(multiplied[CASES.index((sizes, dtype))], exact, strict=True):
        assert_near(found, expected, dtype)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Has an entry for each product that is compiled to a call of oneDNN."""
    from torch._inductor import config, mkldnn_ir

    made: list[int] = []
    before = mkldnn_ir.LinearUnary.__init__

    def counting(self: Any, *args: Any, **options: Any) -> None:
        made.append(1)
        before(self, *args, **options)

    monkeypatch.setattr(mkldnn_ir.LinearUnary, "__init__", counting)
    with config.patch(fx_graph_cache=False):  # what is found there is not compiled
        yield made


MM = torch.ops.aten.mm.default


CALLED = (LARGE, torch.float32)
MULTIPLIED = {
    CALLED: False,
    (LARGE, torch.float64): False,
    (MIDDLE, torch.float32): False,
    (SMALL, torch.float32): True,
    (SMALL, torch.float64): True,
    (SMALL, torch.int64): False,
}
"""True if a product is compiled as a loop."""


@pytest.mark.parametrize(("sizes", "dtype"), MULTIPLIED, ids=str)
def test_small_products_are_loops(sizes, dtype):
    flat = make_fx(lambda one, two: (one @ two.t(),), decomposition_table={MM: products.product})(
        *operands(*sizes, dtype)
    )
    assert MULTIPLIED[sizes, dtype] != any(node.target is MM for node in flat.graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "calls"), [([CALLED], 1), ([case for case in MULTIPLIED if case != CALLED], 0)], ids=["large", "others"]
)
def test_onednn_is_called_for_large_products_in_single_precision_alone(which, calls, asked):
    def multiply(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(one @ two.t() for one, two in zip(inputs[::2], inputs[1::2], strict=True))

    inputs = [value for sizes, dtype in which for value in operands(*sizes, dtype)]
    compile_graph(make_fx(multiply)(*inputs), inputs)
    assert len(asked) == (calls if products.has_onednn() else 0)


AFTER = (
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    gelu,
    silu,
    lambda y: y.clamp(-1, 1),
    lambda y: y + torch.ones_like(y),
)


def followed(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return tuple(f((1 + i / 10) * x @ w.t()) for i, f in enumerate(AFTER))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [LARGE, SMALL], ids=str)
def test_what_comes_after_a_product_is_not_lost(sizes):
    """Inductor has ways of its own to fuse a product of oneDNN with what comes next."""
    x, w = operands(*sizes)
    inputs = [x, w / sizes[1] ** 0.5]  # products of size 1, where the functions bend
    found = compile_graph(make_fx(followed)(*inputs), inputs)(list(inputs))
    for one, two in zip(found, followed(*(value.double() for value in inputs)), strict=True):
        assert_near(one, two, torch.float32)


def test_no_loop_runs_over_gaps():
    """A factor is copied before its columns are read, and only then."""
    compiled = {torch.ops.aten.mm.default: products.product}
    for give, copies in ((lambda one, two: one @ two, 0), (lambda one, two: one @ two.t(), 1)):
        one, two = torch.ones(8, 5), torch.ones(5, 5)
        graph = make_fx(give, decomposition_table=compiled)(one, two)
        assert [str(node.target) for node in graph.graph.nodes].count(
            "prims.inductor_force_stride_order.default"
        ) == copies


def test_the_compilers_table_is_as_before():
    from torch._inductor.lowering import lowerings

    before = dict(lowerings)
    with products.multiplying():
        assert (lowerings[MM] is not before[MM]) == products.has_onednn()
    assert lowerings == before
    with pytest.raises(RuntimeError), products.multiplying():
        raise RuntimeError
    assert lowerings == before


@pytest.mark.slow
def test_without_onednn_torch_multiplies(monkeypatch, asked):
    monkeypatch.setattr(products, "has_onednn", lambda: False)
    inputs = operands(*LARGE)
    compiled = compile_graph(make_fx(step)(*inputs), inputs)
    assert not asked
    for found, expected in zip(compiled(list(inputs)), step(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
