"""Products of large matrices by the faster library: the same numbers, and nothing left behind in the compiler's tables."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vi import products
from pyro_vi.inductor import compile_graph

LARGE, SMALL = (128, 784, 400), (8, 5, 3)


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


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where oneDNN is the faster one."""
    monkeypatch.setattr("pyro_vi.inductor.onednn_is_faster", lambda threads: True)


@pytest.mark.parametrize("sizes", [LARGE, SMALL])
def test_the_products_are_those_of_torch(sizes, faster):
    inputs = operands(*sizes)
    compiled = compile_graph(make_fx(step)(*inputs), inputs)
    exact = step(*(value.double() for value in inputs))
    for found, expected in zip(compiled(list(inputs)), exact, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("sizes", "dtype", "taken"),
    [(LARGE, torch.float32, True), (SMALL, torch.float32, False), (LARGE, torch.float64, False)],
)
def test_only_large_ones_in_single_precision_are_taken(sizes, dtype, taken):
    one, two = operands(*sizes, dtype)
    found: Any = products.product(one, two.t())
    assert (found is not NotImplemented) == taken
    torch.testing.assert_close(products.product(one, two.t(), otherwise=torch.mm), one @ two.t(), rtol=1e-5, atol=1e-3)


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


def test_the_measurement_is_made_once_and_gives_a_choice():
    assert products.onednn_is_faster(1) is products.onednn_is_faster(1)
    assert products.onednn_is_faster.cache_info().hits >= 1
