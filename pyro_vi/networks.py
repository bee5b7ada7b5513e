"""Networks that models and guides share."""

from itertools import pairwise

from torch import nn

from pyro_vi.errors import InputError
from pyro_vi.support import unknown

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}


def widths_of(hidden: tuple[int, ...] | int, name: str = "hidden") -> tuple[int, ...]:
    """Return the widths of hidden layers as a tuple; InputError, with the name of the option, if they are none.

    >>> widths_of(64), widths_of((64, 32))
    ((64,), (64, 32))
    """
    widths = hidden if isinstance(hidden, tuple | list) else (hidden,)
    if not all(isinstance(width, int) and width > 0 for width in widths):
        raise InputError(f"{name} must hold positive whole numbers, as in {name}=(64, 64), not {hidden!r}")
    return tuple(widths)


def activation_of(name: str) -> type[nn.Module]:
    """Return the class of an activation; InputError for a name that is no key of `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise unknown("activation", str(name), ACTIVATIONS)
    return ACTIVATIONS[name]


class Body(nn.Sequential):
    """Hidden layers, each followed by its activation; ``width`` is the width of the last layer."""

    def __init__(self, layers: list[nn.Module], width: int) -> None:
        super().__init__(*layers)
        self.width = width


def mlp_body(inputs: int, hidden: tuple[int, ...] | int, activation: str = "tanh") -> Body:
    """Build the hidden layers of a multilayer perceptron, without an output layer.

    Args:
        inputs: number of inputs.
        hidden: widths of the hidden layers, or the width of a single one.
        activation: a key of `ACTIVATIONS`.

    Raises:
        InputError: an unknown activation, or a width that is not a positive whole number.

    Example:
        >>> mlp_body(2, (16, 8)).width
        8
    """
    widths, made = (inputs, *widths_of(hidden)), activation_of(activation)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), made()]
    return Body(layers, widths[-1])


def mlp(inputs: int, hidden: tuple[int, ...] | int, outputs: int, activation: str = "tanh") -> nn.Sequential:
    """Build a multilayer perceptron of widths ``inputs, *hidden, outputs``, with no activation after the last layer.

    Example:
        >>> mlp(2, (16,), 3)[0]
        Linear(in_features=2, out_features=16, bias=True)
    """
    body = mlp_body(inputs, hidden, activation)
    return nn.Sequential(*body, nn.Linear(body.width, outputs))
