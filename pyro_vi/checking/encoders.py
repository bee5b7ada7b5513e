"""Rules of `check` on encoders: the numbers that a guide makes of the data.

They compare the numbers of q on the same draws before and after a small move of all parameters, and for rows in another order.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vi.checking.estimates import apart
from pyro_vi.checking.findings import Finding, View, latents_of
from pyro_vi.data import Batch, changed, tensors_in
from pyro_vi.programs import data_plate_of, moved_parameters, trace_of_guide

MILD = 0.1
"""Largest size of data on which nothing should be saturated."""
STILL = 1e-6
"""Change of a number, relative to it or to 1, up to which it does not move."""
MANY = 0.5
"""Part of the numbers of a site from which it is said to be saturated."""

Numbers = dict[tuple[str, str], Tensor]
"""By site and name of a number of its distribution."""


def saturated(view: View) -> Iterator[Finding]:
    """Numbers of q that no parameter moves on these data, though they do on milder ones: an encoder at its bound."""
    # Without a network, a bound may be the posterior's own: a smoother, or classes that are certain.
    if not any(a.is_floating_point() for a in tensors_in(view.args)) or not _own_networks(view):
        return
    fixed = _unmoved(view, view.args)
    mild = _unmoved(view, changed(view.args, _milder))
    for (site, name), stuck in fixed.items():
        free = mild.get((site, name))
        if free is None or free.shape != stuck.shape or float(free.double().mean()) > 0.1:
            continue
        part = float(stuck.double().mean())
        if part >= MANY:
            text = (
                f"{100 * part:.0f} % of the numbers '{name}' of the guide at '{site}' are at a bound on these data, and have "
                "no gradient there"
            )
            remedy = "standardise the data, or give the encoder's output a wider constraint"
            fine = view.terms is not None and bool(view.terms.loss.isfinite().all())
            yield Finding("saturated", "warning" if fine else "error", site, text, remedy)
            return


def _milder(values: Tensor) -> Tensor:
    largest = float(values.abs().max()) if values.is_floating_point() and values.numel() else 0.0
    return values * (MILD / largest) if largest > MILD else values


def ignores_data(view: View) -> Iterator[Finding]:
    """Encoders that give each datum the same q: amortized in name only."""
    plate, rows = data_plate_of(view.model_trace), view.length
    if plate is None or plate.length != rows or rows < 2 or not _differ(view.args) or not _own_networks(view):
        return
    first = _numbers(view, view.args, move=True)  # a network may start at 0
    local = {
        name
        for name, node in latents_of(view.guide_trace).items()
        if any(f.name == plate.name for f in node["cond_indep_stack"])
    }
    numbers = {key: value for key, value in first.items() if key[0] in local}
    dims = {name: node["fn"].batch_shape for name, node in latents_of(view.guide_trace).items()}
    if not numbers or any(len(dims[site]) < -plate.dim for site, _ in numbers):
        return
    other = changed(view.args, lambda v: v.roll(1, 0) if v.dim() and len(v) == rows else v)
    turned = _numbers(view, other, move=True)
    if all(_same_rows(value, rows) and _equal(value, turned.get(key)) for key, value in numbers.items()):
        sites = ", ".join(f"'{name}'" for name in sorted(local))
        text = f"the guide has a network, and gives all {rows} rows the same q of {sites}, whatever their data are"
        remedy = "give the network the rows of the batch, as in encoder(x), and look at the scale of its input"
        yield Finding("ignores-data", "warning", sorted(local)[0], text, remedy)


def _own_networks(view: View) -> bool:
    """True if the guide runs a network of its own for the numbers of a site."""
    model = {id(p) for p in view.pair.model.parameters()}
    networks = [m for m in view.pair.guide.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.RNNBase))]
    own = [p for m in networks for p in m.parameters(recurse=False) if id(p) not in model and p.requires_grad]
    if not own:
        return False
    with apart(view, gradients=True):
        numbers = [v.sum() for v in _read(trace_of_guide(view.pair.guide, view.args)).values() if v.requires_grad]
        if not numbers:
            return False
        return any(g is not None for g in torch.autograd.grad(torch.stack(numbers).sum(), own, allow_unused=True))


def _differ(args: Batch) -> bool:
    rows = next((a for a in tensors_in(args) if a.dim()), None)
    return rows is not None and not _same_rows(rows, len(rows))


def _same_rows(value: Tensor, rows: int) -> bool:
    along = [i for i, size in enumerate(value.shape) if size == rows]
    return not along or all(_equal(value, value.roll(1, i)) for i in along)


def _equal(one: Tensor, other: Tensor | None) -> bool:
    """True up to rounding, which a mean over rows in another order has."""
    return (
        other is not None
        and one.shape == other.shape
        and torch.allclose(one.double(), other.double(), rtol=1e-5, atol=1e-7)
    )


def _unmoved(view: View, args: Batch) -> Numbers:
    before, after = _numbers(view, args), _numbers(view, args, move=True)
    return {
        key: ~((value - after[key]).abs() > STILL * value.abs().clamp(min=1.0))  # infinite numbers do not move
        for key, value in before.items()
        if key in after and after[key].shape == value.shape
    }


def _numbers(view: View, args: Batch, move: bool = False) -> Numbers:
    """Numbers of the guide's distributions; none if it fails on such data."""
    moved = moved_parameters(view.pair, torch.Generator().manual_seed(1)) if move else nullcontext()
    try:
        with apart(view), moved:
            return {key: value.clone() for key, value in _read(trace_of_guide(view.pair.guide, args)).items()}
    except Exception:  # of a program that takes no other data
        return {}


def _read(trace: Any) -> Numbers:
    found: Numbers = {}
    for name, node in latents_of(trace).items():
        fn = node["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        for number, constraint in fn.arg_constraints.items():
            value = fn.__dict__.get(number)  # of logits and probs, the one that was given
            if isinstance(value, Tensor) and value.is_floating_point() and not _of_matrices(constraint):
                found[name, number] = value
    return found


def _of_matrices(constraint: Any) -> bool:
    try:
        return bool(constraint.event_dim > 1)
    except NotImplementedError:  # of a dependent one
        return False
