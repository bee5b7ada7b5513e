"""Variational bounds and their gradients, from three small vocabularies that compose.

* `BOUNDS`: what is estimated, from K log-weights log p(x, z_k) − log q(z_k) of each datum: ``elbo``, ``iwae``, ``renyi``.
* `GRADIENTS` (in `pyro_vi.estimators.gradients`): how its gradient is: ``total``, ``path``, ``doubly``, ``score``,
  ``mixed``, ``vimco``, ``relaxed``.
* `KLS`: how the KL of a site enters an ELBO: ``sampled``, ``analytic`` where it can be, ``strict``: analytic or an error.

`Bound` is the one class in which they meet, a `pyro.infer.ELBO`; the files beside this one name the combinations that have a
name. What cannot compose raises, with what to use instead. The scale N / B of a minibatch always stands outside the logarithm
of a many-sample bound, so that it is a bound, and unbiased for the bound of all data, under a subsampled plate too.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.elbo import KLSource, Terms
from pyro_vi.errors import UsageError
from pyro_vi.estimators.gradients import GRADIENTS
from pyro_vi.estimators.sample import Sample, draw_sample, weights
from pyro_vi.programs import isolated
from pyro_vi.support import unknown

KLS = ("sampled", "analytic", "strict")

REMEDIES: dict[tuple[str, str], str] = {
    ("iwae", "path"): "dropping the score from log q is biased for the guide under weights; use 'dreg'",
    ("renyi", "path"): "dropping the score from log q is biased for the guide under weights; use gradient='total'",
    ("iwae", "score"): "a score-function gradient of a many-sample bound needs a baseline for each draw; use 'vimco'",
    ("renyi", "score"): "a score-function gradient of a many-sample bound needs a baseline for each draw; use 'vimco'",
    ("elbo", "doubly"): "with one weight a draw the doubly reparameterised gradient is the path derivative; use 'stl'",
    ("elbo", "vimco"): "the leave-one-out baseline of the ELBO is that of gradient='score'; use 'score'",
}
LEGAL = {
    "elbo": ("total", "path", "score", "mixed", "relaxed"),
    "iwae": ("total", "doubly", "vimco", "relaxed"),
    "renyi": ("total", "relaxed"),
}


def _elbo(log_weight: Tensor, alpha: float) -> Tensor:
    return log_weight.mean(0)


def _iwae(log_weight: Tensor, alpha: float) -> Tensor:
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def _renyi(log_weight: Tensor, alpha: float) -> Tensor:
    return _iwae((1 - alpha) * log_weight, alpha) / (1 - alpha)


BOUNDS: dict[str, Callable[[Tensor, float], Tensor]] = {"elbo": _elbo, "iwae": _iwae, "renyi": _renyi}


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
        vectorize_particles: make the draws in one run; by default where the programs are seen to allow it.

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
        if num_particles < 1:
            raise UsageError(f"num_particles must be at least 1, not {num_particles}")
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
        if not math.isfinite(alpha):
            raise UsageError(f"alpha must be a finite number, not {alpha}; say, 0.5")
        if bound == "renyi" and alpha == 1:
            raise UsageError("the Rényi bound of order 1 is the ELBO; use 'trace'")
        if gradient in ("score", "mixed", "vimco") and num_particles < 2:
            raise UsageError(
                f"gradient '{gradient}' takes its baseline from the other draws; set num_particles to 2 or more"
            )
        if not 0 < temperature < math.inf:
            raise UsageError(f"temperature must be positive and finite, not {temperature}; say, 0.5")
        self.bound, self.gradient, self.kl, self.alpha = bound, gradient, kl, float(alpha)
        self.temperature, self.vectorize = float(temperature), vectorize_particles

    def __getstate__(self) -> dict[str, Any]:
        # Plans belong to the pairs that were met: a copy meets its own.
        return {key: value for key, value in vars(self).items() if key != "_plans"}

    def _sample(self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sample:
        relaxed = self.temperature if self.gradient == "relaxed" else None
        count, vectorize = self.num_particles, self.vectorize
        sample = draw_sample(self, model, guide, args, kwargs, count, vectorize, self.kl, relaxed)
        if self.bound != "elbo":
            sample.need_scale_outside()
        return sample

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        # Pyro's base class asks for it: the traces (model, guide) of the first draw.
        run = self._sample(model, guide, args, kwargs).runs[0]
        return run.model_trace, run.guide_trace

    def sources(self, model: Any, guide: Any, args: tuple[Any, ...]) -> dict[str, KLSource]:
        """Where each latent site's KL comes from, on one draw."""
        with isolated(seed=0), torch.no_grad():
            return self._sample(model, guide, args, {}).live.sources

    def value(self, terms: Terms) -> Tensor:
        """−bound of all data from terms of K draws, each of shape ``(K, B)``: a scalar."""
        if self.bound == "elbo":
            return terms.loss.mean(0)
        log_weight, factor = weights(terms)
        return -factor * BOUNDS[self.bound](log_weight, self.alpha).sum()

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """−bound, with a gradient that is this estimator's. Shape ``()``, in nats, of all data."""
        sample = self._sample(model, guide, args, kwargs)
        value = self.value(sample.live).detach()
        surrogate = GRADIENTS[self.gradient](self, sample)
        return value + (surrogate - surrogate.detach())

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """−bound of all data, as a number."""
        with torch.no_grad():
            return float(self.value(self._sample(model, guide, args, kwargs).live))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """−bound of all data, as a number; adds this estimator's gradients to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())
