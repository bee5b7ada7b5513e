"""Normalizing flows of zuko as distributions of vectors.

* `flow_layers` makes the transforms of a vector, conditional on a context, near the identity.
* `Pushforward` is the distribution of a full normal whose noise goes through them.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

_validated = pyro.settings.get("validate_distributions_torch")
try:
    from zuko.flows import ElementWiseTransform, MaskedAutoregressiveTransform
    from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform
finally:  # zuko turns the validation of all distributions off when it is imported
    Distribution.set_default_validate_args(_validated)

FLOWS = ("spline", "affine", "coupling")
"""The kinds of flows."""
SMALL = 0.1
"""Factor of what the network of a transform gives: the transform starts near the identity, and one step of the optimizer, which
changes all weights of a layer at once, does not throw it far off."""


def flow_layers(
    size: int, context: int, kind: str, transforms: int, hidden: tuple[int, ...], bins: int
) -> nn.ModuleList:
    """Return transforms of vectors of length ``size`` given a context, near the identity.

    Args:
        size: length of the vectors.
        context: number of features that they are conditional on.
        kind: one of `FLOWS`.
        transforms: how many; each one reverses the order of the numbers of the one before.
        hidden: widths of the hidden layers of each.
        bins: bins of a spline.
    """
    spline = {"univariate": MonotonicRQSTransform, "shapes": [(bins,), (bins,), (bins - 1,)]}
    options: dict[str, Any] = (
        {"univariate": MonotonicAffineTransform, "shapes": [(), ()]} if kind == "affine" else spline
    )
    layers = nn.ModuleList()
    if size == 1:
        # A composition of functions of one number is one function; without a context it has no network.
        layers.append(ElementWiseTransform(1, context, **options, **({"hidden_features": hidden} if context else {})))
    else:
        for number in range(transforms):
            order = torch.arange(size) if number % 2 == 0 else torch.arange(size).flip(0)
            passes = 2 if kind == "coupling" else None
            layers.append(
                MaskedAutoregressiveTransform(
                    size, context, passes=passes, order=order, hidden_features=hidden, **options
                )
            )
    for layer in layers:
        network = getattr(layer, "hyper", None)
        if isinstance(network, nn.Sequential):
            network.append(_Scaled())
        else:
            with torch.no_grad():
                for value in layer.parameters():
                    value.mul_(SMALL)
    return layers


class _Scaled(nn.Module):
    """The factor `SMALL`."""

    def forward(self, value: Tensor) -> Tensor:
        return SMALL * value


class Pushforward(dist.TorchDistribution):
    """z = loc + L T(n) with n ~ N(0, I): a distribution of vectors with the batch shape of ``loc``.

    Args:
        loc: (*batch, D).
        scale_tril: the Cholesky factor L, (*batch, D, D).
        transforms: zuko's transforms of (…, *batch, D), in the order in which they act on the noise.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True
    described = "Flow"

    def __init__(self, loc: Tensor, scale_tril: Tensor, transforms: list[Any]) -> None:
        self.loc, self.scale_tril, self.transforms = loc, scale_tril, transforms
        self._last: tuple[Tensor, Tensor] | None = None
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw vectors; their density is kept."""
        shape = (*sample_shape, *self.loc.shape)
        value = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        density = self._normal(value)
        for transform in self.transforms:
            value, slope = transform.call_and_ladj(value)
            density = density - slope
        value = self.loc + (self.scale_tril @ value.unsqueeze(-1)).squeeze(-1)
        self._last = value, density - self._log_det()
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """log N(n; 0, I) − Σ log T′(n) − log det L at the noise n of a value."""
        if self._last is not None and self._last[0] is value:
            return self._last[1]
        offset = (value - self.loc).unsqueeze(-1)
        tril = self.scale_tril.expand(*offset.shape[:-2], *self.scale_tril.shape[-2:])
        noise = torch.linalg.solve_triangular(tril, offset, upper=False).squeeze(-1)
        total = -self._log_det()
        for transform in reversed(self.transforms):
            noise, slope = transform.inv.call_and_ladj(noise)
            total = total + slope
        return self._normal(noise) + total

    def _normal(self, noise: Tensor) -> Tensor:
        return dist.Normal(torch.zeros_like(noise), torch.ones_like(noise)).log_prob(noise).sum(-1)

    def _log_det(self) -> Tensor:
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
