"""The contract between the engine and an estimator of a variational bound.

* `Traits` are the facts about an estimator that checks, records, audits and comparisons depend on.
* `Estimator` is the contract itself. `pyro_vi.estimators.bound.Bound` provides it; `pyro_vi.estimators.traits` provides it for
  Pyro's own classes, and for everything else that is a `pyro.infer.ELBO` with a ``differentiable_loss``.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from pyro_vi.data import Batch
from pyro_vi.elbo import KL, KLSource
from pyro_vi.programs import Pair


@dataclass(frozen=True)
class Traits:
    """Facts about an estimator; the defaults are those of the sampled ELBO, with a score function where draws need one.

    Attributes:
        target: the bound that it estimates: ``"elbo"``, ``"iwae(5)"``. Only gradients of the same bound can agree.
        kl: ``"analytic"`` if it uses closed forms of the KL where they exist.
        through_draws: its gradient goes through every draw, and is lost where a site cannot be reparameterised.
        biased: its gradient is not that of its target, even on average.
        sums_marked: it sums over the states of sites that are marked for enumeration.
        trusts_order: it uses closed forms of the KL without checking dependence; this is right only for a guide that samples in
            the model's order.
        scale_inside: the scale of a subsampled plate is inside a logarithm, so that a minibatch biases it.
    """

    target: str = "elbo"
    kl: KL = "sampled"
    through_draws: bool = False
    biased: bool = False
    sums_marked: bool = False
    trusts_order: bool = False
    scale_inside: bool = False


@runtime_checkable
class Estimator(Protocol):
    """Everything that the engine asks of an estimator."""

    @property
    def traits(self) -> Traits:
        """Facts about it, under its present options."""

    def loss_of_pair(self, pair: Pair, args: Batch) -> Tensor:
        """−bound of one evaluation, of all data in nats, shape ``()``, with a gradient that is the estimator's."""

    def sources_of_pair(self, pair: Pair, args: Batch) -> dict[str, KLSource]:
        """The source of each latent site's KL, looked up on one draw of the batch."""
