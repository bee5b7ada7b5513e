"""Free bits: an ELBO in which the KL of a latent dimension costs nothing more below a threshold.

* `FreeBits` is the loss −(1/N) Σ_n E_q log p(x_n | z_n) + β Σ_j max(λ, KL_j), with KL_j the KL of a unit j in nats per datum,
  averaged over the minibatch (Kingma et al. 2016, arXiv:1606.04934, appendix C.8). Units are those of `pyro_vi.elbo.units`.

A unit whose KL is below λ has no gradient from its KL: neither a pull to the prior, nor one away from it. The others have the
gradient of the estimator. The KL of latents that all data share is not clamped.

The closed form of KL_j decides whether a unit is below λ, also under an estimator that samples the KL, so that the noise of
the draw does not. Where there is no closed form, the mean of the draws' log q − log p decides.
"""

from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_vi.data import Batch
from pyro_vi.elbo import Reasons, Run, Terms, by_dependence, shared, units_of
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators.bound import Bound
from pyro_vi.estimators.gradients import refuse_unserved, through_draws, total, without_score
from pyro_vi.programs import Pair, isolated, kept_buffers


class FreeBits:
    """The loss of an estimator with free bits.

    Args:
        elbo: ``trace``, ``mean_field``, ``analytic`` or ``stl``, with one draw. ``mean_field`` takes closed forms of the KL
            only where they are right, as ``analytic`` does.
        nats: λ, in nats per datum, for each unit.

    Raises:
        UsageError: another estimator, or more than one draw.

    Example:
        >>> FreeBits(TraceMeanField_ELBO(), 0.1).bound.kl
        'analytic'
    """

    def __init__(self, elbo: ELBO, nats: float) -> None:
        self.bound, self.nats = _served(elbo), nats
        self._dependence: dict[tuple[Any, Any], Reasons] = {}

    def refuse(self, pair: Pair, args: Batch) -> None:
        """Raise InputError if free bits are not defined for a pair; the batch is for a run of it.

        Raises:
            InputError: no latent belongs to a datum, or one that does has no KL.
        """
        with isolated(seed=0), torch.no_grad(), kept_buffers(pair):
            sample: Any = self.bound._sample(pair.model, pair.guide, args, {})
            refuse_unserved(self.bound.gradient, sample)
        local = [site for site in sample.live.sites.values() if site.local and site.latent]
        if not local:
            raise InputError(
                "free_bits are nats of each datum's own latents, and the model has none in a plate of data; leave free_bits out"
            )
        for site in local:
            if not site.drawn or site.log_p is None:
                why = "is at a point in the guide" if site.log_p is not None else "is not in the model"
                raise InputError(
                    f"free_bits need a KL at each latent site, and '{site.name}' {why}; leave free_bits out"
                )

    def loss(self, pair: Pair, args: Batch, weight: float | Tensor) -> Tensor:
        """The loss of all data in nats, shape ``()``, with the KL weighted by β = ``weight``; differentiable."""
        sample: Any = self.bound._sample(pair.model, pair.guide, args, {})
        (run,) = sample.runs
        key = pair.model, pair.guide
        if key not in self._dependence:  # in the first step, which is eager
            several = len(shared(run)) > 1
            self._dependence[key] = by_dependence(*key, args) if several else {}
        opposed = self._dependence[key]
        value = self._value(run, sample.live, weight, opposed)
        if self.bound.gradient == "total":
            return total(lambda _: value, sample)
        (again,), constants = sample.again(leaves=True)
        terms = sample.terms_of((again,))
        # The value of the draw, with the gradient through the draw, and that of the model at fixed draws.
        surrogate = through_draws(self._value(again, terms, weight, opposed), constants, sample)
        surrogate = surrogate + self._value(again, terms, weight, opposed, score=False)
        return value.detach() + (surrogate - surrogate.detach())

    def _value(self, run: Run, terms: Terms, weight: float | Tensor, opposed: Reasons, score: bool = True) -> Tensor:
        kl: Any = 0.0
        for name, site in (terms if score else without_score(terms)).sites.items():
            if site.latent and site.local:
                units = units_of(run, terms, name, score=score, closed=name not in opposed)
                kl = kl + torch.where(units.size < self.nats, self.nats, units.kl).sum()  # a KL of NaN stays
            elif site.latent:
                kl = kl + site.divergence.mean() / terms.num_data
        return terms.num_data * (weight * kl - terms.reconstruction.mean())


def _served(elbo: ELBO) -> Bound:
    """The estimator as a `Bound` with one draw."""
    if elbo.num_particles == 1:
        if type(elbo) in (Trace_ELBO, TraceMeanField_ELBO):
            return Bound(kl="sampled" if type(elbo) is Trace_ELBO else "analytic")
        if isinstance(elbo, Bound) and elbo.bound == "elbo" and elbo.gradient in ("total", "path"):
            return elbo
    draws = f" with {elbo.num_particles} draws" if elbo.num_particles > 1 else ""
    raise UsageError(
        f"free_bits are defined for one draw of 'mean_field', 'analytic', 'trace' or 'stl', not for {type(elbo).__name__}"
        f"{draws}; use one of these, or leave free_bits out"
    )
