"""Faster forms of some operations of a recorded graph, which give the same numbers up to rounding.

* ``tanh(x)`` in single precision becomes 2 σ(2x) − 1: torch's σ takes a sixth of the time of its tanh. The error is up to
  3 · 2⁻²⁴.
* Σ_j log Bernoulli(x_j; logits l_j) becomes Σ_j [(x_j − ½) l_j − ½ |l_j|] + log Π_j σ(|l_j|), because
  log(1 + exp l) = ½ l + ½ |l| − log σ(|l|): one logarithm for up to 100 elements. A factor is at least ½, so that the product
  does not underflow. The error is no larger than that of torch's own sum.
* A sum over a short last dimension becomes a product with a vector of ones.
* With ``products``, a linear layer that ends in tanh, or has few outputs, becomes one call of oneDNN.
* Operations that change nothing go, such as x / 1, or an expansion to the shape that x has.
"""

from typing import Any

import torch
from torch import Tensor, fx

from pyro_vi.support.inductor_internals import onednn_layer
from pyro_vi.support.torch_internals import schema
from pyro_vi.tracing.shapes import OPERATION

aten = torch.ops.aten
VIEWS = ("aten::view", "aten::_unsafe_view")
LONGEST = 100
"""Most factors of at least ½ in a product: 2⁻¹⁰⁰ is a normal number in single precision."""
LEAST = 3
"""Fewest factors for which a product pays."""
FEW, SHORT = 16, 16
"""Outputs below which oneDNN's product is faster, and the longest dimension that is summed by a product."""


def faster(graph: fx.Graph, products: bool = False) -> None:
    """Replace operations of a recorded graph, in place; its nodes must have their tensors in ``meta["val"]``.

    Args:
        graph: the graph.
        products: call oneDNN, where torch has it; such an operation cannot be batched.

    Example:
        >>> from pyro_vi.tracing.recording import record
        >>> x = torch.tensor([0.3])
        >>> recording = record(torch.tanh, x)
        >>> faster(recording.graph)
        >>> (recording.module()(x) - x.tanh()).abs().item() < 2e-7
        True
    """
    forms = (_same, *((_linear,) if products and onednn_layer() is not None else ()), _tanh, _bernoulli, _short_sum)
    for form in forms:
        for node in list(graph.nodes):
            if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
                continue
            with graph.inserting_before(node):
                other = form(graph, node)
            if other is not None:
                if other.meta.get("val") is None:
                    other.meta["val"] = node.meta["val"]
                node.replace_all_uses_with(other)
        graph.eliminate_dead_code()


def _same(graph: fx.Graph, node: Any) -> fx.Node | None:
    """The argument of an operation that changes nothing."""
    if node.target in (aten.mul.Tensor, aten.div.Tensor):
        nothing: Any = 1
    elif node.target in (aten.add.Tensor, aten.sub.Tensor):
        nothing = 0
    elif node.target in (aten.expand.default, aten.view.default):
        nothing = None
    else:
        return None
    source: Any = node.args[0]
    if not isinstance(source, fx.Node) or node.kwargs:
        return None
    if nothing is not None and (isinstance(node.args[1], fx.Node | bool) or node.args[1] != nothing):
        return None
    one, two = source.meta.get("val"), node.meta["val"]
    alike = isinstance(one, Tensor) and (one.shape, one.stride(), one.dtype) == (two.shape, two.stride(), two.dtype)
    return source if alike else None


def _linear(graph: fx.Graph, node: Any) -> fx.Node | None:
    """oneDNN's x W + b, and its tanh if that is all that it is for."""
    chain, activation = node, "none"
    if node.target is aten.tanh.default:
        chain, activation = _through(node.args[0]), "tanh"
    if chain.target is not aten.addmm.default or chain.kwargs or not _single(chain.meta["val"]):
        return None
    bias, x, weight = (one for one in chain.args if isinstance(one, fx.Node))
    if weight.target is not aten.t.default or bias.meta["val"].dim() != 1:
        return None
    if activation == "tanh" and ((node.args[0] is not chain and len(chain.users) > 1) or len(node.args[0].users) > 1):
        return None
    users = list(chain.users)
    while len(users) == 1 and users[0].target is aten.view.default:
        users = list(users[0].users)
    if activation == "none" and (chain.meta["val"].shape[1] >= FEW or [u.target for u in users] == [aten.tanh.default]):
        return None
    made = graph.call_function(onednn_layer(), (x, weight.args[0], bias, activation, [-1], ""))
    made.meta["val"] = chain.meta["val"]
    shape = list(node.meta["val"].shape)
    return made if shape == list(chain.meta["val"].shape) else graph.call_function(aten.view.default, (made, shape))


def _through(node: Any) -> Any:
    """Return the node behind a chain of views, each of which has one user; the node itself if it is no such view."""
    while isinstance(node.target, OPERATION) and schema(node.target).name in VIEWS and len(node.users) == 1:
        node = node.args[0]
    return node


def _tanh(graph: fx.Graph, node: Any) -> fx.Node | None:
    if node.target is not aten.tanh.default or not _single(node.meta["val"]):
        return None
    twice = graph.call_function(aten.mul.Tensor, (node.args[0], 2.0))
    chance = graph.call_function(aten.sigmoid.default, (twice,))
    return graph.call_function(aten.rsub.Scalar, (chance, -1.0, -2.0))


def _short_sum(graph: fx.Graph, node: Any) -> fx.Node | None:
    if node.target is not aten.sum.dim_IntList or len(node.args) != 2 or node.kwargs:
        return None
    source: Any = node.args[0]
    value = source.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() < 2 or list(node.args[1]) not in ([-1], [value.dim() - 1]):
        return None
    if not value.is_floating_point() or not 2 <= value.shape[-1] <= SHORT or value.dtype != node.meta["val"].dtype:
        return None
    rows = graph.call_function(aten.reshape.default, (source, [-1, value.shape[-1]]))
    ones = graph.call_function(aten.new_ones.default, (source, [value.shape[-1]]))
    if value.dtype not in (torch.float32, torch.float64):
        return None
    total = graph.call_function(aten.mv.default, (rows, ones))
    return graph.call_function(aten.view.default, (total, list(node.meta["val"].shape)))


def _single(value: Tensor) -> bool:
    return value.dtype == torch.float32 and value.device.type in ("cpu", "meta")


def _bernoulli(graph: fx.Graph, node: Any) -> fx.Node | None:
    found = _cross_entropy(node) if node.target is aten.sum.dim_IntList else None
    return None if found is None else _summed(graph, node, *found)


def _cross_entropy(node: Any) -> tuple[Any, Any] | None:
    """Logits and values of −binary_cross_entropy_with_logits(logits, values) that a node sums over the last dimension."""
    value, dims, *kept = node.args
    if list(dims) != [-1] or kept or node.kwargs or not isinstance(value, fx.Node):
        return None
    value = _through(value)
    if value.target is not aten.neg.default or len(value.users) != 1:
        return None
    entropy: Any = value.args[0]
    if entropy.target is not aten.binary_cross_entropy_with_logits.default or len(entropy.users) != 1:
        return None
    logits, values, *others = entropy.args
    # After the two come a weight and a weight of x = 1, both None, and the reduction, 0 for none.
    if entropy.kwargs or others != [None, None, 0]:
        return None
    one, two, summed = logits.meta["val"], values.meta["val"], node.args[0].meta["val"]
    if one.shape != two.shape or one.dtype != two.dtype or not _product(summed.shape[-1]):
        return None
    return logits, values


def _product(size: int) -> int:
    """The length of the products into which a sum is cut: the largest divisor that is not too long; 0 if it does not pay."""
    most = max(n for n in range(1, min(size, LONGEST) + 1) if size % n == 0) if size else 0
    return most if most >= LEAST else 0


def _summed(graph: fx.Graph, node: Any, logits: Any, values: Any) -> fx.Node:
    shape = list(node.args[0].meta["val"].shape)
    call = graph.call_function
    if list(logits.meta["val"].shape) != shape:
        logits, values = (call(aten.reshape.default, (one, shape)) for one in (logits, values))
    size = call(aten.abs.default, (logits,))
    linear = call(aten.mul.Tensor, (call(aten.sub.Tensor, (values, 0.5)), logits))
    linear = call(aten.sub.Tensor, (linear, size), {"alpha": 0.5})
    linear.meta["val"] = node.args[0].meta["val"]
    linear = call(aten.sum.dim_IntList, (linear, [-1]))
    linear.meta["val"] = node.meta["val"]
    chance, length = call(aten.sigmoid.default, (size,)), _product(shape[-1])
    if length < shape[-1]:
        chance = call(aten.reshape.default, (chance, [*shape[:-1], shape[-1] // length, length]))
    entropy = call(aten.log.default, (call(aten.prod.dim_int, (chance, -1)),))
    if length < shape[-1]:
        entropy = call(aten.sum.dim_IntList, (entropy, [-1]))
    return call(aten.add.Tensor, (linear, entropy))
