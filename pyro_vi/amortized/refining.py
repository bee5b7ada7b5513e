"""Gradient ascent of the ELBO of each datum, on fixed noise, with gradients through the steps.

* `fixed_normals` makes the noise; `refined` takes the steps.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

GROWTH, CUT = 1.5, 0.3
"""Factors of the rate of a datum after a step that is kept, and after one that is undone."""
FARTHEST = 2.0
"""Standard deviations that a step moves a loc at most; log σ changes by half of that at most."""


def fixed_normals(draws: int, size: int) -> Tensor:
    """Return the same standard normal draws at each call, (draws, size), in pairs of opposite sign: their mean is 0.

    Their covariance is the identity if ``draws`` is at least twice the size, so that means of quadratic functions are exact;
    otherwise each number has variance 1.
    """
    half = torch.randn(draws // 2, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    enough = len(half) >= size
    half = torch.linalg.qr(half).Q * math.sqrt(len(half)) if enough else half / half.square().mean(0).sqrt()
    return torch.cat([half, -half])


def refined(
    elbo: Callable[[list[Tensor]], Tensor],
    start: Sequence[Tensor],
    rates: Sequence[Tensor],
    steps: int,
    scales: bool = True,
) -> list[Tensor]:
    """Return the numbers of normals after some steps of ascent.

    A step follows the natural gradient, σ² ∂/∂μ and ½ ∂/∂log σ, squashed to a limited length. A datum whose ELBO a step would
    lower keeps its numbers, and its next step is shorter.

    Args:
        elbo: from the numbers, the ELBO of each datum, (*particles, rows).
        start: μ and log σ in turns, each (*particles, rows, …).
        rates: the rates of μ and log σ, (2,), for each pair of ``start``.
        steps: number of steps.
        scales: False keeps each log σ.

    Returns:
        μ and log σ in turns, as in ``start``, with the particles of the ELBO.
    """
    outer = torch.is_grad_enabled()
    state = list(start)
    with torch.no_grad():
        best = elbo(state)
        rate = torch.ones_like(best)
    for _ in range(steps):
        slopes = _slopes(elbo, state, outer)
        proposal = []
        for i, (loc, log_scale) in enumerate(zip(state[::2], state[1::2], strict=True)):
            scale = log_scale.exp()
            own = rate.reshape(*rate.shape, *(1 for _ in range(loc.dim() - rate.dim())))
            along, across = rates[i]
            move = own * along * scale * slopes[2 * i]
            proposal.append(loc + scale * FARTHEST * torch.tanh(move / FARTHEST))
            turn = torch.tanh(own * across * slopes[2 * i + 1] / 2)
            proposal.append(log_scale + turn if scales else log_scale)
        with torch.no_grad():
            found = elbo(proposal)
            better = found >= best
            best = torch.where(better, found, best)
            rate = rate * torch.where(better, GROWTH, CUT)
        state = [
            torch.where(better.reshape(*better.shape, *(1 for _ in range(new.dim() - better.dim()))), new, old)
            for new, old in zip(proposal, state, strict=True)
        ]
    return state


def _slopes(elbo: Callable[[list[Tensor]], Tensor], state: list[Tensor], outer: bool) -> tuple[Tensor, ...]:
    """The gradient of each datum's ELBO; with ``outer``, in the graph of what it depends on."""
    with torch.enable_grad():
        if outer and not all(value.requires_grad for value in state):
            total = elbo(state).sum()
            # Vectors of which derivatives can be taken, without new leaves in the graph of the loss.
            outer = total.requires_grad
            state = [value + 0 * total for value in state]
        if not outer:
            state = [value.detach().requires_grad_() for value in state]
        return torch.autograd.grad(elbo(state).sum(), state, create_graph=outer)
