"""Faster forms give the numbers of the operations that they replace."""

import pytest
import torch
import torch.nn.functional as F
from pyro.distributions import Bernoulli
from torch import Tensor

from pyro_vi.tracing import faster, record
from pyro_vi.tracing.rewriting import LONGEST


def log_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    return Bernoulli(logits=logits, validate_args=False).to_event(1).log_prob(x)


def both(function, *inputs: Tensor, products: bool = False) -> tuple[Tensor, Tensor, list[str]]:
    recording = record(function, *inputs)
    faster(recording.graph, products)
    names = [str(node.target) for node in recording.graph.nodes]
    return recording.module()(*inputs), function(*inputs), names


@pytest.mark.parametrize("size", [3, 5, 64, LONGEST, 784])
def test_the_log_density_of_bits(size):
    """In double precision to rounding, also for large logits and for values between 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    logits = 20 * torch.randn(4, 3, size, generator=generator, dtype=torch.float64)
    logits[0, 0] = 700.0
    logits[0, 1] = 0.0
    for x in ((logits > 3).double(), torch.rand(3, size, generator=generator, dtype=torch.float64)):
        found, expected, names = both(log_bernoulli, logits, x.expand_as(logits))
        assert "aten.prod.dim_int" in names
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-11)


def test_its_error_in_single_precision_is_no_larger():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2000, 64, generator=generator)
    x = (torch.rand(2000, 64, generator=generator) < 0.3).float()
    exact = log_bernoulli(logits.double(), x.double())
    found, expected, _ = both(log_bernoulli, logits, x)
    errors = [(one.double() - exact).abs().max() for one in (found, expected)]
    assert errors[0] < 1.5 * errors[1]
    assert abs(float((found.double() - exact).mean())) < 1e-6  # no bias


@pytest.mark.parametrize("size", [1, 2, 101, 103])
def test_a_sum_without_a_divisor_stays(size):
    x = torch.ones(4, size, dtype=torch.float64)
    found, expected, names = both(log_bernoulli, x, x)
    assert "aten.prod.dim_int" not in names
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_tanh_in_single_precision_only():
    x = torch.linspace(-12, 12, 10_001)
    found, expected, names = both(torch.tanh, x)
    assert "aten.sigmoid.default" in names
    assert float((found.double() - x.double().tanh()).abs().max()) < 4 * 2**-24
    found, expected, names = both(torch.tanh, x.double())
    assert "aten.sigmoid.default" not in names
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("outputs", "ends"), [(64, torch.tanh), (5, lambda x: x), (5, torch.tanh), (64, lambda x: x * 2)]
)
def test_linear_layers(outputs, ends):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 3, 7, generator=generator), torch.randn(outputs, 7, generator=generator)
    bias = torch.randn(outputs, generator=generator)

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ends(F.linear(x, weight, bias))

    found, expected, names = both(layer, x, weight, bias, products=True)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert any("linear_pointwise" in name for name in names) == (outputs < 16 or ends is torch.tanh)


def test_a_layer_that_something_else_uses_stays():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def layer(x: Tensor) -> Tensor:
        made = F.linear(x, torch.ones(20, 3), torch.ones(20))
        return made.tanh() + made

    found, expected, names = both(layer, x, products=True)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not any("linear_pointwise" in name for name in names)


def test_what_changes_nothing_goes_and_what_does_stays():
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected, names = both(lambda x: (x / 1.0 + 0).expand(3, 2).view(3, 2) * 1 - 0.5, x)
    assert torch.equal(found, expected)
    assert [name for name in names if name.startswith("aten")] == ["aten.sub.Tensor"]
    whole = torch.tensor([1, 2])
    found, expected, _ = both(lambda x: x / 1, whole)  # an integer becomes a number
    assert found.dtype == expected.dtype
    found, expected, _ = both(lambda x: x.expand(2, 3, 2).sum(-1), x)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
