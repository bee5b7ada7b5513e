"""Optimizers without a learning rate: the step follows from the distance from the start and the gradients so far.

* `DoG`: distance over gradients (Ivgi, Hinder and Carmon 2023, arXiv:2302.12022).
* `DoWG`: distance over weighted gradients (Khaled, Mishchenko and Jin 2023, arXiv:2305.16284).

Norms are joint norms of all parameters. All state consists of tensors, so that the steps can be compiled.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

START = 1e-6
"""Length of the first step, for parameters at 0; otherwise it is this times one plus their norm."""


class DoG(Optimizer):
    """SGD with the step r̄ₜ / √Gₜ, where r̄ₜ is the largest distance from the start so far, and Gₜ = Σ ‖gᵢ‖².

    The last iterate is noisier than that of an optimizer whose rate decays: the guarantees of the paper are for an average of
    the iterates. So `pyro_vi.fit` averages them, unless ``average="none"``.

    Args:
        params: the parameters, or groups of them.
        start: length of the first step, as a multiple of one plus the norm of the parameters.

    Raises:
        ValueError: ``start`` is not above 0.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
        >>> optimizer = DoG([x])
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     (0.5 * (x - 3) ** 2).backward()
        ...     optimizer.step()
        >>> f"{float(x.detach()):.6e}"
        '2.692705e-06'
    """

    def __init__(self, params: Iterable[Any], start: float = START) -> None:
        if not start > 0:
            raise ValueError(f"start must be above 0, not {start}")
        super().__init__(params, {"start": start})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step, and return what the closure gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._begin(parameters)
        moving = [p for p in parameters if p.grad is not None]
        if not moving:
            return loss
        # The numbers that all parameters share are in the state of the first one.
        shared = self.state[parameters[0]]
        shared["distance"].copy_(
            torch.maximum(shared["distance"], _norm(p - self.state[p]["origin"] for p in parameters))
        )
        size = self._size(shared, _norm(p.grad for p in moving).square())
        for p in moving:
            p.sub_(size.to(p.dtype) * p.grad)
        return loss

    def _begin(self, parameters: list[Tensor]) -> None:
        if not parameters or parameters[0] in self.state:
            return
        first = self.param_groups[0]["start"] * (1 + _norm(iter(parameters)))
        for p in parameters:
            self.state[p]["origin"] = p.detach().clone()
        self.state[parameters[0]].update(distance=first, total=torch.zeros_like(first))

    def _size(self, shared: dict[str, Tensor], square: Tensor) -> Tensor:
        """Return the size of the step, and add the squared norm of its gradient to the total."""
        shared["total"].add_(square)
        return shared["distance"] / _root(shared["total"])


class DoWG(DoG):
    """SGD with the step r̄ₜ² / √vₜ, where r̄ₜ is the largest distance from the start so far, and vₜ = Σ r̄ᵢ² ‖gᵢ‖².

    Args:
        params: the parameters, or groups of them.
        start: length of the first step, as a multiple of one plus the norm of the parameters.

    Raises:
        ValueError: ``start`` is not above 0.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
        >>> optimizer = DoWG([x])
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     (0.5 * (x - 3) ** 2).backward()
        ...     optimizer.step()
        >>> f"{float(x.detach()):.7e}"
        '3.0217085e-06'
    """

    def _size(self, shared: dict[str, Tensor], square: Tensor) -> Tensor:
        distance = shared["distance"].square()
        shared["total"].add_(distance * square)
        return distance / _root(shared["total"])


def _norm(tensors: Iterator[Tensor]) -> Tensor:
    return torch.stack([tensor.detach().square().sum() for tensor in tensors]).sum().sqrt()


def _root(total: Tensor) -> Tensor:
    """The square root; where all gradients were 0, one, as a step has no length then."""
    return torch.where(total > 0, total.sqrt(), 1.0)
