"""Products as loops, or by a library: the same numbers, and nothing left behind in the compiler's tables."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vi import products
from pyro_vi.inductor import compile_graph

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [LARGE, MIDDLE, SMALL, (1, 5, 3), (8, 1, 3), (8, 5, 1), (7, 33, 17)], ids=str)
def test_the_products_are_those_of_torch(sizes, dtype):
    """Plain, and with either factor a transpose."""
    inputs = operands(*sizes, dtype)
    compiled = compile_graph(make_fx(step)(*inputs), inputs)
    exact = step(*(value.double() for value in inputs))
    digits = 1e-5 if dtype == torch.float32 else 1e-13
    for found, expected in zip(compiled(list(inputs)), exact, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=digits, atol=digits * float(expected.abs().max()))


OPERATIONS = {torch.ops.aten.mm.default, torch.ops.mkldnn._linear_pointwise.default}
LIBRARY, ONEDNN = {torch.ops.aten.mm.default}, {torch.ops.mkldnn._linear_pointwise.default}


@pytest.mark.parametrize(
    ("sizes", "dtype", "taken"),
    [
        (LARGE, torch.float32, ONEDNN),
        (LARGE, torch.float64, LIBRARY),
        (MIDDLE, torch.float32, LIBRARY),
        (SMALL, torch.float32, set()),
        (SMALL, torch.float64, set()),
        (SMALL, torch.float16, LIBRARY),
        (SMALL, torch.int64, LIBRARY),
    ],
)
def test_what_multiplies(sizes, dtype, taken, monkeypatch):
    monkeypatch.setattr(products, "has_onednn", lambda: True)
    one, two = operands(*sizes, dtype)
    way = {torch.ops.aten.mm.default: products.product}
    graph = make_fx(lambda one, two: one @ two.t(), decomposition_table=way, tracing_mode="fake")(one, two)
    assert {node.target for node in graph.graph.nodes} & OPERATIONS == taken


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

    operation = torch.ops.mkldnn._linear_pointwise.default
    before = dict(lowerings)
    with products.as_it_is():
        assert lowerings[operation] is not before.get(operation)
    assert lowerings == before
    with pytest.raises(RuntimeError), products.as_it_is():
        raise RuntimeError
    assert lowerings == before


def test_without_onednn_torch_multiplies(monkeypatch):
    monkeypatch.setattr(products, "has_onednn", lambda: False)
    inputs = operands(*LARGE)
    graph = make_fx(step, decomposition_table={torch.ops.aten.mm.default: products.product})(*inputs)
    assert {node.target for node in graph.graph.nodes} & OPERATIONS == LIBRARY
    compiled = compile_graph(make_fx(step)(*inputs), inputs)
    for found, expected in zip(compiled(list(inputs)), step(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
