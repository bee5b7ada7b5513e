"""The start of free parameters: the best normal for a fixed set of draws, found without noise.

A posterior may be ten thousand times narrower than its prior, and Adam, whose steps have one size, takes too long from one
to the other. `start_of` maximises the ELBO of independent normals over a few draws that stay the same (Giordano et al. 2024,
arXiv:2304.05527), by L-BFGS, from the prior's median and narrow scales. Steps along the natural gradient, on more draws, refine
it, with correlations for families that have them. What it finds is the unit of the guide's parameters, from which a fit begins.

It applies to a guide all of whose numbers are free parameters, for continuous latents and a model without parameters of its
own: the posterior at the first values of such parameters is not the one to be found, and may be far too narrow for it. The
model must give the same log p(x, z) each time, and work under `torch.func.vmap`. Where any of this is not so, there is no
start, and the guide begins at the prior. Evaluations are limited, not seconds, so that a busy machine gives the same result.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyro_vi.amortized.blocks import Mode
from pyro_vi.amortized.frame import Frame
from pyro_vi.amortized.points import AT_ONCE, Density
from pyro_vi.data import Batch
from pyro_vi.programs import isolated, kept_buffers
from pyro_vi.tracing import put_back

MOST, MOST_REFINED = 500, 100
"""Most numbers in all sites together for a start, and for its refinement."""
DRAWS, LEAST_DRAWS, MOST_DRAWS = 32, 512, 8192
"""Fixed draws of the search, and fewest and most of the refinement."""
EVALUATIONS, WORK = 300, 2**30
"""Most evaluations of the search, and most numbers that all its draws together keep for gradients."""
ROUNDS, REFINEMENTS = 4, 50
"""Most rounds of the search, and most steps of the refinement."""
HISTORY, LEAST = 20, 0.05
"""Steps that L-BFGS remembers; the least precision after a refinement, in units of that before."""
APART = 1.0
"""Two modes differ if their distance in some coordinate is more than this, in units of the sum of their standard deviations."""
NARROW = 0.1
"""Standard deviations at the start: this fraction of the prior's, and at most this."""

Function = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Value and gradient at a point."""


@dataclass(frozen=True)
class Start:
    """The normal to start from: independent, or with correlations.

    Attributes:
        units: loc and scale on the unconstrained scale by site, (D,) each.
        root: Cholesky factor of the covariance of all sites in units of the scales, (D, D); None if it was not asked for.
        modes: the different normals that were found from several places, the best first, in units of loc and scale.
    """

    units: dict[str, tuple[Tensor, Tensor]]
    root: Tensor | None
    modes: tuple[Mode, ...] = ()


_skipped: ContextVar[list[Frame] | None] = ContextVar("skipped", default=None)


@contextmanager
def without_starts() -> Iterator[list[Frame]]:
    """Within the block, guides are made without a search for a start; the list gets the latents of each that would search."""
    skipped: list[Frame] = []
    token = _skipped.set(skipped)
    try:
        yield skipped
    finally:
        _skipped.reset(token)


def start_of(frame: Frame, batch: Batch, *, rooted: bool, modes: int = 1) -> Start | None:
    """Return the start of a guide for a model, or None where there is none. Nothing is left in the model or the generators.

    Args:
        frame: the latents of the model.
        batch: the data.
        rooted: find the correlations too.
        modes: number of modes to look for, from the prior's median and as many places around it.
    """
    names = list(frame.sites)
    sizes = [frame.shapes[name].numel for name in names]
    if sum(sizes) > MOST or not all(_plain(frame, name) for name in names):
        return None
    if (skipped := _skipped.get()) is not None:
        skipped.append(frame)
        return None
    loc, spread = (torch.cat(values) for values in zip(*map(frame.centre, names), strict=True))
    (model,) = frame.model
    try:
        with put_back(model), kept_buffers(model), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            with isolated(0, validation=False):
                call = frame.call(batch, {})
            density = Density(frame, call, names, sizes, loc)
            if not density.fixed(loc):
                return None
            with isolated(0, validation=False):
                found = _searched(density, loc.double(), spread.double())
                if found is None:
                    return None
                away = _draws(modes // 2, len(loc))
                places = loc.double() + spread.double() * torch.cat([away, -away])
                others = [_searched(density, place, spread.double()) for place in places]
                centre, scale, _ = best = max((m for m in (found, *others) if m is not None), key=lambda m: m[2])
                rest = [m for m in (found, *others) if m is not None and m is not best]
                centre, root = _refined(density, centre, scale, full=rooted)
    except Exception:  # a program that can be fitted may fail here, as under vmap
        return None
    if not rooted:
        scale = scale * root.diagonal()
    known = [Mode(torch.zeros_like(centre), torch.zeros_like(centre), best[2])]
    for place, width, bound in sorted(rest, key=lambda m: -m[2]):
        mode = Mode((place - centre) / scale, (width / scale).log(), bound)
        apart = (((mode.loc - m.loc) / (mode.log_scale.exp() + m.log_scale.exp())).abs().max() for m in known)
        if all(distance > APART for distance in apart):
            known.append(mode)
    parts = [value.to(loc.dtype).split(sizes) for value in (centre, scale)]
    return Start(dict(zip(names, zip(*parts, strict=True), strict=True)), root if rooted else None, tuple(known))


def _plain(frame: Frame, name: str) -> bool:
    """True for a continuous site whose numbers are free parameters, all of them seen by each run, without mask and scale."""
    site = frame.sites[name]
    shared = not frame.encoded(site) and not frame.rows(site)
    return shared and site.bijection is not None and site.states is None and site.mask is None and site.scale == 1


def _draws(count: int, dim: int) -> Tensor:
    """Fixed standard normal draws, (count, dim)."""
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _searched(density: Density, start: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, float] | None:
    """Return loc, scale and ELBO of the best independent normals for fixed draws; None if there are too few evaluations.

    Each round is in units of the scales that the one before has found, until a round gains little.
    """
    dim, left, last = len(start), min(EVALUATIONS, WORK // (DRAWS * density.size)), torch.inf
    noise = _draws(DRAWS, dim)
    noise = noise - noise.mean(0)
    noise = noise / noise.square().mean(0).sqrt()
    loc, scale, unit = start, NARROW * spread.clamp(max=1.0), spread
    for _ in range(ROUNDS):
        loss = partial(_loss, density, noise, loc, scale, unit)
        v, least, used = minimise(loss, start.new_zeros(2 * dim), left)
        left -= used
        if left <= 0:  # units far from the right ones are worse than those of the prior
            return None
        loc, scale = loc + unit * v[:dim], scale * v[dim:].exp()
        if last - least < 0.05:
            break
        last, unit = least, scale
    return loc, scale, -least


def _loss(
    density: Density, noise: Tensor, loc: Tensor, scale: Tensor, unit: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """The negative ELBO of independent normals, without a constant, and its gradient in v, which moves loc and log scale."""
    move, stretch = v.chunk(2)
    wide = scale * stretch.exp()
    value, gradient = density(loc + unit * move + noise * wide)
    slope = (gradient * noise).mean(0) * wide + 1
    return -(value.mean() + wide.log().sum()), -torch.cat([unit * gradient.mean(0), slope])


def minimise(function: Function, x: Tensor, evaluations: int, *, tolerance: float = 1e-2) -> tuple[Tensor, float, int]:
    """Minimise by L-BFGS with a backtracking line search, which also steps back from values that are not finite.

    Args:
        function: gives value and gradient.
        x: where to start.
        evaluations: most evaluations.
        tolerance: stop after five steps in a row that gain less.

    Returns:
        The point, the value there and the number of evaluations.
    """
    value, gradient = function(x)
    used, little = 1, 0
    pairs: list[tuple[Tensor, Tensor]] = []
    while used < evaluations and little < 5:
        step = -_times_inverse(gradient, pairs)
        slope = gradient @ step
        if slope >= 0:
            pairs, step = [], -gradient / gradient.norm().clamp(min=1)
            slope = gradient @ step
        size = min(1.0, 10 / max(float(step.abs().max()), 1e-300))  # no number moves by more than ten units at once
        while used < evaluations:
            other, other_gradient = function(x + size * step)
            used += 1
            finite = bool(other.isfinite()) and bool(other_gradient.isfinite().all())
            if finite and other <= value + 1e-4 * size * slope:
                break
            size *= 0.5 if finite else 0.1
            if size < 1e-9:
                break
        else:
            break
        if size < 1e-9:
            if not pairs:
                break
            pairs = []
            continue
        moved, turned = size * step, other_gradient - gradient
        if moved @ turned > 1e-10 * moved.norm() * turned.norm():
            pairs = [*pairs, (moved, turned)][-HISTORY:]
        little = little + 1 if value - other < tolerance else 0
        x, value, gradient = x + moved, other, other_gradient
    return x, float(value), used


def _times_inverse(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The inverse of the Hessian, as the pairs of steps and changes of the gradient have it, times the gradient."""
    if not pairs:
        return gradient / gradient.norm().clamp(min=1)
    q, weights = gradient, []
    for moved, turned in reversed(pairs):
        weights.append(moved @ q / (turned @ moved))
        q = q - weights[-1] * turned
    moved, turned = pairs[-1]
    q = q * (moved @ turned) / turned.square().sum()
    for (moved, turned), weight in zip(pairs, reversed(weights), strict=True):
        q = q + moved * (weight - turned @ q / (turned @ moved))
    return q


def _refined(density: Density, loc: Tensor, scale: Tensor, *, full: bool) -> tuple[Tensor, Tensor]:
    """Return loc, and Cholesky factor in units of the scales, after natural gradient steps on more draws.

    In units of a normal q = N(μ, L Lᵀ), u = μ + L ε, a step of rate r has precision (1 − r) I − r E[∇² log p] and mean
    r (precision)⁻¹ E[∇ log p] (Opper and Archambeau 2009; Khan and Lin 2017, arXiv:1703.04265). The mean of the Hessian comes
    from gradients, E[ε ∇ log pᵀ] = E[∇² log p] (Price 1958), by least squares. The rate falls until the ELBO rises.

    Args:
        density: log p and its gradient.
        loc: where to start.
        scale: standard deviations there.
        full: any covariance; otherwise one without correlations, for which only the step of the mean takes the whole matrix.
    """
    dim = len(loc)
    root = torch.eye(dim, dtype=loc.dtype)
    if dim > MOST_REFINED:
        return loc, root
    count = max(LEAST_DRAWS, 8 * dim, min(MOST_DRAWS, AT_ONCE // density.size))
    half = _draws(count // 2, dim)
    factor = torch.linalg.cholesky(half.mT @ half / len(half))
    # Mirrored and with covariance I, so that a normal posterior is found without error, and that noiseᵀ G / count is the
    # solution of least squares. `lstsq` would give it too, but with other bits from call to call on several threads.
    half = torch.linalg.solve_triangular(factor, half.mT, upper=False).mT
    noise = torch.cat([half, -half])

    def bound_at(loc: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = density(loc + scale * (noise @ root.mT))
        return value.mean() + root.diagonal().log().sum(), gradient * scale @ root

    bound, gradient = bound_at(loc, root)
    for _ in range(REFINEMENTS):
        hessian = noise.mT @ gradient / len(noise)
        curvature = -(hessian + hessian.mT) / 2
        values, vectors = torch.linalg.eigh(curvature)
        for rate in (1.0, 0.5, 0.2, 0.05):
            covariance = (vectors / (1 - rate + rate * values).clamp(min=LEAST)) @ vectors.mT
            other = loc + scale * (root @ (rate * covariance @ gradient.mean(0)))
            narrower = (1 - rate + rate * curvature.diagonal()).clamp(min=LEAST).rsqrt().diag()
            other_root = root @ (torch.linalg.cholesky(covariance) if full else narrower)
            other_bound, other_gradient = bound_at(other, other_root)
            if other_bound > bound and bool(other_gradient.isfinite().all()):
                break
        else:
            break
        gain = other_bound - bound
        loc, root, bound, gradient = other, other_root, other_bound, other_gradient
        if gain < 1e-4:
            break
    return loc, root
