"""The tensors of a pair that a step changes, as objects that stay the same.

* `Held` finds the fitted parameters and the buffers of a pair. An eager step may put another tensor in the place of a buffer;
  `Held.adopt` copies its value into the first one, and puts that back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vi.programs import Pair
from pyro_vi.support.torch_internals import tensors_of


class Held:
    """Fitted parameters, and buffers.

    Args:
        pair: the pair.
        parameters: its fitted parameters.

    Attributes:
        parameters: the fitted parameters.
        buffers: buffers and parameters that are not fitted: a program may change both in place, such as a codebook.
    """

    def __init__(self, pair: Pair, parameters: Sequence[Tensor]) -> None:
        self.pair, self.parameters = pair, list(parameters)
        own = {id(p) for p in self.parameters}
        held = {id(t): t for t in (*pair.buffers(), *pair.parameters()) if id(t) not in own}
        self.buffers: list[Tensor] = list(held.values())
        self._places = [
            (values, name, value)
            for module in pair.modules()
            for values in tensors_of(module)
            for name, value in values.items()
            if value is not None and id(value) in held
        ]

    @property
    def tensors(self) -> list[Tensor]:
        """Parameters, then buffers."""
        return [*self.parameters, *self.buffers]

    def adopt(self) -> None:
        """Copy buffers that an eager step has replaced into the tensors that graphs change, and put these back."""
        for values, name, buffer in self._places:
            now = values[name]
            if now is not buffer:
                if now is not None and now.shape == buffer.shape:
                    with torch.no_grad():
                        buffer.copy_(now)
                values[name] = buffer
