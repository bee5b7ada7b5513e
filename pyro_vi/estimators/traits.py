"""Any `pyro.infer.ELBO` under the contract of the engine.

* `estimator_of` gives an estimator as a `pyro_vi.estimators.contract.Estimator`: a `Bound` as it is, another one `Adapted`.
* `PYROS` states the traits of Pyro's own classes, and how to get a loss where that is not ``differentiable_loss``. A class that
  is not in it is taken as the nearest class that it inherits from.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro.infer import ELBO, RenyiELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from torch import Tensor

from pyro_vi.data import Batch, fresh
from pyro_vi.elbo import (
    KLSource,
    Run,
    Terms,
    dependence_of,
    draw_traces,
    from_run,
    has_closed_form,
    length_of,
    refuse_unguided,
    refused,
    subsampled,
    vectorizes,
)
from pyro_vi.errors import InputError
from pyro_vi.estimators.contract import Estimator, Traits
from pyro_vi.estimators.renyi import Renyi
from pyro_vi.estimators.sample import NOT_VECTORIZED
from pyro_vi.estimators.table import TABLE
from pyro_vi.programs import Pair, describe, isolated, kept_buffers
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
        run, terms = self._served(pair, args)
        sources = terms.sources
        if self.traits.trusts_order:
            # Pyro takes every closed form that there is, also where it is not the KL of the ELBO.
            for name, reason in refused(run, dependence_of(pair, args, run)).items():
                if has_closed_form(run, name):
                    sources[name] = KLSource("analytic", f"not right here: {reason}")
        if self.traits.sums_marked:
            sites = [site for layout in pair.layouts(args) for site in layout.latents.values()]
            sources |= {site.name: KLSource("enumerated") for site in sites if site.enumerated}
        return sources

    def _served(self, pair: Pair, args: Batch) -> tuple[Run, Terms]:
        """A run of the pair and its terms; InputError if this estimator cannot serve it."""
        traits, elbo = self.traits, self.elbo
        with isolated(seed=0), kept_buffers(pair), torch.no_grad():
            run = draw_traces(pair.model, pair.guide, args)
            dependence = dependence_of(pair, args, run) if traits.kl == "analytic" else {}
            terms = from_run(run, length_of(args), kl=traits.kl, dependence=dependence)
        if not traits.sums_marked:
            refuse_unguided(run)
        for name, site in terms.sites.items():
            if traits.through_draws and site.drawn and not run.guide_trace.nodes[name]["fn"].has_rsample:
                node = run.guide_trace.nodes[name]
                raise InputError(
                    f"the guide's {describe(node['fn'])} at '{name}' cannot be reparameterised, so its gradient is lost; "
                    f"{instead_of_paths(node)}"
                )
        part = subsampled(run.model_trace, run.guide_trace)
        if traits.scale_inside and part is not None:
            raise InputError(
                f"{type(elbo).__name__} puts the scale of plate '{part}' ({terms.rows} of {terms.num_data} data) inside a "
                "logarithm, so the bound is biased; use full batches, or 'enum' or 'score'"
            )
        if elbo.vectorize_particles and elbo.num_particles > 1:
            latent, guided = (set(layout.latents) for layout in pair.layouts(args))
            if latent <= guided and not vectorizes(pair, args):
                raise InputError(NOT_VECTORIZED)
        return run, terms


def instead_of_paths(node: Mapping[str, Any]) -> str:
    """Return what to do about a site of a guide whose draws have no pathwise gradient."""
    distribution, infer = node["fn"], node.get("infer") or {}
    discrete = getattr(distribution.support, "is_discrete", True)
    if discrete and infer.get("enumerate"):
        return "use the estimator 'enum', which sums over its states, or 'score' or 'mixed'"
    other = "a continuous guide" if discrete else "guide 'diag_normal'"
    return f"use the estimator 'score' or 'mixed', or {other}"


_RENYI: WeakKeyDictionary[RenyiELBO, Renyi] = WeakKeyDictionary()


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
    if isinstance(elbo, RenyiELBO):
        # Pyro's has no differentiable loss, and puts the scale of a minibatch inside the logarithm. The draws are the same.
        if elbo not in _RENYI:
            vectorize = bool(elbo.vectorize_particles)
            _RENYI[elbo] = Renyi(alpha=elbo.alpha, num_particles=elbo.num_particles, vectorize_particles=vectorize)
        return _RENYI[elbo]
    if isinstance(elbo, Estimator):
        return elbo
    traits, loss_of = _known(elbo)
    return Adapted(elbo, traits, loss_of(elbo))


def traits_of(elbo: ELBO) -> Traits:
    """Traits of an estimator, also of one that has no ``differentiable_loss``."""
    if isinstance(elbo, RenyiELBO):
        return estimator_of(elbo).traits
    return elbo.traits if isinstance(elbo, Estimator) else _known(elbo)[0]


def differentiable_loss(elbo: ELBO, pair: Pair, args: Batch) -> Tensor:
    """−bound of one evaluation, with a gradient that is the estimator's: see `Estimator.loss_of_pair`."""
    return estimator_of(elbo).loss_of_pair(pair, args)


def _known(elbo: ELBO) -> tuple[Traits, Callable[[Any], Loss]]:
    return next((PYROS[cls] for cls in type(elbo).__mro__ if cls in PYROS), (Traits(), _own_loss))
