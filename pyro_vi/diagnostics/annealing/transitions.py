"""Hamiltonian transitions for annealing, whose step sizes are fixed in a pilot run before the counted one.

* `Plan` holds what the pilot run fixes: the temperatures of each row, and step sizes and scales at each of them.
* `pilot` makes it, from draws of its own; `hamiltonian` moves positions; `moves_of` gives the transition of a plan.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vi.diagnostics.annealing.annealed import Density, Transition

LEAPS = 4
"""Leapfrog steps of a transition."""
ACCEPTED = 0.8
"""Mean acceptance that the pilot run aims at: near the best for few leapfrog steps (Beskos et al. 2013, arXiv:1001.4460)."""
LONGEST = 0.55
"""Longest step in units of a standard deviation: four of them lead a normal to where its next draw is nearly independent."""
DENSE = 64
"""Most dimensions of a row with a full covariance; more have their standard deviations."""
SPREAD = 0.5
"""Standard deviation of an increment of the log-weight in the pilot run, which sets its next temperature."""
EVEN = 0.1
"""Share of the temperatures that are evenly spaced; the others follow the spread of log w."""


@dataclass(frozen=True)
class Plan:
    """Temperatures, step sizes and scales that the pilot run has fixed, for T steps of R rows.

    Attributes:
        betas: temperatures, (T + 1, R), from 0 to 1.
        steps: step sizes in units of ``roots``, (T + 1, R).
        roots: factors of the covariance at each temperature, (T + 1, R, D, D), or standard deviations, (T + 1, R, D).
        length: the sum over the path of the standard deviation of log w times the change of β, (R,). With T perfect moves each
            of the two bounds is ½ length² / T away from log p(x).
        accepted: mean acceptance over the pilot run, (R,).
    """

    betas: Tensor
    steps: Tensor
    roots: Tensor
    length: Tensor
    accepted: Tensor


def hamiltonian(
    density: Density, positions: Tensor, beta: Tensor, step: Tensor, root: Tensor, leaps: int = LEAPS
) -> tuple[Tensor, Tensor]:
    """Return positions after one Hamiltonian transition at π_β ∝ q w^β, and the acceptance probability, (K, R).

    Momenta are drawn, ``leaps`` leapfrog steps are made, and the end is accepted with probability min(1, exp(−ΔH)). The step
    size is multiplied by a draw from [0.8, 1.2], so that no period of the motion is met. Energies are in float64.

    Source: Neal 2011, MCMC using Hamiltonian dynamics (arXiv:1206.1901).

    Args:
        density: the path.
        positions: (K, R, D).
        beta: temperature of each row, (R,) or (1,).
        step: step size of each row, in units of ``root``.
        root: factor of the covariance, (R, D, D), or standard deviations, (R, D); a direction with 0 is not moved.
        leaps: number of leapfrog steps.
    """
    jitter = 0.8 + 0.4 * torch.rand(positions.shape[:2], dtype=positions.dtype, device=positions.device)
    size = (jitter * step).unsqueeze(-1)
    momentum = torch.randn_like(positions)
    level, slope = _slope(density, positions, beta, root)
    energy = _kinetic(momentum) - level
    moved = positions
    for _ in range(leaps):
        momentum = momentum + 0.5 * size * slope
        moved = moved + size * _times(root, momentum)
        new, slope = _slope(density, moved, beta, root)
        momentum = momentum + 0.5 * size * slope
    change = energy - (_kinetic(momentum) - new)
    # A start at which the density is 0 takes any end at which it is not.
    change = torch.where(new.isfinite(), torch.where(level.isfinite(), change, math.inf), -math.inf)
    chance = change.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).clamp(max=0).exp()
    taken = torch.rand(chance.shape, dtype=chance.dtype, device=chance.device) < chance
    return torch.where(taken.unsqueeze(-1), moved, positions), chance


def moves_of(density: Density, plan: Plan) -> Transition:
    """The transition of a plan: move number t leaves the density at ``plan.betas[t]`` as it is."""

    def move(positions: Tensor, number: int) -> Tensor:
        at = plan.betas[number], plan.steps[number], plan.roots[number]
        return hamiltonian(density, positions, *at)[0]

    return move


def pilot(density: Density, steps: int, chains: int, active: Tensor, most: int) -> Plan:
    """Return a plan of ``steps`` steps from a run of annealing whose draws are used for nothing else.

    The run takes each next temperature so that log w · Δβ has a standard deviation of `SPREAD` among the chains of a row,
    and adapts step sizes and scales as it goes. The counted run has ``steps`` temperatures of each row at equal distances in
    the length ∫ sd(log w) dβ, with the step sizes and scales that the pilot run had there.

    Args:
        density: the path.
        steps: T of the plan.
        chains: chains of the pilot run.
        active: directions that are moved, (R, D), as ones; zeros elsewhere.
        most: most temperatures of the pilot run.
    """
    with torch.no_grad():
        positions = density.draw(chains)
        log_weight = density.at(positions)[1]
    scale = _Scale(positions, active)
    rows = positions.shape[1]
    beta = torch.zeros(rows, dtype=torch.float64, device=positions.device)
    step = positions.new_full((rows,), LONGEST / 2)
    length, chances = torch.zeros_like(beta), []
    history: list[tuple[Tensor, Tensor, Tensor, Tensor]] = [(beta, length, step, scale.root())]
    for number in range(most):
        spread = _spread(log_weight)
        left = (1 - beta) / (most - number)
        change = torch.maximum(SPREAD / spread, left).minimum(1 - beta)
        beta, length = beta + change, length + change * spread
        for _ in range(1 if number else 8):
            positions, chance = hamiltonian(density, positions, beta, step, scale.root())
            mean = chance.mean(0).to(step.dtype)
            step = (step * ((mean - ACCEPTED) * (0.8 if number else 1.5)).exp()).clamp(1e-5, LONGEST)
        chances.append(mean)
        scale.add(positions)
        history.append((beta, length, step, scale.root()))
        if bool((beta >= 1).all()):
            break
        with torch.no_grad():
            log_weight = density.at(positions)[1]
    return _plan(history, steps, torch.stack(chances).double().mean(0))


def _plan(history: list[tuple[Tensor, Tensor, Tensor, Tensor]], steps: int, accepted: Tensor) -> Plan:
    betas, lengths, sizes, roots = (torch.stack(column) for column in zip(*history, strict=True))
    total = lengths[-1]
    share = (1 - EVEN) * lengths / total.clamp(min=1e-12) + EVEN * betas
    share = torch.where(total > 1e-9, share, betas)
    share = share / share[-1]
    wanted = (
        torch.linspace(0, 1, steps + 1, dtype=share.dtype, device=share.device).unsqueeze(-1).expand(-1, len(total))
    )
    after = torch.searchsorted(share.T.contiguous(), wanted.T.contiguous()).T.clamp(1, len(share) - 1)
    low, high = share.gather(0, after - 1), share.gather(0, after)
    part = ((wanted - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    found = betas.gather(0, after - 1) * (1 - part) + betas.gather(0, after) * part
    found[0], found[-1] = 0.0, 1.0
    near = torch.where(part > 0.5, after, after - 1).clamp(min=1)
    row = torch.arange(len(total), device=near.device)
    return Plan(found, sizes[near, row], roots[near, row], total, accepted)


class _Scale:
    """The covariance of the chains of each row, which follows them: half of it is that of the chains before."""

    def __init__(self, positions: Tensor, active: Tensor) -> None:
        chains, _, size = positions.shape
        self.active = active.to(positions)
        self.dense = 1 < size <= min(DENSE, chains // 3)
        self.kept = self._of(positions)
        self.shrink = min(0.5, size / chains)

    def add(self, positions: Tensor) -> None:
        self.kept = 0.5 * self.kept + 0.5 * self._of(positions)

    def _of(self, positions: Tensor) -> Tensor:
        away = positions - positions.mean(0)
        if self.dense:
            return torch.einsum("kri,krj->rij", away, away) / (len(positions) - 1)
        return away.square().sum(0) / (len(positions) - 1)

    def root(self) -> Tensor:
        kept = self.kept.nan_to_num(0.0, 0.0, 0.0)
        variance = kept.diagonal(dim1=-2, dim2=-1) if self.dense else kept
        variance = variance.clamp(min=1e-20)
        if self.dense:
            sd = variance.sqrt()
            unit = kept / sd.unsqueeze(-1) / sd.unsqueeze(-2)
            eye = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
            unit = (1 - self.shrink) * unit * (1 - eye) + eye
            factor, wrong = torch.linalg.cholesky_ex(unit)
            factor = torch.where((wrong > 0)[:, None, None], eye, factor)
            return self.active.unsqueeze(-1) * sd.unsqueeze(-1) * factor
        return self.active * variance.sqrt()


def _slope(density: Density, positions: Tensor, beta: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """log π_β, (K, R), and its gradient in units of ``root``; 0 where there is none."""
    with torch.enable_grad():
        positions = positions.detach().requires_grad_()
        log_q, log_weight = density.at(positions)
        level = log_q + beta * log_weight
        (gradient,) = torch.autograd.grad(level.sum(), positions)
    return level.detach(), _times(root, gradient.nan_to_num(0.0, 0.0, 0.0), transposed=True)


def _times(root: Tensor, vectors: Tensor, transposed: bool = False) -> Tensor:
    if root.dim() == 2:
        return root * vectors
    return torch.einsum("rji,krj->kri" if transposed else "rij,krj->kri", root, vectors)


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.double().square().sum(-1)


def _spread(log_weight: Tensor) -> Tensor:
    """Standard deviation of log w among the chains of each row, of those at which it is finite."""
    finite = log_weight.isfinite()
    count = finite.sum(0).clamp(min=2)
    value = torch.where(finite, log_weight, 0.0)
    mean = value.sum(0) / count
    return (torch.where(finite, value - mean, 0.0).square().sum(0) / (count - 1)).sqrt().clamp(min=1e-9)
