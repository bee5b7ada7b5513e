"""The best normal for each of many densities at once, by natural gradient steps on fixed draws.

* `Normals` are normals N(loc, root rootᵀ), one for each datum; `improved` raises their ELBO until it no longer rises.
* `searched` tries several starts, and `refined` ends the search.
* `read_normals` reads a guide that is normal on the unconstrained scale.

In units of a normal q = N(μ, L Lᵀ), u = μ + L ε, a step of rate r has precision (1 − r) I − r E[∇² log p] and mean
r (precision)⁻¹ E[∇ log p] (Khan and Lin 2017, arXiv:1703.04265). The mean of the Hessian comes from gradients alone,
E[ε ∇ log pᵀ] = E[∇² log p] (Price 1958). A step that lowers the ELBO of a datum is undone for this datum, and its next one is
shorter. At a quadratic log p one step is exact, as the draws have mean 0 and covariance I.
"""

import math
from dataclasses import dataclass

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from pyro_vi.diagnostics.splitting.expectations import matched
from pyro_vi.diagnostics.splitting.targets import LOG_2PI, Target

SEARCH, REFINE, MOST = 64, 512, 2048
"""Draws of the search from each start; fewest and most draws of the refinement."""
STEPS, REFINEMENTS = 40, 100
"""Most steps of both."""
LEAST = 0.05
"""Least precision after a step, in units of that before: no variance grows by more than 20 in one step."""
ENOUGH = {torch.float64: 1e-9, torch.float32: 1e-6}
"""A gain below which a datum is done, in units of its ELBO or of 1 nat, by the dtype of the programs."""
NARROW = 0.1
"""Standard deviations of narrow starts, in units of the prior's: such a start finds the mode that is near."""


@dataclass(frozen=True)
class Normals:
    """N(loc, root rootᵀ) of each datum: loc (…, R, D), root lower triangular (…, R, D, D), in double precision."""

    loc: Tensor
    root: Tensor

    @property
    def log_scale(self) -> Tensor:
        """log det root, (…, R)."""
        return self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def at(self, noise: Tensor) -> Tensor:
        """u = loc + root ε, (K, …, R, D), at draws ε that all data share, (K, D)."""
        return self.loc + torch.einsum("...de,ke->k...d", self.root, noise)

    def log_prob(self, u: Tensor) -> Tensor:
        """log q(u), (K, R), at u of shape (K, R, D)."""
        offset = (u - self.loc).permute(1, 2, 0)
        noise = torch.linalg.solve_triangular(self.root, offset, upper=False)
        return (-0.5 * (noise.square() + LOG_2PI).sum(1)).mT - self.log_scale

    def integrand(self, target: Target, noise: Tensor) -> Tensor:
        """A function of ε, (K, R), whose mean is the ELBO: log p(x, u) plus the entropy of q."""
        entropy = self.log_scale + 0.5 * self.loc.shape[-1] * (1 + LOG_2PI)
        return target.value(self.at(noise)) + entropy

    def where(self, better: Tensor, other: "Normals") -> "Normals":
        """Take these where ``better``, (…, R), and the others elsewhere."""
        return Normals(
            torch.where(better[..., None], self.loc, other.loc),
            torch.where(better[..., None, None], self.root, other.root),
        )

    def widened(self, factor: float) -> "Normals":
        """The same with ``factor`` times the standard deviations."""
        return Normals(self.loc, factor * self.root)


def stacked(parts: list[Normals]) -> Normals:
    """Return normals from several starts, (S, R, …)."""
    return Normals(torch.stack([p.loc for p in parts]), torch.stack([p.root for p in parts]))


def improved(
    target: Target, start: Normals, pattern: Tensor, noise: Tensor, steps: int
) -> tuple[Normals, Tensor, Tensor]:
    """Return the normals after the steps, their ELBO on the draws, and how much the last step raised it, (S, R) each.

    Args:
        target: the densities.
        start: normals of shape (S, R, …).
        pattern: which covariances may differ from 0, (D, D): the identity for independent numbers, blocks, or all.
        noise: draws, (K, D).
        steps: most steps.
    """
    now = start
    bound, slope = _bound(target, now, noise)
    rate, gain = torch.ones_like(bound), torch.full_like(bound, math.inf)
    eye = torch.eye(start.loc.shape[-1], dtype=torch.float64)
    for _ in range(steps):
        whitened = torch.einsum("ksrd,srde->ksre", slope, now.root)
        mean = whitened.mean(0)
        hessian = torch.einsum("kd,ksre->srde", noise, whitened) / len(noise)
        curvature = -(hessian + hessian.mT) / 2
        curvature = torch.where(curvature.isfinite(), curvature, eye)
        own = rate[..., None, None]
        mixed = (1 - own) * eye + own * curvature
        move = _solved(mixed, mean.nan_to_num(), rate)
        narrower = _inverse_root(mixed * pattern)
        proposal = Normals(now.loc + (now.root @ move.unsqueeze(-1)).squeeze(-1), now.root @ narrower)
        found, other_slope = _bound(target, proposal, noise)
        better = found > bound
        gain = torch.where(better, found - bound, torch.where(rate < 1e-3, 0.0, gain))
        now, bound = proposal.where(better, now), torch.where(better, found, bound)
        slope = torch.where(better[..., None], other_slope, slope)
        rate = torch.where(better, (2 * rate).clamp(max=1.0), rate / 4)
        if not bool((gain > ENOUGH.get(target.dtype, 1e-3) * (1 + bound.abs())).any()):
            break
    return now, bound, gain


def searched(target: Target, starts: list[Normals], pattern: Tensor, seed: int) -> Normals:
    """Return the normals that have the highest ELBO after a search from each start, (R, …), on few draws.

    Args:
        target: the densities.
        starts: normals to start from, each (R, …).
        pattern: as in `improved`.
        seed: seed of the draws of the search.
    """
    noise = matched(max(SEARCH, 4 * target.size), target.size, seed)
    found, bound, _ = improved(target, stacked(starts), pattern, noise, STEPS)
    best, rows = bound.nan_to_num(-math.inf).argmax(0), torch.arange(target.rows)
    return Normals(found.loc[best, rows], found.root[best, rows])


def refined(target: Target, start: Normals, pattern: Tensor, seed: int) -> tuple[Normals, int]:
    """Return the best normals near a start, on many draws, and the number of data whose ELBO still rose at the end."""
    size = target.size
    noise = matched(min(MOST, max(REFINE, 16 * size)), size, seed)
    found, _, gain = improved(target, stacked([start]), pattern, noise, REFINEMENTS)
    return Normals(found.loc[0], found.root[0]), int((gain[0] > 1e-3).sum())


def starts_of(target: Target, seed: int) -> list[Normals]:
    """Return starts from the prior: as wide as it, and narrow at its centre and at places around it."""
    centre, spread = target.prior()
    generator = torch.Generator().manual_seed(seed)
    away = torch.randn(centre.shape, generator=generator, dtype=torch.float64)
    places = [centre, centre + spread * away, centre - spread * away]
    return [Normals(centre, spread.diag_embed()), *(Normals(p, NARROW * spread.diag_embed()) for p in places)]


def read_normals(target: Target) -> Normals | None:
    """Return the guide as normals on the unconstrained scale, or None if it is something else.

    log q is quadratic then: its gradients at D + 1 points give precision and mean, which are compared with log q at others.
    """
    centre, spread = target.prior()
    now = Normals(centre, spread.diag_embed())
    single = target.dtype != torch.float64
    size = target.size
    try:
        for _ in range(3):  # in units of what was found, so that rounding does little
            points = now.at(torch.cat([torch.zeros(1, size), torch.eye(size)]).double()).detach().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(target.guide_density(points).sum(), points)
            white = torch.einsum("krd,rde->kre", slope, now.root)
            precision = -(white[1:] - white[:1]).permute(1, 0, 2)
            precision = (precision + precision.mT) / 2
            values, vectors = torch.linalg.eigh(precision)
            if not bool((values > 0).all()):
                return None
            covariance = (vectors / values.unsqueeze(-2)) @ vectors.mT
            loc = now.loc + (now.root @ covariance @ white[0].unsqueeze(-1)).squeeze(-1)
            now = Normals(loc, _lower(now.root @ covariance @ now.root.mT))
        noise = torch.randn(8, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        points = now.at(noise)
        with torch.no_grad():
            difference = target.guide_density(points) - now.log_prob(points)
    except Exception:  # a guide without a density at given values, or one that fails there
        return None
    close = 1e-2 if single else 1e-6
    return now if bool((difference.abs() < close * (1 + size)).all()) else None


def blocks_of(normals: Normals, close: float) -> tuple[Tensor, bool]:
    """Return the blocks of numbers that depend on each other, as a pattern (D, D), and True if each block is full.

    A block is not full where two numbers are independent given the others: the family is then smaller than the normals with
    this pattern.
    """
    precision = torch.cholesky_inverse(normals.root)
    scale = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
    dependent = ((precision * scale.unsqueeze(-1) * scale.unsqueeze(-2)).abs() > close).any(0)
    _, label = connected_components(dependent.numpy(), directed=False)
    pattern = torch.as_tensor(label[:, None] == label[None, :])
    return pattern, bool((dependent == pattern).all())


def projected(normals: Normals, pattern: Tensor) -> Normals:
    """Return the normals of a pattern that are nearest in KL(q ‖ ·): their precision is that of the blocks."""
    precision = torch.cholesky_inverse(normals.root) * pattern
    return Normals(normals.loc, _lower(torch.linalg.inv(precision)))


def _bound(target: Target, normals: Normals, noise: Tensor) -> tuple[Tensor, Tensor]:
    """ELBO without a constant, (S, R), and the gradient of log p at the draws, (K, S, R, D)."""
    u = normals.at(noise)
    value, slope = target.value_and_gradient(u.flatten(0, 1))
    value, slope = value.unflatten(0, u.shape[:2]), slope.unflatten(0, u.shape[:2])
    bound = value.mean(0) + normals.log_scale
    good = bound.isfinite() & slope.isfinite().all(-1).all(0)
    return torch.where(good, bound, -math.inf), slope


def _solved(matrix: Tensor, vector: Tensor, rate: Tensor) -> Tensor:
    """rate · |matrix|⁻¹ vector, with no eigenvalue below `LEAST`."""
    values, vectors = torch.linalg.eigh(matrix)
    turned = (vectors.mT @ vector.unsqueeze(-1)).squeeze(-1) / values.clamp(min=LEAST)
    return rate.unsqueeze(-1) * (vectors @ turned.unsqueeze(-1)).squeeze(-1)


def _inverse_root(matrix: Tensor) -> Tensor:
    """The Cholesky factor of matrix⁻¹, with no eigenvalue below `LEAST`."""
    values, vectors = torch.linalg.eigh(matrix)
    return _lower((vectors / values.clamp(min=LEAST).unsqueeze(-2)) @ vectors.mT)


def _lower(covariance: Tensor) -> Tensor:
    factor: Tensor = torch.linalg.cholesky((covariance + covariance.mT) / 2)
    return factor
