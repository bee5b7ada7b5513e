"""The objective of a fit: the loss of an estimator for one batch, divided by the number of data.

* `Objective` is called with a batch, and with the weight of the KL where that is not 1. It is the one place where eager and
  compiled steps take their loss from, with free bits, and accumulated over several batches.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vi.data import Batch, length_of
from pyro_vi.elbo import UNANNEALED
from pyro_vi.estimators.accumulating import Parts, accumulated
from pyro_vi.estimators.free_bits import FreeBits
from pyro_vi.estimators.traits import differentiable_loss
from pyro_vi.programs import Pair


class _Anneal(Messenger):
    """Multiply the KL by β: the log-densities of latent sites, in the model and the guide alike."""

    def __init__(self, beta: float | Tensor) -> None:
        super().__init__()
        self.beta = beta
        self.scaled: dict[float, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            return
        scale = msg["scale"]
        # The annealed KL stays inside the logarithm of a many-sample bound; the program's own scale may not.
        msg["infer"] = {**(msg["infer"] or {}), UNANNEALED: scale}
        if isinstance(scale, (int, float)):
            # Model and guide share one product object, so code can see that they scale a site alike without reading its value.
            msg["scale"] = self.scaled.setdefault(float(scale), scale * self.beta)
        else:
            msg["scale"] = scale * self.beta


@dataclass(frozen=True)
class Objective:
    """−(1/N) [E_q log p(x | z) − β KL(q(z | x) ‖ p(z))], estimated on a batch.

    N is ``num_data``, or the number of data that `pyro_vi.programs.pair.Pair.rows` finds for a batch. With ``free_bits``, the
    loss is that of `pyro_vi.estimators.free_bits.FreeBits`.
    """

    pair: Pair
    elbo: ELBO
    num_data: int | None = None
    free_bits: FreeBits | None = None

    def __call__(self, batch: Batch, weight: float | Tensor = 1.0, wanted: Sequence[Tensor] | None = None) -> Tensor:
        """The loss of one evaluation in nats per datum, with the KL weighted by β = ``weight``.

        The loss of `Parts` is the mean over their rows; it has a gradient in ``wanted`` only, by default in all parameters.
        """
        if isinstance(batch, Parts):
            own = [p for p in self.pair.parameters() if p.requires_grad] if wanted is None else wanted
            return accumulated(lambda part: self(part, weight), batch, own)
        if self.free_bits is not None:
            with torch.enable_grad():
                return self.free_bits.loss(self.pair, batch, weight) / self.size(batch)
        plain = not isinstance(weight, torch.Tensor) and weight == 1
        # A fit may be asked for where gradients are off.
        with torch.enable_grad(), contextlib.nullcontext() if plain else _Anneal(weight):
            loss = differentiable_loss(self.elbo, self.pair, batch)
            return loss / self.size(batch)

    def size(self, batch: Batch) -> int:
        """Return the number of data by which the loss on a batch is divided."""
        if self.num_data:
            return self.num_data
        if isinstance(batch, Parts):
            rows, found = sum(map(length_of, batch)), self.pair.rows(batch[0])[1]
            return rows if found == length_of(batch[0]) else found  # a plate may have the length of its batch
        return self.pair.rows(batch)[1]
