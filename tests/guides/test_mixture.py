"""The mixture guide: pathwise gradients of its draws."""

import math

import torch

from pyro_vi.guides.mixture import DiagonalNormals


def test_the_gradient_of_a_mixture_of_single_numbers_is_that_of_its_mean_square():
    """E z² = Σ w (μ² + σ²): pathwise gradients, also in the weights, agree with it at 4 standard errors."""
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64).expand(20000, 2).clone().requires_grad_()
    loc = torch.tensor([[-1.0], [2.0]], dtype=torch.float64).expand(20000, 2, 1).clone().requires_grad_()
    scale = torch.tensor([[0.5], [1.5]], dtype=torch.float64).expand(20000, 2, 1).clone().requires_grad_()
    torch.manual_seed(0)
    z = DiagonalNormals(loc, scale, logits).rsample()
    found = torch.autograd.grad(z.square().sum(), (logits, loc, scale))
    one = [v[:1].detach().clone().requires_grad_() for v in (logits, loc, scale)]
    weights = one[0].softmax(-1)
    exact = torch.autograd.grad((weights * (one[1] ** 2 + one[2] ** 2).squeeze(-1)).sum(), one)
    for some, right in zip(found, exact, strict=True):
        error = some.std(0) / math.sqrt(len(some))
        assert bool(((some.mean(0) - right[0]).abs() < 4 * error).all())
