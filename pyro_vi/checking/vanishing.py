"""Rules of `check` on scales of a likelihood that can go to 0, so that the ELBO has no maximum.

Mattei and Frellsen (2018, arXiv:1802.04826) show it for a decoder that sets mean and scale of each datum; for the scales of a
mixture's components it is as old as maximum likelihood. Of one scale for all data the data themselves are the bound, unless a
feature of them is the same number in each row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vi.checking.estimates import apart
from pyro_vi.checking.findings import Finding, View, data_of, latents_of
from pyro_vi.elbo import draw_traces
from pyro_vi.programs import Give, Values, describe, moved_parameters
from pyro_vi.support import leaves_of

PUSHES = (1.0, 10.0, 100.0)
"""Lengths of the steps by which parameters are pushed down the gradient of the scale."""
GONE = 1e-4
"""Part of its first value from which a scale is said to go to 0."""
LEAST = 10
"""Fewest rows of which a feature is said to be constant."""


def unbounded(view: View) -> Iterator[Finding]:
    """Scales with no lower bound that a model makes from the latents of a datum, or for a feature that is constant."""
    own = [p for p in view.pair.model.parameters() if p.requires_grad and p.is_floating_point()]
    if view.run is None or not own:
        return
    for name, node in data_of(view.run.model_trace).items():
        scale = _scale_of(node)
        if scale is None or not scale.requires_grad:
            continue
        constant = _constant(node, scale)
        with apart(view, gradients=True):
            if constant is None and not _follows_latents(view, name):
                continue
            before, after = _pushed(view, name, own, constant)
        if after < GONE * before:
            why = "depends on latents of each datum" if constant is None else "has a feature to itself that is constant"
            text = (
                f"the scale of {describe(node['fn'])} at '{name}' {why}, and has no lower bound: a push of the parameters "
                f"takes it from {before:.3g} to {after:.3g}, so the ELBO has no maximum"
            )
            remedy = "add a floor to the scale (softplus(raw) + 0.01), or use one scale for all data"
            yield Finding("unbounded", "warning", name, text, remedy)


def _scale_of(node: Any) -> Tensor | None:
    fn = node["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if getattr(fn.support, "is_discrete", True):
        return None
    value = getattr(fn, "scale", None)
    return value if isinstance(value, Tensor) else None


def _constant(node: Any, scale: Tensor) -> Tensor | None:
    """True for each feature that is the same number in all rows and has a scale of its own; None if there is none."""
    value = torch.as_tensor(node["value"])
    if value.dim() < 2 or len(value) < LEAST or scale.shape != value.shape:
        return None
    same = (value == value[:1]).all(0)
    each = scale.detach()
    shared = bool((each[0] == each[0].flatten()[0]).all()) and bool((each == each[:1]).all()) and not _separate(scale)
    return same if bool(same.any()) and not bool(same.all()) and not shared else None


def _separate(scale: Tensor) -> bool:
    """True if a feature's scale has numbers of its own among the parameters, as in a vector of scales."""
    leaves = [leaf for leaf in leaves_of(scale) if leaf.requires_grad]
    ends = (scale.flatten(1)[0, 0], scale.flatten(1)[0, -1])
    first, last = (torch.autograd.grad(end, leaves, retain_graph=True, allow_unused=True) for end in ends)
    return any(
        one is not None and two is not None and not torch.equal(one, two) for one, two in zip(first, last, strict=True)
    )


def _local(view: View) -> dict[str, Tensor]:
    assert view.run is not None
    return {
        name: view.run.values[name].detach()
        for name, node in latents_of(view.run.model_trace).items()
        if name in view.run.values and any(f.vectorized for f in node["cond_indep_stack"])
    }


def _follows_latents(view: View, name: str) -> bool:
    """True if other draws of the latents of data give another scale."""
    local, given = _local(view), _given(view)
    if not local:
        return False
    scales = []
    for turned in (False, True):
        changed = {k: (v.flatten().roll(1).reshape(v.shape) if turned else v) for k, v in local.items()}
        # Scales that start equal may be different numbers.
        with torch.no_grad(), moved_parameters(view.pair.model, torch.Generator().manual_seed(1)):
            scales.append(_scale(view, {**given, **changed}, name))
    return scales[0] is not None and scales[1] is not None and not torch.equal(scales[0], scales[1])


def _given(view: View) -> Values:
    assert view.run is not None
    return {name: value.detach() for name, value in view.run.values.items()}


def _scale(view: View, values: Values, name: str) -> Tensor | None:
    with Give(values):
        return _scale_of(draw_traces(view.pair.model, view.pair.guide, view.args).model_trace.nodes[name])


def _pushed(view: View, name: str, own: list[nn.Parameter], constant: Tensor | None) -> tuple[float, float]:
    """The least scale before and after a push of the model's parameters; of constant features alone, if there are some."""
    given = _given(view)

    def chosen(scale: Tensor) -> Tensor:
        return scale if constant is None else scale[:, constant]

    scale = _scale(view, given, name)
    assert scale is not None
    gradients = torch.autograd.grad(chosen(scale).log().sum(), own, allow_unused=True)
    before = least = float(chosen(scale).detach().min())
    for push in PUSHES if any(g is not None for g in gradients) else ():
        with _moved(own, gradients, push), torch.no_grad():
            after = _scale(view, given, name)
        if after is not None and bool(after.isfinite().all()):
            least = min(least, float(chosen(after).min()))
    return before, least


@contextmanager
def _moved(parameters: list[nn.Parameter], gradients: tuple[Tensor | None, ...], push: float) -> Iterator[None]:
    before = [p.detach().clone() for p in parameters]
    largest = max(float(g.abs().max()) for g in gradients if g is not None and g.numel()) or 1.0
    try:
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(push * gradient / largest)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
