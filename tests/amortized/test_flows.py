"""Transforms of zuko and the distribution of what they make of noise."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_vi.amortized.flows import FLOWS, Pushforward, flow_layers


def layers_of(kind, size, context):
    torch.manual_seed(0)
    return flow_layers(size, context, kind, 2, (8,), 6).double()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", FLOWS)
def test_transforms_start_near_the_identity_and_have_an_inverse(kind, size):
    value, context = torch.linspace(-3, 3, 5 * size).double().reshape(5, size), torch.ones(5, 2).double()
    for layer in layers_of(kind, size, 2):
        transform = layer(context)
        image, slope = transform.call_and_ladj(value)
        back, other = transform.inv.call_and_ladj(image)
        assert float((image - value).abs().max().detach()) < 0.3
        torch.testing.assert_close(back, value, rtol=0, atol=1e-9)
        torch.testing.assert_close(other, -slope, rtol=0, atol=1e-9)


def test_without_transforms_it_is_the_normal():
    loc = torch.tensor([[1.0, -1.0], [0.0, 2.0]]).double()
    tril = torch.tensor([[2.0, 0.0], [0.5, 0.3]]).double().expand(2, 2, 2)
    found, value = Pushforward(loc, tril, []), torch.tensor([0.3, 0.4]).double()
    torch.testing.assert_close(found.log_prob(value), MultivariateNormal(loc, scale_tril=tril).log_prob(value))


@pytest.mark.parametrize("kind", FLOWS)
def test_the_density_of_a_single_number_integrates_to_1(kind):
    layers = layers_of(kind, 1, 0)
    found = Pushforward(torch.zeros(1).double(), torch.eye(1).double(), [layer(None) for layer in layers])
    grid = torch.linspace(-12, 12, 4001).double().unsqueeze(-1)
    assert float(torch.trapezoid(found.log_prob(grid).exp(), grid[:, 0]).detach()) == pytest.approx(1, abs=1e-6)
