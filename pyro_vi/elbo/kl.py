"""Closed forms of KL(q ‖ p) that torch and Pyro lack, registered with `torch.distributions` when this module is imported.

* Normal: MultivariateNormal and LowRankMultivariateNormal against Independent(Normal), Independent(Normal) against
  LowRankMultivariateNormal, StudentT against Normal.
* On the positive line: LogNormal and the powers of a gamma variable (Gamma, Chi2, Exponential, Weibull, InverseGamma,
  HalfNormal), each against each. They are differences of large numbers, and are taken in double precision, whatever the
  parameters'. So they replace those that torch has (Gamma(10⁵, 1) ‖ Gamma(10⁵, 1.001): .0514 in single, right is .04997).
* Beta and Dirichlet, each against itself, replace torch's for the same reason.
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
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import (
    Beta,
    Dirichlet,
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
from torch.distributions import Distribution as TorchDistribution

from pyro_vi.support.pyro_internals import mask_of

_POWERS_OF_GAMMA = (Gamma, Exponential, Weibull, InverseGamma, HalfNormal)


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
    """KL(t_ν(m, s) ‖ N(μ, σ²)) = −H(q) + ½ log 2πσ² + [s² ν/(ν − 2) + (m − μ)²]/2σ², infinite for ν ≤ 2.

    −H(q) = log Γ((ν+1)/2)/(Γ(ν/2) √(πν) s) − (ν+1)/2 [ψ((ν+1)/2) − ψ(ν/2)].
    """
    df, loc, scale, mean, sd = _wide(q.df, q.loc, q.scale, p.loc, p.scale)
    heavy = df <= 2
    variance = scale.square() * df / (df - 2).masked_fill(heavy, 1)
    square = variance.masked_fill(heavy, math.inf) + (loc - mean).square()
    half = 0.5 * (df + 1)
    log_height = half.lgamma() - (0.5 * df).lgamma() - 0.5 * (math.pi * df).log() - scale.log()
    negative_entropy = log_height - half * (half.digamma() - (0.5 * df).digamma())
    value = negative_entropy + 0.5 * (2 * math.pi * sd.square()).log() + square / (2 * sd.square())
    return value.to(_dtype(q.df, q.loc, q.scale, p.loc, p.scale))


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
    value = _negative_entropy(q) + c.lgamma() - r.abs().log() + mean - c * r * (mean - log_a) + _mean_power(q, log_a, r)
    return value.to(_dtype(*_numbers(q), *_numbers(p)))


def _positive_log_normal(q: Any, p: LogNormal) -> Tensor:
    """KL(q ‖ LogNormal(μ, σ)) = −H(q) + E log x + ½ log 2πσ² + [Var log x + (E log x − μ)²]/2σ², the moments under q."""
    mean, variance = _log_moments(q)
    loc, scale = _wide(p.loc, p.scale)
    square = variance + (mean - loc).square()
    value = _negative_entropy(q) + mean + 0.5 * (2 * math.pi * scale.square()).log() + square / (2 * scale.square())
    return value.to(_dtype(*_numbers(q), *_numbers(p)))


for _q, _p in product((LogNormal, *_POWERS_OF_GAMMA), _POWERS_OF_GAMMA):
    register_kl(_q, _p)(_positive_power_of_gamma)
for (
    _q
) in _POWERS_OF_GAMMA:  # torch takes LogNormal ‖ LogNormal as that of the normals: both sides are the same bijection
    register_kl(_q, LogNormal)(_positive_log_normal)


@register_kl(Beta, Beta)
def _beta_beta(q: Beta, p: Beta) -> Tensor:
    """KL of two Betas: that of the Dirichlets of two components."""
    return _dirichlet(
        torch.stack((q.concentration1, q.concentration0), -1), torch.stack((p.concentration1, p.concentration0), -1)
    )


@register_kl(Dirichlet, Dirichlet)
def _dirichlet_dirichlet(q: Dirichlet, p: Dirichlet) -> Tensor:
    """KL(q ‖ p) of two Dirichlets."""
    return _dirichlet(q.concentration, p.concentration)


def _dirichlet(a: Tensor, b: Tensor) -> Tensor:
    """log Γ(Σa) − log Γ(Σb) − Σ [log Γ(a) − log Γ(b)] + Σ (a − b) (ψ(a) − ψ(Σa)), over the last dimension."""
    dtype = _dtype(a, b)
    a, b = _wide(a, b)
    whole = a.sum(-1)
    terms = b.lgamma() - a.lgamma() + (a - b) * (a.digamma() - whole.digamma().unsqueeze(-1))
    return (whole.lgamma() - b.sum(-1).lgamma() + terms.sum(-1)).to(dtype)


@register_kl(TorchDistribution, MaskedDistribution)
def _masked_prior(q: TorchDistribution, p: Any) -> Tensor:
    """E_q[log q − mask · log p]: KL(q ‖ p) where the mask of p is true, −H(q) where it is false; shape: the batch's."""
    mask = mask_of(p)
    if mask is True:
        return kl_divergence(q, p.base_dist)
    entropy = q.entropy()
    if mask is False:
        return -entropy.expand(broadcast_shape(q.batch_shape, p.batch_shape))
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


def _wide(*numbers: Tensor) -> tuple[Tensor, ...]:
    """Parameters in double precision: sums of large numbers cancel."""
    return tuple(number.double() for number in numbers)


def _dtype(*numbers: Tensor) -> torch.dtype:
    dtype = numbers[0].dtype
    for number in numbers[1:]:
        dtype = torch.promote_types(dtype, number.dtype)
    return dtype


def _numbers(d: Any) -> tuple[Tensor, ...]:
    """The parameters of a LogNormal or of a power of a gamma variable."""
    match d:
        case LogNormal():
            return d.loc, d.scale
        case Gamma() | InverseGamma():
            return d.concentration, d.rate
        case Exponential():
            return (d.rate,)
        case Weibull():
            return d.scale, d.concentration
        case HalfNormal():
            return (d.scale,)
    raise NotImplementedError


def _power_of_gamma(d: Any) -> tuple[Tensor, Tensor, Tensor]:
    """log a, c and r of the law of a G^(1/r), G ~ Gamma(c, 1), in double precision; its log-density is

    log |r| − log Γ(c) − log x + c r (log x − log a) − (x/a)^r.
    """
    first, *rest = _wide(*_numbers(d))
    one = torch.ones_like(first)
    match d:
        case Gamma():
            return -rest[0].log(), first, one
        case Exponential():
            return -first.log(), one, one
        case Weibull():
            return first.log(), one, rest[0]
        case InverseGamma():
            return rest[0].log(), first, -one
        case HalfNormal():
            return first.log() + 0.5 * math.log(2), 0.5 * one, 2 * one
    raise NotImplementedError


def _log_moments(q: Any) -> tuple[Tensor, Tensor]:
    """E log x and Var log x: m and s² of a LogNormal, log a + ψ(c)/r and ψ'(c)/r² of a power of gamma."""
    if isinstance(q, LogNormal):
        loc, scale = _wide(q.loc, q.scale)
        return loc, scale.square()
    log_a, c, r = _power_of_gamma(q)
    return log_a + c.digamma() / r, torch.polygamma(1, c) / r.square()


def _negative_entropy(q: Any) -> Tensor:
    """E log q: −m − ½ log 2πe s² of a LogNormal, log |r| − log Γ(c) − E log x + c ψ(c) − c of a power of gamma."""
    mean, variance = _log_moments(q)
    if isinstance(q, LogNormal):
        return -mean - 0.5 * (2 * math.pi * math.e * variance).log()
    _, c, r = _power_of_gamma(q)
    return r.abs().log() - c.lgamma() - mean + c * c.digamma() - c


def _mean_power(q: Any, log_b: Tensor, t: Tensor) -> Tensor:
    """E (x/b)^t: exp(t (m − log b) + t² s²/2) of a LogNormal, (a/b)^t Γ(c + t/r)/Γ(c) of a power of gamma."""
    if isinstance(q, LogNormal):
        loc, scale = _wide(q.loc, q.scale)
        return (t * (loc - log_b) + 0.5 * (t * scale).square()).exp()
    log_a, c, r = _power_of_gamma(q)
    return (t * (log_a - log_b) + _log_gamma_ratio(c, t / r)).exp()


def _log_gamma_ratio(c: Tensor, t: Tensor) -> Tensor:
    """log Γ(c + t)/Γ(c) = log E Gᵗ of G ~ Gamma(c, 1), infinite for c + t ≤ 0.

    For large c the two are as good as equal, and their difference is taken in Stirling's series.
    """
    infinite = c + t <= 0
    c = torch.where(infinite, 2 - t, c)  # any finite value there, for gradients that are not NaN
    large = torch.minimum(c, c + t) > 30
    b = torch.where(large, c, 60 + t.abs())
    series = (b - 0.5) * (t / b).log1p() + t * (b + t).log() - t + _stirling(b + t) - _stirling(b)
    return torch.where(large, series, (c + t).lgamma() - c.lgamma()).masked_fill(infinite, math.inf)


def _stirling(x: Tensor) -> Tensor:
    """log Γ(x) − (x − ½) log x + x − ½ log 2π, to double precision for x > 30."""
    inverse = 1 / x
    square = inverse.square()
    return inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
