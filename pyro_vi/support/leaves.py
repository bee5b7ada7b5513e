"""The tensors that a result has gradients in."""

from collections.abc import Iterator

from torch import Tensor


def leaves_of(value: Tensor) -> Iterator[Tensor]:
    """The tensors with gradients that a result depends on, from autograd's graph.

    Example:
        >>> import torch
        >>> a, b = torch.ones(2, requires_grad=True), torch.ones(2)
        >>> [leaf is a for leaf in leaves_of((a * b).exp())]
        [True]
    """
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [before for before, _ in node.next_functions]
