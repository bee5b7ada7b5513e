"""Effect handlers: fixed values, relaxed draws."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vi.errors import InputError

Values = dict[str, Tensor]


class Give(Messenger):
    """Sites take given values, still as draws and not as observations."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class Relax(Messenger):
    """Discrete sites draw straight through: a discrete value whose gradient is that of its Gumbel-softmax relaxation."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        fn, extra = msg["fn"], 0
        if msg["is_observed"] or msg["done"] or fn.has_rsample or site_is_subsample(msg):
            return
        while isinstance(fn, torch.distributions.Independent):
            fn, extra = fn.base_dist, extra + fn.reinterpreted_batch_ndims
        logits = getattr(fn, "logits", torch.zeros(()))
        temperature = torch.as_tensor(self.temperature, dtype=logits.dtype, device=logits.device)
        if isinstance(fn, torch.distributions.Bernoulli):
            soft: Any = dist.RelaxedBernoulliStraightThrough(temperature, logits=logits)
        elif isinstance(fn, torch.distributions.OneHotCategorical):
            soft = dist.RelaxedOneHotCategoricalStraightThrough(temperature, logits=logits)
        else:
            raise InputError(
                f"site '{msg['name']}' ({type(fn).__name__}) has no relaxation here; write it as Bernoulli or "
                "OneHotCategorical, or use 'score'"
            )
        msg["value"], msg["done"] = soft.rsample(), True


class _LinearOneHot(dist.OneHotCategorical):
    """log q(z) = Σ_c z_c log π_c: torch looks the state up instead, and passes no gradient to z."""

    def log_prob(self, value: Tensor) -> Tensor:
        smallest = torch.finfo(self.logits.dtype).min
        return (value * self.logits.clamp(min=smallest)).sum(-1)


class Straighten(Messenger):
    """One-hot latents get a log-density through which a straight-through draw passes its gradient."""

    def _pyro_sample(self, msg: Any) -> None:
        fn, extra = msg["fn"], 0
        while isinstance(fn, torch.distributions.Independent):
            fn, extra = fn.base_dist, extra + fn.reinterpreted_batch_ndims
        if not msg["is_observed"] and type(fn) is dist.OneHotCategorical:
            msg["fn"] = _LinearOneHot(logits=fn.logits, validate_args=False).to_event(extra)
