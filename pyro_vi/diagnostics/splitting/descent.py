"""Adam for numbers of many data at once, without `torch.optim`, whose first optimizer imports torch's compiler for seconds."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def descend(numbers: Sequence[Tensor], loss: Callable[[], Tensor], steps: int, rate: float) -> None:
    """Change numbers in place by steps of Adam (Kingma and Ba 2014, arXiv:1412.6980), with a rate that falls to 0 as a cosine.

    Each number has its own step, so that data whose losses are added do not disturb each other.

    Args:
        numbers: tensors that require gradients.
        loss: what is to fall; called anew at each step.
        steps: number of steps.
        rate: rate of the first step.

    Example:
        >>> x = torch.tensor([3.0, -1.0], requires_grad=True)
        >>> descend([x], lambda: (x - 1).square().sum(), 300, 0.1)
        >>> x.detach().round(decimals=2)
        tensor([1., 1.])
    """
    first, second = [torch.zeros_like(x) for x in numbers], [torch.zeros_like(x) for x in numbers]
    for step in range(steps):
        with torch.enable_grad():
            slopes = torch.autograd.grad(loss(), list(numbers))
        size = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.no_grad():
            for x, slope, one, two in zip(numbers, slopes, first, second, strict=True):
                one.lerp_(slope, 0.1)
                two.lerp_(slope.square(), 0.001)
                unbiased = one / (1 - 0.9 ** (step + 1))
                x.sub_(size * unbiased / ((two / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8))
