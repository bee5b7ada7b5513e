"""The shared networks: widths, activations, and refusals."""

import pytest
import torch
from torch import nn

from pyro_vi.errors import InputError
from pyro_vi.networks import ACTIVATIONS, mlp, mlp_body


@pytest.mark.parametrize("hidden", [(16, 8), (5,), 7, ()])
def test_widths_of_a_perceptron(hidden):
    widths = (hidden,) if isinstance(hidden, int) else hidden
    layers = [layer for layer in mlp(3, hidden, 2) if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == list(
        zip((3, *widths), (*widths, 2), strict=True)
    )
    body = mlp_body(3, hidden)
    assert body.width == (widths[-1] if widths else 3)
    assert body(torch.zeros(4, 3)).shape == (4, body.width)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_hidden_layer_and_only_those_are_activated(activation):
    network = mlp(3, (4, 4), 2, activation)
    kinds = [type(layer) for layer in network]
    assert kinds == [nn.Linear, ACTIVATIONS[activation], nn.Linear, ACTIVATIONS[activation], nn.Linear]


def test_a_perceptron_without_hidden_layers_is_linear():
    network, x = mlp(3, (), 2), torch.randn(5, 3)
    torch.testing.assert_close(network(2 * x) - network(0 * x), 2 * (network(x) - network(0 * x)))


@pytest.mark.parametrize("hidden", [(0,), (16, -1), 0])
def test_widths_that_are_none_are_refused(hidden):
    with pytest.raises(InputError, match="positive whole numbers"):
        mlp(3, hidden, 2)


def test_an_unknown_activation_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'relu'"):
        mlp(3, (4,), 2, "relus")
