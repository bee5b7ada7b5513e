"""Any `pyro.infer.ELBO` under the contract of the engine.

* `estimator_of` gives an estimator as a `pyro_vi.estimators.contract.Estimator`: a `Bound` as it is, another one `Adapted`.
* `PYROS` states the traits of Pyro's own classes, and how to get a loss where that is not ``differentiable_loss``. A class that
  is not in it is taken as the nearest class that it inherits from.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from torch import Tensor

from pyro_vi.data import Batch, fresh
from pyro_vi.elbo import KLSource, terms_of_pair
from pyro_vi.errors import InputError
from pyro_vi.estimators.contract import Estimator, Traits
from pyro_vi.estimators.table import TABLE
from pyro_vi.programs import Pair
from pyro_vi.support.private import Missing
from pyro_vi.support.pyro_internals import loss_and_surrogate

Loss = Callable[[Pair, Batch], Tensor]


def _own_loss(elbo: Any) -> Loss:
    if not hasattr(elbo, "differentiable_loss"):
        raise InputError(f"{type(elbo).__name__} has no differentiable_loss; use one of: {', '.join(TABLE)}")

    def loss(pair: Pair, args: Batch) -> Tensor:
        value: Tensor = elbo.differentiable_loss(pair.model, pair.guide, *args)
        return value

    return loss


def _graph_loss(elbo: Any) -> Loss:
    try:
        both = loss_and_surrogate(elbo)
    except Missing as error:
        raise InputError(f"{error}; or use estimator 'score' in place of 'graph'") from error

    def loss(pair: Pair, args: Batch) -> Tensor:
        value, surrogate = both(pair.model, pair.guide, args, {})
        return -torch.as_tensor(value).detach() + (surrogate - surrogate.detach())

    return loss


PYROS: dict[type[ELBO], tuple[Traits, Callable[[Any], Loss]]] = {
    TraceMeanField_ELBO: (Traits(kl="analytic", through_draws=True, trusts_order=True), _own_loss),
    TraceGraph_ELBO: (Traits(), _graph_loss),
    TraceEnum_ELBO: (Traits(sums_marked=True), _own_loss),
    TraceTMC_ELBO: (Traits(target="tmc", sums_marked=True, scale_inside=True), _own_loss),
}


@dataclass(frozen=True)
class Adapted:
    """An estimator that does not provide the contract itself."""

    elbo: ELBO
    traits: Traits
    loss: Loss

    def loss_of_pair(self, pair: Pair, args: Batch) -> Tensor:
        """See `pyro_vi.estimators.contract.Estimator`."""
        elbo = self.elbo
        if (self.traits.sums_marked or elbo.vectorize_particles) and math.isinf(elbo.max_plate_nesting):
            # Pyro would guess the same, and write so to stderr.
            nesting = max(layout.max_plate_nesting for layout in pair.layouts(args))
            elbo.max_plate_nesting = nesting + int(elbo.vectorize_particles and elbo.num_particles > 1)
        return self.loss(pair, fresh(args))

    def sources_of_pair(self, pair: Pair, args: Batch) -> dict[str, KLSource]:
        """See `pyro_vi.estimators.contract.Estimator`."""
        sources = terms_of_pair(pair, args, kl=self.traits.kl, seed=0).sources
        if self.traits.sums_marked:
            sites = [site for layout in pair.layouts(args) for site in layout.latents.values()]
            sources |= {site.name: KLSource("enumerated") for site in sites if site.enumerated}
        return sources


def estimator_of(elbo: ELBO) -> Estimator:
    """An estimator under the contract of the engine.

    Raises:
        InputError: it has no ``differentiable_loss``, which `pyro.infer.ELBO` itself does not promise; or this Pyro lacks the
            private part that replaces it.

    Example:
        >>> from pyro.infer import TraceMeanField_ELBO
        >>> estimator_of(TraceMeanField_ELBO()).traits.kl
        'analytic'
    """
    if isinstance(elbo, Estimator):
        return elbo
    traits, loss_of = _known(elbo)
    return Adapted(elbo, traits, loss_of(elbo))


def traits_of(elbo: ELBO) -> Traits:
    """Traits of an estimator, also of one that has no ``differentiable_loss``."""
    return elbo.traits if isinstance(elbo, Estimator) else _known(elbo)[0]


def differentiable_loss(elbo: ELBO, pair: Pair, args: Batch) -> Tensor:
    """−bound of one evaluation, with a gradient that is the estimator's: see `Estimator.loss_of_pair`."""
    return estimator_of(elbo).loss_of_pair(pair, args)


def _known(elbo: ELBO) -> tuple[Traits, Callable[[Any], Loss]]:
    return next((PYROS[cls] for cls in type(elbo).__mro__ if cls in PYROS), (Traits(), _own_loss))
