"""Mode and curvature of a density of vectors, one problem in each row, by damped Newton steps.

* `peak_of` finds the modes; `covariance_factor` gives q = N(mode, (−Hessian)⁻¹) with gradients to what the density depends on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Density = Callable[[Tensor], Tensor]
"""Log-density of vectors, (*rows, D), by row, (*rows); a row depends on its own vector only."""
FLOOR = 1e-6
"""A curvature below this, in units of the prior's, counts as 0: the density is flat in this direction."""
REACH = 10.0
"""Longest step, in units of the prior's spread and of √D."""
CUTS = 15
"""How often a step is cut to a quarter before it is given up."""


@dataclass(frozen=True)
class Peak:
    """Modes, (*rows, D); ``rising`` says that a density still rises there, after all steps or where rounding stops them."""

    mode: Tensor
    rising: bool


def peak_of(density: Density, start: Tensor, iterations: int) -> Peak:
    """Return the modes that saddle-free Newton steps reach from a start (Dauphin et al. 2014, arXiv:1406.2572).

    A step solves |−H| s = ∇f, with the absolute values of the eigenvalues, and is cut to a quarter until f rises enough.

    Args:
        density: f, in units of the prior.
        start: (*rows, D).
        iterations: most steps.
    """
    v = start.detach()
    eps = torch.finfo(v.dtype).eps
    moving = torch.ones(v.shape[:-1], dtype=torch.bool, device=v.device)
    lost = torch.zeros_like(moving)
    for _ in range(iterations):
        value, slope, hessian = _derivatives(density, v)
        with torch.no_grad():
            step = _solve(_positive(-hessian, at_least=1e-3), slope)
            whole = step.isfinite().all(-1)
            step = torch.where(whole.unsqueeze(-1), step, 0)
            reach = REACH * math.sqrt(v.shape[-1])
            step = step * (reach / step.norm(dim=-1, keepdim=True).clamp(min=reach))
            gain = (slope * step).sum(-1)
            noise = eps * (1 + value.abs())
            last = ~(gain > noise)
            size = torch.where(moving, 1.0, 0.0).to(v.dtype)
            for _ in range(CUTS):
                bad = ~(density(v + size.unsqueeze(-1) * step) >= value + 1e-4 * size * gain - 10 * noise) & (size > 0)
                if not bool(bad.any()):
                    break
                size = torch.where(bad, size / 4, size)
            else:
                size = torch.where(bad, 0, size)
            v = v + size.unsqueeze(-1) * step
            # Stopped by rounding: the curvature is so large that its digits no longer hold the prior's.
            ends = ~whole | (~last & (size == 0) & (100 * eps * hessian.abs().amax((-2, -1)) > 1))
            lost = lost | (moving & ends)
            moving = moving & ~last & (size > 0)
        if not bool(moving.any()):
            break
    return Peak(v, bool((moving | lost).any()))


def covariance_factor(density: Density, peak: Peak, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the mode, (*rows, D), and the Cholesky factor of scale · (−H)⁻¹ there, (*rows, D, D).

    Both have the gradients of the exact mode with respect to whatever the density depends on: a Newton step from the mode,
    which is 0 in value, has the derivative (−H)⁻¹ ∂∇f (the implicit function theorem). A direction in which the density is
    flat gets the prior's width, 1.
    """
    mode = peak.mode
    value = density(mode)
    follows = value.requires_grad
    if follows:
        # A vector of which derivatives can be taken, without a new leaf in the graph of the loss.
        vector = mode + 0 * value.unsqueeze(-1)
        (slope,) = torch.autograd.grad(density(vector).sum(), vector, create_graph=True)
        _, _, hessian = _derivatives(density, mode)
        with torch.no_grad():
            precision = _positive(-hessian)
        step = _solve(precision, slope - slope.detach())
        mode = mode + torch.where(step.isfinite(), step, 0)
    _, _, hessian = _derivatives(density, mode, create_graph=follows)
    precision = -hessian if follows else -hessian.detach()
    precision = precision + (_positive(precision.detach()) - precision.detach())
    # A lower triangle L with L Lᵀ = P⁻¹, from the Cholesky factor of P read backwards.
    backwards = torch.linalg.cholesky(precision.flip((-2, -1))).flip((-2, -1)).mT
    eye = torch.eye(mode.shape[-1], dtype=mode.dtype, device=mode.device)
    return mode, math.sqrt(scale) * torch.linalg.solve_triangular(backwards, eye, upper=False)


def _derivatives(density: Density, v: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Value, (*rows), gradient, (*rows, D), and Hessian, (*rows, D, D)."""
    with torch.enable_grad():
        leaf = v if create_graph and v.requires_grad else v.detach().clone().requires_grad_()
        value = density(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=True, materialize_grads=True)
        size = leaf.shape[-1]
        if not slope.requires_grad:
            return value.detach(), slope.detach(), slope.new_zeros(*slope.shape, size)
        basis = torch.eye(size, dtype=v.dtype, device=v.device)
        basis = basis.reshape(size, *(1 for _ in leaf.shape[:-1]), size).expand(size, *leaf.shape)
        rows = _rows(slope, leaf, basis, create_graph)
    hessian = rows.movedim(0, -2)
    hessian = (hessian + hessian.mT) / 2
    return (value, slope, hessian) if create_graph else (value.detach(), slope.detach(), hessian.detach())


def _rows(slope: Tensor, leaf: Tensor, basis: Tensor, create_graph: bool) -> Tensor:
    """The rows of the Hessian, (D, *rows, D)."""

    def product(vector: Tensor, batched: bool) -> Tensor:
        (found,) = torch.autograd.grad(
            slope,
            leaf,
            vector,
            retain_graph=True,
            create_graph=create_graph,
            is_grads_batched=batched,
            allow_unused=True,
        )
        return torch.zeros_like(vector) if found is None else found

    try:
        return product(basis, True)
    except RuntimeError:  # an operation of the model without a rule for many vectors at once
        return torch.stack([product(vector, False) for vector in basis])


def _positive(precision: Tensor, at_least: float | None = None) -> Tensor:
    """The matrix with the absolute values of its eigenvalues, those near 0 replaced: by ``at_least``, or by 1."""
    finite = precision.isfinite().flatten(-2).all(-1)[..., None, None]
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    precision = torch.where(finite, precision, eye)
    values, vectors = torch.linalg.eigh(precision)
    size = values.abs()
    lost = 10 * (10 + values.shape[-1]) * torch.finfo(values.dtype).eps * size.amax(-1, keepdim=True)
    kept = size > lost.clamp(min=FLOOR)
    new = size.clamp(min=at_least) if at_least is not None else torch.where(kept, size, lost.clamp(min=1.0))
    change = torch.where((new == values), 0.0, new - values)
    # The matrix itself where nothing changes: an eigendecomposition loses digits.
    return precision + (vectors * change.unsqueeze(-2)) @ vectors.mT


def _solve(precision: Tensor, slope: Tensor) -> Tensor:
    """P⁻¹ ∇f; NaN where rounding leaves P no Cholesky factor."""
    factor, failed = torch.linalg.cholesky_ex(precision)
    solved = torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
    return torch.where(failed.unsqueeze(-1) == 0, solved, torch.nan)
