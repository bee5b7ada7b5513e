"""Closed forms of KL(q ‖ p) that torch and Pyro lack, registered with `torch.distributions` when this module is imported.

* Normal: MultivariateNormal and LowRankMultivariateNormal against Independent(Normal), Independent(Normal) against
  LowRankMultivariateNormal, StudentT against Normal.
* On the positive line: LogNormal and the powers of a gamma variable (Gamma, Chi2, Exponential, Weibull, InverseGamma,
  HalfNormal), each against each. Those that torch has are not registered again.
* On the circle: VonMises against VonMises.
* One side masked by ``dist.mask``: not a KL, but the term of the ELBO that replaces it; see `_masked_prior` and
  `_masked_guide`. A mask by `pyro.poutine.mask` belongs to the site, and is not seen here.
* Delta replaces Pyro's own, which leaves out the Delta's ``log_density`` (pyro-ppl 1.9.2), and with it the Jacobian of every
  constrained site of an AutoNormal guide: `TraceMeanField_ELBO` is then off by the mean of that Jacobian.

Under `Independent` on both sides each form is reached through Pyro's, which sums it. Left out, as E_q[log p] or the entropy
of q is no finite expression in elementary functions and `torch.special`:

* Normal ‖ StudentT or Cauchy, LogNormal or HalfNormal ‖ HalfCauchy: E log(1 + (x/s)²).
* Normal ‖ Logistic, and a logistic or stick-breaking normal ‖ Beta or Dirichlet: E log(1 + eˣ).
* Anything ‖ a mixture, or a mixture ‖ anything: the logarithm of a sum.
* Kumaraswamy ‖ Beta: E log(1 − x) is an infinite series (Nalisnick and Smyth 2017, arXiv:1605.06197).
* Beta ‖ Kumaraswamy: E log(1 − xᵃ) likewise.
* A flow, or a normal under another bijection than exp ‖ anything on the constrained space: E log |Jacobian|.
* LKJ: the guides on correlation matrices are bijections of a normal, as above.
"""

import math
from itertools import product
from typing import Any

import torch
from pyro.distributions import Delta, Distribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import (
    Exponential,
    Gamma,
    HalfNormal,
    Independent,
    InverseGamma,
    LogNormal,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    StudentT,
    VonMises,
    Weibull,
    kl_divergence,
    register_kl,
)

from pyro_vi.support.pyro_internals import mask_of

_POWERS_OF_GAMMA = (Gamma, Exponential, Weibull, InverseGamma, HalfNormal)
_IN_TORCH = {
    (Gamma, Gamma),
    (Gamma, Exponential),
    (Exponential, Gamma),
    (Exponential, Exponential),
    (HalfNormal, HalfNormal),
    (InverseGamma, InverseGamma),  # and LogNormal ‖ LogNormal: both sides are the same bijection
}


@register_kl(MultivariateNormal, Independent)
def _multivariate_normal_independent(q: MultivariateNormal, p: Independent) -> Tensor:
    """KL(N(m, S) ‖ N(μ, diag σ²)) = ½ [tr(S/σ²) + |(m − μ)/σ|² − D + 2 Σ log σ_d − log det S]; shape: the batch's."""
    loc, scale = _diagonal_normal(p)
    # |L / σ|² sums to the trace; the log-determinant is twice that of the Cholesky factor L.
    trace = (q.scale_tril / scale.unsqueeze(-1)).square().sum((-2, -1))
    distance = ((q.loc - loc) / scale).square().sum(-1)
    log_det = q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (trace + distance - q.event_shape[0]) + scale.log().sum(-1) - log_det


@register_kl(LowRankMultivariateNormal, Independent)
def _low_rank_independent(q: LowRankMultivariateNormal, p: Independent) -> Tensor:
    """KL(N(m, WWᵀ + diag d) ‖ N(μ, diag σ²)): as for a full S = WWᵀ + diag d, in O(D R²).

    tr(S/σ²) = Σ (d + |W_d|²)/σ_d²; log det S = log det C + Σ log d with the capacitance matrix C = I + Wᵀ W/d.
    """
    loc, scale = _diagonal_normal(p)
    variance = q.cov_diag + q.cov_factor.square().sum(-1)
    terms = (variance + (q.loc - loc).square()) / scale.square() - q.cov_diag.log() - 1
    return 0.5 * terms.sum(-1) + scale.log().sum(-1) - _half_log_det(_capacitance(q))


@register_kl(Independent, LowRankMultivariateNormal)
def _independent_low_rank(q: Independent, p: LowRankMultivariateNormal) -> Tensor:
    """KL(N(m, diag s²) ‖ N(μ, S)) = ½ [tr(S⁻¹ s²) + (m − μ)ᵀ S⁻¹ (m − μ) − D + log det S] − Σ log s_d, in O(D R²).

    S = WWᵀ + diag d, so that S⁻¹ = d⁻¹ − d⁻¹ W C⁻¹ Wᵀ d⁻¹ with the capacitance matrix C = I + Wᵀ W/d.
    """
    loc, scale = _diagonal_normal(q)
    half = _capacitance(p)
    root = torch.linalg.solve_triangular(half, p.cov_factor.mT / p.cov_diag.unsqueeze(-2), upper=False)
    offset = loc - p.loc
    terms = (scale.square() + offset.square()) / p.cov_diag + p.cov_diag.log() - 1
    trace = (root * scale.unsqueeze(-2)).square().sum((-2, -1))
    distance = (root @ offset.unsqueeze(-1)).square().sum((-2, -1))
    return 0.5 * (terms.sum(-1) - trace - distance) + _half_log_det(half) - scale.log().sum(-1)


@register_kl(StudentT, Normal)
def _student_t_normal(q: StudentT, p: Normal) -> Tensor:
    """KL(t_ν(m, s) ‖ N(μ, σ²)) = −H(q) + ½ log 2πσ² + [s² ν/(ν − 2) + (m − μ)²]/2σ², infinite for ν ≤ 2."""
    heavy = q.df <= 2
    variance = q.scale.square() * q.df / (q.df - 2).masked_fill(heavy, 1)
    square = variance.masked_fill(heavy, math.inf) + (q.loc - p.loc).square()
    return 0.5 * (2 * math.pi * p.scale.square()).log() + square / (2 * p.scale.square()) - q.entropy()


@register_kl(VonMises, VonMises)
def _von_mises_von_mises(q: VonMises, p: VonMises) -> Tensor:
    """KL(q ‖ p) = log I₀(κ_p)/I₀(κ_q) + A [κ_q − κ_p cos(μ_q − μ_p)] of two von Mises, with A = I₁(κ_q)/I₀(κ_q).

    Written with the Bessel functions scaled by e^−κ and 1 − cos δ = 2 sin² δ/2, so that nothing overflows or cancels.
    """
    scaled_q, scaled_p = torch.special.i0e(q.concentration), torch.special.i0e(p.concentration)
    mean = torch.special.i1e(q.concentration) / scaled_q
    turn = 2 * (0.5 * (q.loc - p.loc)).sin().square()
    excess = p.concentration - q.concentration
    return (scaled_p / scaled_q).log() + excess * (1 - mean) + p.concentration * mean * turn


def _positive_power_of_gamma(q: Any, p: Any) -> Tensor:
    """KL(q ‖ p) for p the law of a G^(1/r), G ~ Gamma(c, 1), and q LogNormal or such a law too:

    −H(q) + log Γ(c) − log |r| + E log x − c r (E log x − log a) + E (x/a)^r, the moments under q.

    The last one is infinite where q has too much mass near 0 or in the tail; then so is the KL.
    """
    log_a, c, r = _power_of_gamma(p)
    mean, _ = _log_moments(q)
    log_r = r.abs().log() if isinstance(r, Tensor) else math.log(abs(r))
    return c.lgamma() - log_r + mean - c * r * (mean - log_a) + _mean_power(q, log_a, r) - q.entropy()


def _positive_log_normal(q: Any, p: LogNormal) -> Tensor:
    """KL(q ‖ LogNormal(μ, σ)) = −H(q) + E log x + ½ log 2πσ² + [Var log x + (E log x − μ)²]/2σ², the moments under q."""
    mean, variance = _log_moments(q)
    square = variance + (mean - p.loc).square()
    return mean + 0.5 * (2 * math.pi * p.scale.square()).log() + square / (2 * p.scale.square()) - q.entropy()


for _q, _p in product((LogNormal, *_POWERS_OF_GAMMA), _POWERS_OF_GAMMA):
    if (_q, _p) not in _IN_TORCH:
        register_kl(_q, _p)(_positive_power_of_gamma)
for _q in _POWERS_OF_GAMMA:
    register_kl(_q, LogNormal)(_positive_log_normal)


@register_kl(TorchDistribution, MaskedDistribution)
def _masked_prior(q: TorchDistribution, p: Any) -> Tensor:
    """E_q[log q − mask · log p]: KL(q ‖ p) where the mask of p is true, −H(q) where it is false; shape: the batch's."""
    mask = mask_of(p)
    if mask is True:
        return kl_divergence(q, p.base_dist)
    entropy = q.entropy()
    if mask is False:
        return -entropy.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))
    return torch.where(mask, kl_divergence(q, p.base_dist), -entropy)


@register_kl(MaskedDistribution, TorchDistribution)
def _masked_guide(q: Any, p: TorchDistribution) -> Tensor:
    """E_q[mask · log q − log p]: KL(q ‖ p) where the mask of q is true; where it is false the cross-entropy KL(q ‖ p) + H(q).

    A mask does not change what is drawn, so that the prior's term stays. Shape: the batch's.
    """
    mask, divergence = mask_of(q), kl_divergence(q.base_dist, p)
    if mask is True:
        return divergence
    cross_entropy = divergence + q.base_dist.entropy()
    return cross_entropy if mask is False else torch.where(mask, divergence, cross_entropy)


# The second breaks the tie with a masked prior; the Delta's entropy is not needed, and p.log_prob is masked already.
@register_kl(Delta, Distribution)
@register_kl(Delta, MaskedDistribution)
def _delta(q: Any, p: Any) -> Tensor:
    """KL(Delta(v, c) ‖ p) = c − log p(v), with c the density that the Delta states; shape: the batch's."""
    value: Tensor = q.log_prob(q.v) - p.log_prob(q.v)
    return value


def _diagonal_normal(d: Independent) -> tuple[Tensor, Tensor]:
    """loc and scale of an Independent(Normal) over vectors."""
    if not isinstance(d.base_dist, Normal) or d.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    return d.base_dist.loc, d.base_dist.scale


def _capacitance(d: LowRankMultivariateNormal) -> Tensor:
    """The Cholesky factor of the capacitance matrix I + Wᵀ W/d."""
    matrix = (d.cov_factor.mT / d.cov_diag.unsqueeze(-2)) @ d.cov_factor
    return torch.linalg.cholesky(matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device))


def _half_log_det(cholesky: Tensor) -> Tensor:
    return cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _power_of_gamma(d: Any) -> tuple[Tensor, Tensor, Tensor | float]:
    """log a, c and r of the law of a G^(1/r), G ~ Gamma(c, 1); its log-density is

    log |r| − log Γ(c) − log x + c r (log x − log a) − (x/a)^r.
    """
    match d:
        case Gamma():
            return -d.rate.log(), d.concentration, 1.0
        case Exponential():
            return -d.rate.log(), torch.ones_like(d.rate), 1.0
        case Weibull():
            return d.scale.log(), torch.ones_like(d.scale), d.concentration
        case InverseGamma():
            return d.rate.log(), d.concentration, -1.0
        case HalfNormal():
            return d.scale.log() + 0.5 * math.log(2), torch.full_like(d.scale, 0.5), 2.0
    raise NotImplementedError


def _log_moments(q: Any) -> tuple[Tensor, Tensor]:
    """E log x and Var log x: m and s² of a LogNormal, log a + ψ(c)/r and ψ'(c)/r² of a power of gamma."""
    if isinstance(q, LogNormal):
        return q.loc, q.scale.square()
    log_a, c, r = _power_of_gamma(q)
    return log_a + c.digamma() / r, torch.polygamma(1, c) / r**2


def _mean_power(q: Any, log_b: Tensor, t: Tensor | float) -> Tensor:
    """E (x/b)^t: exp(t (m − log b) + t² s²/2) of a LogNormal, (a/b)^t Γ(c + t/r)/Γ(c) of a power of gamma."""
    if isinstance(q, LogNormal):
        return (t * (q.loc - log_b) + 0.5 * t**2 * q.scale.square()).exp()
    log_a, c, r = _power_of_gamma(q)
    return (t * (log_a - log_b) + _log_gamma_ratio(c, t / r)).exp()


def _log_gamma_ratio(c: Tensor, t: Tensor | float) -> Tensor:
    """log Γ(c + t)/Γ(c) = log E Gᵗ of G ~ Gamma(c, 1), infinite for c + t ≤ 0."""
    infinite = c + t <= 0
    c = torch.where(infinite, 2 - t, c)  # any finite value there, for gradients that are not NaN
    if isinstance(t, float) and t.is_integer():
        # A difference of two log Γ loses digits in float32 for large c.
        steps = range(int(t)) if t > 0 else range(int(t), 0)
        ratio = torch.stack([(c + i).log() for i in steps]).sum(0).mul(math.copysign(1, t))
    else:
        ratio = (c + t).lgamma() - c.lgamma()
    return ratio.masked_fill(infinite, math.inf)
