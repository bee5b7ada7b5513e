"""Effect handlers that fix or relax draws.

* `Give` fixes the values of latent sites.
* `Relax` draws discrete sites straight-through; `Straighten` lets the log-densities of one-hot sites pass gradients to z.
"""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vi.errors import InputError

Values = dict[str, Tensor]


class Give(Messenger):
    """Give latent sites fixed values; the sites remain draws and do not become observations."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class Relax(Messenger):
    """Draw discrete sites straight-through: the value is discrete, and its gradient is that of a Gumbel-softmax draw.

    Jang, Gu and Poole (2017, arXiv:1611.01144).
    """

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
                f"site '{msg['name']}' ({type(fn).__name__}) has no relaxation; write it as Bernoulli or "
                "OneHotCategorical, or use the estimator 'score'"
            )
        msg["value"], msg["done"] = soft.rsample(), True


class _LinearOneHot(dist.OneHotCategorical):
    """One-hot categorical with log q(z) = Σ_c z_c log π_c; torch looks up log π_c instead, which gives z no gradient."""

    def log_prob(self, value: Tensor) -> Tensor:
        smallest = torch.finfo(self.logits.dtype).min
        return (value * self.logits.clamp(min=smallest)).sum(-1)


class Straighten(Messenger):
    """Give one-hot latents a log-density that is linear in z, so that it has a gradient in straight-through draws."""

    def _pyro_sample(self, msg: Any) -> None:
        fn, extra = msg["fn"], 0
        while isinstance(fn, torch.distributions.Independent):
            fn, extra = fn.base_dist, extra + fn.reinterpreted_batch_ndims
        if not msg["is_observed"] and type(fn) is dist.OneHotCategorical:
            msg["fn"] = _LinearOneHot(logits=fn.logits, validate_args=False).to_event(extra)
