"""The Kalman filter and smoother of one linear Gaussian state space model, for series of shape ``(..., T, D)``.

* `started` gives the first state from the observations that start the filter, without a prior.
* `filtered` runs forward and gives the evidence; `smoothed` runs back, and gives the posterior as a chain over the steps.

Source: Durbin and Koopman, Time Series Analysis by State Space Methods, 2nd edition (2012), chapters 4 and 5.
"""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

Moments = tuple[Tensor, Tensor]
"""A mean, ``(..., d)``, and a covariance, ``(..., d, d)``."""


@dataclass(frozen=True)
class Filtered:
    """Results of the filter: the evidence, ``(...)``, and the moments of each state before and after its observation."""

    evidence: Tensor
    before: list[Moments]
    after: list[Moments]


@dataclass(frozen=True)
class Smoothed:
    """The posterior of the states: a Markov chain with E[z_t | z_t−1, x] = m_t + A_t (z_t−1 − m_t−1).

    Attributes:
        means: m_t of each state, ``(..., d)``.
        covariances: of each state, ``(..., d, d)``.
        gains: A_t of each state but the first.
        roots: Cholesky factors of the covariance of the first state, and of each other one given the one before.
    """

    means: list[Tensor]
    covariances: list[Tensor]
    gains: list[Tensor]
    roots: list[Tensor]

    def factor(self) -> Tensor:
        """Cholesky factor of the covariance of the whole path, ``(..., n d, n d)``."""
        rows = self.roots[:1]
        for gain, root in zip(self.gains, self.roots[1:], strict=True):
            rows.append(torch.cat([gain @ rows[-1], root], -1))
        width = rows[-1].shape[-1]
        return torch.cat([nn.functional.pad(row, (0, width - row.shape[-1])) for row in rows], -2)


def started(y: Tensor, F: Tensor, H: Tensor, Q: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and Cholesky factor of p(z_k | x_1..k) under a flat prior of z_1, for ``y`` of shape ``(..., k, D)``.

    x_i = H (F^(i−1) z_1 + v_i) + e_i and z_k = F^(k−1) z_1 + v_k, with v_i for what the noise has moved the state by. z_1 is
    the generalised least squares estimate, with its covariance.
    """
    k, d = y.shape[-2], len(F)
    one = torch.eye(d, dtype=F.dtype, device=F.device)
    noise, power, move = torch.block_diag(*[Q] * k), one, F.new_zeros(d, k * d)
    maps, moves = [H], [H @ move]
    for i in range(1, k):
        power, move = F @ power, F @ move + nn.functional.pad(one, (i * d, (k - 1 - i) * d))
        maps.append(H @ power)
        moves.append(H @ move)
    A, G = torch.cat(maps), torch.cat(moves)
    S = G @ noise @ G.mT + torch.block_diag(*[R] * k)
    weighted = torch.linalg.solve(S, A)
    V = torch.linalg.inv(A.mT @ weighted)
    cross = G @ noise @ move.mT
    shift = torch.linalg.solve(S, cross).mT
    rest = power - shift @ A
    mean = y.flatten(-2) @ (rest @ V @ weighted.mT + shift).mT
    covariance = move @ noise @ move.mT - shift @ cross + rest @ V @ rest.mT
    return mean, torch.linalg.cholesky((covariance + covariance.mT) / 2)


def filtered(
    series: Tensor,
    known: Tensor | None,
    used: int,
    mean: Tensor,
    root: Tensor,
    F: Tensor,
    H: Tensor,
    Q: Tensor,
    R: Tensor,
) -> Filtered:
    """Run the filter from the first state, that of step ``max(used, 1)``.

    Args:
        series: of shape ``(..., T, D)``; the first ``used`` steps are not scored.
        known: which steps are data, ``(..., T)``; None for all.
        used: number of observations that the first state depends on already.
        mean: of the first state, ``(..., d)``.
        root: Cholesky factor of its covariance.
        F, H, Q, R: the matrices of the model.
    """
    covariance = (root @ root.mT).expand(*mean.shape, -1)
    evidence = mean.new_zeros(mean.shape[:-1])
    before: list[Moments] = []
    after: list[Moments] = []
    for t in range(max(used, 1), series.shape[-2] + 1):
        if before:
            mean, covariance = mean @ F.mT, F @ covariance @ F.mT + Q
        before.append((mean, covariance))
        if t > used:
            cross = covariance @ H.mT
            chol = torch.linalg.cholesky(H @ cross + R)
            error = series[..., t - 1, :] - mean @ H.mT
            density = dist.MultivariateNormal(torch.zeros_like(error), scale_tril=chol).log_prob(error)
            gain = torch.cholesky_solve(cross.mT, chol).mT
            here = torch.ones_like(density, dtype=torch.bool) if known is None else known[..., t - 1]
            evidence = evidence + torch.where(here, density, 0.0)
            mean = torch.where(here[..., None], mean + (gain @ error.unsqueeze(-1)).squeeze(-1), mean)
            covariance = torch.where(here[..., None, None], covariance - gain @ cross.mT, covariance)
        after.append((mean, covariance))
    return Filtered(evidence, before, after)


def smoothed(found: Filtered, F: Tensor) -> Smoothed:
    """Run back from the last state."""
    mean, covariance = found.after[-1]
    means, covariances, gains, roots = [mean], [covariance], [], []
    for (m, P), (ahead, spread) in zip(found.after[-2::-1], found.before[:0:-1], strict=True):
        back = torch.linalg.solve(spread, F @ P).mT
        later = covariance
        mean = m + (back @ (mean - ahead).unsqueeze(-1)).squeeze(-1)
        covariance = P + back @ (covariance - spread) @ back.mT
        gain = torch.linalg.solve(covariance, back @ later).mT
        means.append(mean)
        covariances.append(covariance)
        gains.append(gain)
        roots.append(torch.linalg.cholesky(later - gain @ covariance @ gain.mT))
    roots.append(torch.linalg.cholesky(covariance))
    return Smoothed(means[::-1], covariances[::-1], gains[::-1], roots[::-1])
