"""The recurrent encoder of a plate whose elements are the steps of a sequence: `Chained`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Chained(nn.Module):
    """Bidirectional GRU (arXiv:1406.1078) over the steps of padded sequences, which ends where each sequence ends.

    The features of a step know the past and the future of its own sequence, and are the same with and without padding. The
    summary holds the last states of both directions.

    Args:
        shapes: the shape of one step of each input.
        hidden: widths of the layers; each layer has as many units in each direction.

    Example:
        >>> net = Chained([(2,)], (3,))
        >>> x = torch.randn(1, 5, 2)
        >>> seen = torch.tensor([[True, True, True, False, False]])
        >>> steps, _ = net([x], seen)
        >>> torch.allclose(steps[:, :3], net([x[:, :3]], None)[0], atol=1e-6)
        True
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], hidden: tuple[int, ...]) -> None:
        super().__init__()
        width = sum(math.prod(shape) for shape in shapes)
        self.layers = nn.ModuleList()
        for units in hidden or (64,):
            self.layers.append(nn.ModuleList(nn.GRU(width, units, batch_first=True) for _ in range(2)))
            width = 2 * units
        self.width = width

    def forward(self, inputs: Sequence[Tensor], seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return features of the steps, (rows, steps, width), and of the sequences, (rows, width).

        Args:
            inputs: each (rows, steps, *shape).
            seen: which steps count, (rows, steps) or (1, steps); a sequence ends with its last one. None for all.
        """
        value = torch.cat([x.flatten(2) if x.dim() > 2 else x.unsqueeze(-1) for x in inputs], -1)
        rows, steps = value.shape[:2]
        number = torch.arange(steps, device=value.device)
        length = (
            torch.full((rows, 1), steps, device=value.device)
            if seen is None
            else (seen * (number + 1)).amax(1, keepdim=True).expand(rows, 1)
        )
        # The second direction reads each sequence from its own end; what is beyond it stays there.
        back = torch.where(number < length, length - 1 - number, number).unsqueeze(-1)
        last = (length - 1).clamp(min=0).unsqueeze(-1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            along, _ = layer[0](value)
            against, _ = layer[1](value.gather(1, back.expand(value.shape)))
            ends = [part.gather(1, last.expand(rows, 1, part.shape[-1])).squeeze(1) for part in (along, against)]
            value = torch.cat([along, against.gather(1, back.expand(against.shape))], -1)
        return value, torch.cat(ends, -1)
