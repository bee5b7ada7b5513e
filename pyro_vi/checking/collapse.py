"""The rule of `check` on scales of a likelihood that can go to 0, so that the ELBO has no maximum.

Mattei and Frellsen (2018, arXiv:1802.04826) show it for a decoder that sets mean and scale of each datum.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vi.checking.estimates import apart
from pyro_vi.checking.findings import Finding, View, data_of
from pyro_vi.elbo import Run, draw_traces
from pyro_vi.programs import Give, describe

PUSHES = (1.0, 10.0, 100.0)
"""Lengths of the steps by which parameters are pushed down the gradient of the scale."""
GONE = 1e-4
"""Part of its first value from which a scale is said to go to 0."""


def unbounded(view: View) -> Iterator[Finding]:
    """Scales that a decoder makes from the latents of a datum, with no lower bound."""
    own = [p for p in view.pair.model.parameters() if p.requires_grad and p.is_floating_point()]
    if view.run is None or not own:
        return
    for name, node in data_of(view.run.model_trace).items():
        scale = _scale_of(node)
        if scale is None or not scale.requires_grad:
            continue
        with apart(view, gradients=True):
            before, after = _pushed(view, name, own)
        if before and after < GONE * before:
            kind = describe(node["fn"])
            text = (
                f"the scale of {kind} at '{name}' depends on latents of each datum and has no lower bound: a push of the "
                f"parameters takes it from {before:.3g} to {after:.3g}, so the ELBO has no maximum"
            )
            remedy = "add a floor to the scale: softplus(raw) + 0.01, or use one scale for all data"
            yield Finding("unbounded", "warning", name, text, remedy)


def _scale_of(node: Any) -> Tensor | None:
    fn = node["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if fn.support is None or getattr(fn.support, "is_discrete", True):
        return None
    value = getattr(fn, "scale", None)
    return value if isinstance(value, Tensor) else None


def _pushed(view: View, name: str, own: list[nn.Parameter]) -> tuple[float, float]:
    """The least scale before and after a push; zeros if it does not depend on the draws of data."""
    assert view.run is not None
    local = [
        value.detach().requires_grad_()
        for site, value in view.run.values.items()
        if site in view.shared and value.is_floating_point() and _in_plate(view, site)
    ]
    names = [s for s, v in view.run.values.items() if s in view.shared and v.is_floating_point() and _in_plate(view, s)]
    if not names:
        return 0.0, 0.0
    given = {**{n: v.detach() for n, v in view.run.values.items()}, **dict(zip(names, local, strict=True))}
    scale = _scale_of(_run(view, given).model_trace.nodes[name])
    if scale is None or not scale.requires_grad:
        return 0.0, 0.0
    downwards = torch.autograd.grad(scale.log().sum(), [*local, *own], allow_unused=True)
    of_draws, of_own = downwards[: len(local)], downwards[len(local) :]
    if not any(g is not None and bool(g.any()) for g in of_draws) or all(g is None for g in of_own):
        return 0.0, 0.0
    before = float(scale.min())
    least = before
    for push in PUSHES:
        with _moved(own, of_own, push), torch.no_grad():
            after = _scale_of(_run(view, given).model_trace.nodes[name])
        if after is not None and bool(after.isfinite().all()):
            least = min(least, float(after.min()))
    return before, least


def _in_plate(view: View, site: str) -> bool:
    return any(f.vectorized for f in view.model_trace.nodes[site]["cond_indep_stack"])


def _run(view: View, values: dict[str, Tensor]) -> Run:
    with Give(values):
        return draw_traces(view.pair.model, view.pair.guide, view.args)


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
