"""Variational bounds and their gradients, from three small vocabularies that compose.

* `BOUNDS`: the bound, made of K log-weights log p(x, z_k) − log q(z_k) of each datum: ``elbo``, ``iwae``, ``renyi``.
* `GRADIENTS` (in `pyro_vi.estimators.gradients`): the way to estimate its gradient: ``total``, ``path``, ``doubly``, ``score``,
  ``mixed``, ``vimco``, ``relaxed``.
* `KLS`: how the KL of a site enters an ELBO: ``sampled``, ``analytic`` where it can be, ``strict``: analytic or an error.

`Bound` is the one class in which they meet, a `pyro.infer.ELBO`; the files beside this one name the combinations that have a
name. What cannot compose raises, with what to use instead. The scale N / B of a minibatch always stands outside the logarithm
of a many-sample bound, so that it is a bound, and unbiased for the bound of all data, under a subsampled plate too.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.data import Batch
from pyro_vi.elbo import KLSource, Terms
from pyro_vi.errors import UsageError
from pyro_vi.estimators.contract import Traits
from pyro_vi.estimators.gradients import GRADIENTS, refuse_unserved
from pyro_vi.estimators.sample import Plans, Sample, draw_sample, weights
from pyro_vi.programs import Pair, Program, isolated, kept_buffers
from pyro_vi.support import real, unknown, whole

BOUNDS = ("elbo", "iwae", "renyi")
KLS = ("sampled", "analytic", "strict")

REMEDIES: dict[tuple[str, str], str] = {
    ("iwae", "path"): "dropping the score from log q is biased for the guide under weights; use 'dreg'",
    ("renyi", "path"): "dropping the score from log q is biased for the guide under weights; use gradient='total'",
    ("iwae", "score"): "a score-function gradient of a many-sample bound needs a baseline for each draw; use 'vimco'",
    ("renyi", "score"): "a score-function gradient of a many-sample bound needs a baseline for each draw; use 'vimco'",
    ("iwae", "relaxed"): "the bias of a relaxed gradient under weights is not known; use 'vimco'",
    ("renyi", "relaxed"): "the bias of a relaxed gradient under weights is not known; use 'vimco', of the bound 'iwae'",
    ("elbo", "doubly"): "with one weight a draw the doubly reparameterised gradient is the path derivative; use 'stl'",
    ("elbo", "vimco"): "the leave-one-out baseline of the ELBO is that of gradient='score'; use 'score'",
}
LEGAL = {
    "elbo": ("total", "path", "score", "mixed", "relaxed"),
    "iwae": ("total", "doubly", "vimco"),
    "renyi": ("total",),
}


def _many_sample(log_weight: Tensor, alpha: float = 0.0) -> Tensor:
    """(1 − α)⁻¹ log (1/K) Σ_k w_k^(1 − α) of log-weights of shape ``(K, R)``: shape ``(R,)``."""
    if alpha:
        return _many_sample((1 - alpha) * log_weight) / (1 - alpha)
    return log_weight.logsumexp(0) - math.log(len(log_weight))


class Bound(ELBO):
    """An estimator of a variational bound: which bound, which gradient, which KL.

    Args:
        bound: ``"elbo"``: E_q[log w]; ``"iwae"``: E log (1/K) Σ w_k (Burda et al. 2016, arXiv:1509.00519); ``"renyi"``:
            (1 − α)⁻¹ E log (1/K) Σ w_k^(1 − α) (Li and Turner 2016, arXiv:1602.02311).
        gradient: see `pyro_vi.estimators.gradients`.
        kl: ``"sampled"``; ``"analytic"``: in closed form at each site where there is one, where the dependence of model and
            guide allows it and where both scale the site alike; ``"strict"``: an error where that fails.
        alpha: order of the Rényi bound: not 1; 0 is ``"iwae"``.
        temperature: of the relaxed gradient.
        num_particles: K draws.
        vectorize_particles: make the draws in one run; by default where the programs allow it.

    Raises:
        UsageError: an unknown word, a number out of range, or a combination that is no estimator of its bound.

    Example:
        >>> Bound(bound="iwae", gradient="path", num_particles=8)
        Traceback (most recent call last):
            ...
        pyro_vi.errors.UsageError: bound 'iwae' and gradient 'path' do not compose: dropping the score from log q is biased ...
    """

    def __init__(
        self,
        *,
        bound: str = "elbo",
        gradient: str = "total",
        kl: str = "sampled",
        alpha: float | int = 0.0,
        temperature: float | int = 0.5,
        num_particles: int = 1,
        vectorize_particles: bool | None = None,
    ) -> None:
        num_particles = whole("num_particles", num_particles, 1)
        super().__init__(num_particles=num_particles)
        for what, word, words in (("bound", bound, BOUNDS), ("gradient", gradient, GRADIENTS), ("kl", kl, KLS)):
            if word not in words:
                raise unknown(what, word, words)
        if gradient not in LEGAL[bound]:
            remedy = REMEDIES.get((bound, gradient), f"use gradient={' or '.join(map(repr, LEGAL[bound]))}")
            raise UsageError(f"bound '{bound}' and gradient '{gradient}' do not compose: {remedy}")
        if kl != "sampled" and (bound != "elbo" or gradient == "path"):
            what = f"gradient '{gradient}'" if bound == "elbo" else f"bound '{bound}'"
            raise UsageError(f"kl '{kl}' and {what} do not compose: it is made of the draws' log q; use kl='sampled'")
        alpha, temperature = real("alpha", alpha), real("temperature", temperature, above=0)
        if bound == "renyi" and alpha == 1:
            raise UsageError("the Rényi bound of order 1 is the ELBO; use 'trace'")
        if gradient in ("score", "mixed", "vimco") and num_particles < 2:
            raise UsageError(
                f"gradient '{gradient}' takes its baseline from the other draws; set num_particles to 2 or more"
            )
        self.bound, self.gradient, self.kl, self.alpha = bound, gradient, kl, alpha
        self.temperature, self.vectorize = temperature, vectorize_particles
        self._plans: Plans = {}

    @property
    def traits(self) -> Traits:
        """See `pyro_vi.estimators.contract.Estimator`. One draw makes every bound the ELBO."""
        target = "elbo"
        if self.bound != "elbo" and self.num_particles > 1:
            order = f", alpha={self.alpha}" if self.bound == "renyi" else ""
            target = f"{self.bound}({self.num_particles}{order})"
        return Traits(
            target=target,
            kl="sampled" if self.kl == "sampled" else "analytic",
            through_draws=self.gradient in ("total", "path", "doubly"),
            biased=self.gradient == "relaxed",
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes plans for its own pairs.
        return {**vars(self), "_plans": {}}

    def _sample(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sample:
        relaxed = self.temperature if self.gradient == "relaxed" else None
        particles, vectorize = self.num_particles, self.vectorize
        sample = draw_sample(self._plans, model, guide, args, kwargs, particles, vectorize, self.kl, relaxed)
        if self.bound != "elbo":
            sample.need_scale_outside()
        return sample

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        # Pyro's base class asks for it: the traces (model, guide) of the first draw.
        run = self._sample(model, guide, args, kwargs).runs[0]
        return run.model_trace, run.guide_trace

    def sources(self, model: Program, guide: Program, args: tuple[Any, ...]) -> dict[str, KLSource]:
        """The source of each latent site's KL, on one draw.

        Raises:
            InputError: this estimator cannot serve the pair.
        """
        with isolated(seed=0), torch.no_grad(), kept_buffers(model), kept_buffers(guide):
            sample = self._sample(model, guide, args, {})
            refuse_unserved(self.gradient, sample)
            if self.bound != "elbo":
                weights(sample.live)
            return sample.live.sources

    def loss_of_pair(self, pair: Pair, args: Batch) -> Tensor:
        """See `pyro_vi.estimators.contract.Estimator`."""
        return self.differentiable_loss(pair.model, pair.guide, *args)

    def sources_of_pair(self, pair: Pair, args: Batch) -> dict[str, KLSource]:
        """See `pyro_vi.estimators.contract.Estimator`."""
        return self.sources(pair.model, pair.guide, args)

    def value(self, terms: Terms) -> Tensor:
        """−bound of all data from terms of K draws, each of shape ``(K, B)``: a scalar."""
        if self.bound == "elbo":
            return terms.loss.mean(0)
        log_weight, factor = weights(terms)
        alpha = self.alpha if self.bound == "renyi" else 0.0
        return -factor * _many_sample(log_weight, alpha).sum()

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """−bound, with a gradient that is this estimator's. Shape ``()``, in nats, of all data."""
        sample = self._sample(model, guide, args, kwargs)
        value = self.value(sample.live).detach()
        surrogate = GRADIENTS[self.gradient](self.value, sample)
        return value + (surrogate - surrogate.detach())

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """−bound of all data, as a number."""
        with torch.no_grad():
            return float(self.value(self._sample(model, guide, args, kwargs).live))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """−bound of all data, as a number; adds this estimator's gradients to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())
