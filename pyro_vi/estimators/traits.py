"""Traits of an estimator that the engine asks for: its loss, its treatment of the KL, the bound that it estimates."""

import math
from typing import Any

import torch
from pyro.infer import ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from torch import Tensor

from pyro_vi.data import Batch
from pyro_vi.elbo import KL, KLSource, terms_of_pair
from pyro_vi.errors import InputError
from pyro_vi.estimators.bound import Bound
from pyro_vi.estimators.table import TABLE
from pyro_vi.programs import Pair
from pyro_vi.support.private import Missing
from pyro_vi.support.pyro_internals import loss_and_surrogate


def differentiable_loss(elbo: Any, pair: Pair, args: Batch) -> Tensor:
    """−bound of one evaluation, whose gradient is the estimator's; `pyro.infer.ELBO` itself does not promise the method.

    Raises:
        InputError: the estimator has none.
    """
    refuse_without_loss(elbo)
    summing = isinstance(elbo, (TraceEnum_ELBO, TraceTMC_ELBO)) or getattr(elbo, "vectorize_particles", False)
    if summing and not isinstance(elbo, Bound) and math.isinf(elbo.max_plate_nesting):
        # Pyro would guess the same, and write so to stderr.
        nesting = max(layout.max_plate_nesting for layout in pair.layouts(args))
        elbo.max_plate_nesting = nesting + int(elbo.vectorize_particles and elbo.num_particles > 1)
    if isinstance(elbo, TraceGraph_ELBO):
        value, surrogate = loss_and_surrogate(elbo)(pair.model, pair.guide, args, {})
        return -torch.as_tensor(value).detach() + (surrogate - surrogate.detach())
    loss: Tensor = elbo.differentiable_loss(pair.model, pair.guide, *args)
    return loss


def refuse_without_loss(elbo: ELBO) -> None:
    """Raise InputError for an estimator without `differentiable_loss`."""
    if not hasattr(elbo, "differentiable_loss") and not isinstance(elbo, TraceGraph_ELBO):
        raise InputError(f"{type(elbo).__name__} has no differentiable_loss; use one of: {', '.join(TABLE)}")
    if isinstance(elbo, TraceGraph_ELBO):
        try:
            loss_and_surrogate(elbo)
        except Missing as error:
            raise InputError(f"{error}; or use estimator 'score' in place of 'graph'") from error


def kl_treatment(elbo: ELBO) -> KL:
    """Whether an estimator uses closed forms of the KL where they exist."""
    if isinstance(elbo, Bound):
        return "sampled" if elbo.kl == "sampled" else "analytic"
    return "analytic" if isinstance(elbo, TraceMeanField_ELBO) else "sampled"


def needs_reparametrized(elbo: ELBO) -> bool:
    """Whether an estimator's gradient goes through every draw, and would be lost where a site cannot be reparameterised."""
    return elbo.gradient in ("total", "path", "doubly") if isinstance(elbo, Bound) else kl_treatment(elbo) == "analytic"


def kl_sources(elbo: ELBO, pair: Pair, args: Batch) -> dict[str, KLSource]:
    """Where each latent site's KL comes from under an estimator, looked up on one draw of the batch."""
    if isinstance(elbo, Bound):
        return elbo.sources(pair.model, pair.guide, args)
    summed = _marked(pair, args) if isinstance(elbo, (TraceEnum_ELBO, TraceTMC_ELBO)) else set()
    found = terms_of_pair(pair, args, kl=kl_treatment(elbo), seed=0).sources
    return {**found, **{name: KLSource("enumerated") for name in summed}}


def _marked(pair: Pair, args: Batch) -> set[str]:
    sites = [site for layout in pair.layouts(args) for site in layout.latents.values()]
    return {site.name for site in sites if site.enumerated}


def known_biased(elbo: ELBO) -> bool:
    """Whether an estimator's gradient is biased by its making, as a relaxation's is."""
    return isinstance(elbo, Bound) and elbo.gradient == "relaxed"


def target(elbo: ELBO) -> str:
    """What an estimator estimates: ``"elbo"``, ``"iwae(5)"``: only gradients of the same bound can agree."""
    if isinstance(elbo, Bound) and elbo.bound != "elbo" and elbo.num_particles > 1:
        order = f", alpha={elbo.alpha}" if elbo.bound == "renyi" else ""
        return f"{elbo.bound}({elbo.num_particles}{order})"
    return "tmc" if isinstance(elbo, TraceTMC_ELBO) else "elbo"
