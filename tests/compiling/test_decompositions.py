"""What stands for operations of torch in compiled graphs gives their numbers; those that draw or add: `test_inductor.py`."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vi.compiling.decompositions import table
from pyro_vi.compiling.inductor import compile_graph

aten = torch.ops.aten
OURS = table({})
EPS = torch.finfo(torch.float32).eps


def compiled(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    graph = make_fx(lambda *inputs: (function(*inputs),))(*inputs)
    (result,) = compile_graph(graph, list(inputs))(list(inputs))
    return result


@pytest.mark.slow
def test_tanh_is_within_two_units_in_the_last_place():
    small, middle = torch.logspace(-37, 1, 100_001), torch.linspace(-12, 12, 1_000_001)
    x = torch.cat([middle, small, -small, torch.tensor([0.0, -0.0, 89.0, -89.0, torch.inf, -torch.inf, torch.nan])])
    exact = x.double().tanh()
    for found in (OURS[aten.tanh.default](x), compiled(torch.tanh, x)):
        torch.testing.assert_close(found.double(), exact, rtol=2 * EPS, atol=1e-44, equal_nan=True)


@pytest.mark.slow
def test_the_derivative_of_tanh():
    x = torch.linspace(-6, 6, 1001, requires_grad=True)

    def derivative(x: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(x.tanh().sum(), x)
        return found

    exact = 1 - x.detach().double().tanh() ** 2
    torch.testing.assert_close(compiled(derivative, x).detach().double(), exact, rtol=0, atol=3 * EPS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions_are_torchs(dtype):
    assert OURS[aten.tanh.default](torch.ones(3, dtype=dtype)) is NotImplemented
    x = torch.linspace(-3, 3, 101, dtype=dtype)
    torch.testing.assert_close(compiled(torch.tanh, x), x.tanh())
