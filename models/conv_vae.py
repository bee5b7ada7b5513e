"""A VAE of images, with transposed convolutions in the decoder (Radford et al. 2015, arXiv:1511.06434)."""

import math
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.models.vae import VAE
from pyro_vi.networks import activation_of, widths_of


class ConvVAE(VAE):
    """VAE of images: z ~ N(0, I) or another prior, x | z ~ p(x; f(z)), f transposed convolutions.

    f maps z to a small image by a linear layer, and each transposed convolution (4 by 4, stride 2) doubles its sides. The last
    image covers that of the data, and is cut to its size about the centre, so that images of any size are served.

    Args:
        data: description of the data set; a datum has shape ``(height, width)`` or ``(channels, height, width)``, or is flat
            with an ``image_shape``.
        channels: channels before each transposed convolution, from the smallest image to the largest.
        activation: ``"relu"``, ``"tanh"``, ``"elu"``, ``"gelu"`` or ``"softplus"``.

    Other options (``latent_dim``, ``likelihood``, ``prior``, …): see `pyro_vi.models.vae.VAE`, whose ``hidden`` has the widths
    of the networks of the prior.

    Raises:
        InputError: a datum is no image, or an option is out of range.

    Example:
        >>> import torch
        >>> from pyro_vi.data import load
        >>> model = ConvVAE(load("digits").spec, latent_dim=2, channels=(8, 4))
        >>> model.decode(torch.zeros(3, 2)).shape
        torch.Size([3, 64])
    """

    def __init__(
        self, data: DataSpec, *, channels: tuple[int, ...] = (32, 16), activation: str = "relu", **options: Any
    ) -> None:
        self._channels = widths_of(channels, "channels")
        if not self._channels:
            raise InputError("channels must hold at least one number, as in channels=(32, 16)")
        super().__init__(data, activation=activation, **options)

    def network(self, hidden: tuple[int, ...], activation: str) -> nn.Module:
        """Make the decoder."""
        depth, height, width = image_of(self.data)
        return Images(self.latent_dim, self._channels, (self.law.outputs * depth, height, width), activation)


def image_of(data: DataSpec) -> tuple[int, int, int]:
    """Return channels, height and width of a datum.

    Raises:
        InputError: it is no image.
    """
    shape = data.event_shape
    if data.image_shape is not None and math.prod(data.image_shape) == math.prod(shape):
        return (1, *data.image_shape)
    if len(shape) == 2:
        return (1, shape[0], shape[1])
    if len(shape) == 3 and shape[2] <= 4 < shape[0]:
        raise InputError(
            f"conv_vae takes images of shape (channels, height, width), and a datum of '{data.name}' has shape {shape}, with "
            "the channels last; move them to the front, as by numpy.moveaxis(images, -1, 1)"
        )
    if len(shape) == 3:
        return (shape[0], shape[1], shape[2])
    raise InputError(
        f"conv_vae takes images, but a datum of '{data.name}' has shape {shape}; "
        "use model 'vae', or give an array of shape (rows, height, width)"
    )


class Images(nn.Module):
    """Network from vectors of shape ``(..., latent_dim)`` to flat images of shape ``(..., channels * height * width)``."""

    def __init__(
        self, latent_dim: int, channels: tuple[int, ...], shape: tuple[int, int, int], activation: str
    ) -> None:
        super().__init__()
        outputs, self.height, self.width = shape
        factor = 2 ** len(channels)
        self.small = (channels[0], -(-self.height // factor), -(-self.width // factor))
        self.first = nn.Linear(latent_dim, math.prod(self.small))
        layers: list[nn.Module] = []
        for before, after in pairwise((*channels, outputs)):
            layers += [activation_of(activation)(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Return the images of vectors."""
        found = self.layers(self.first(z.reshape(-1, z.shape[-1])).reshape(-1, *self.small))
        top, left = (found.shape[-2] - self.height) // 2, (found.shape[-1] - self.width) // 2
        cut = found[..., top : top + self.height, left : left + self.width]
        return cut.reshape(*z.shape[:-1], -1)
