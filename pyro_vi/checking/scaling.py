"""Rules of `check` on masks, scales and plates: how often each datum and each latent counts."""

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions.util import broadcast_shape

from pyro_vi.checking.estimates import of_closed_forms
from pyro_vi.checking.findings import Finding, Severity, View, data_of, is_point, latents_of, number
from pyro_vi.programs import data_plate_of, masked_by


def masks(view: View) -> Iterator[Finding]:
    """Latents that are masked in one program only."""
    shown: str | None = None
    for name, (node, other) in view.shared.items():
        ours, theirs = masked_by(node), masked_by(other)
        if (ours is None and theirs is None) or is_point(other):
            continue
        a, b = (torch.as_tensor(True if m is None else m, device=node["value"].device).bool() for m in (ours, theirs))
        shape = broadcast_shape(a.shape, b.shape, node["fn"].batch_shape)
        if not torch.equal(a.expand(shape), b.expand(shape)):
            where = "in the model and the guide by different masks"
            if ours is None or theirs is None:
                where = f"in the {'guide' if ours is None else 'model'} and not in the {'model' if ours is None else 'guide'}"
            shown = of_closed_forms(view) if shown is None else shown
            text = f"site '{name}' is masked {where}, so that log p and log q are sums over different rows{shown}"
            remedy = f"put the same poutine.mask around '{name}' in both"
            if name.endswith("_unobserved") and theirs is None:
                remedy += ": it is ~obs_mask, which the guide 'diag_normal' applies by itself"
            yield Finding("mask-mismatch", "error", name, text, remedy)


def scales(view: View) -> Iterator[Finding]:
    """Latents that are scaled in one program only."""
    shown: str | None = None
    for name, (node, other) in view.shared.items():
        ours, theirs = torch.broadcast_tensors(*(torch.as_tensor(n["scale"]).double() for n in (node, other)))
        if not is_point(other) and not torch.allclose(ours, theirs, rtol=1e-6):
            shown = of_closed_forms(view) if shown is None else shown
            text = f"site '{name}' is scaled by {number(ours)} in the model and by {number(theirs)} in the guide{shown}"
            remedy = "give both the same plate (size and subsample) and the same poutine.scale"
            yield Finding("scale-mismatch", "error", name, text, remedy)


def sizes(view: View) -> Iterator[Finding]:
    """Latents that are shared by all data under a plate, or under no plate, whose size is not the number of data."""
    total, data = view.num_data, data_of(view.model_trace)
    if total is None or not data:
        return
    plate = data_plate_of(view.model_trace)
    frames = [f for node in data.values() for f in node["cond_indep_stack"]]
    rows, size = view.length, view.length
    if plate is not None:
        rows, size = plate.length, plate.size
    # Where the programs get all rows, nothing is taken for a part of them unless a plate says so of these very rows.
    whole = view.length >= total
    own = (
        plate is not None and view.run is not None and plate.name in view.run.subsamples
    )  # a minibatch that the model draws
    if whole and (size == rows or own):
        return
    if size == total or any(f.full_size == total and not f.vectorized for f in frames) or _scaled(data, total / rows):
        return
    for name, node in latents_of(view.model_trace).items():
        if plate is not None and any(f.name == plate.name for f in node["cond_indep_stack"]):
            continue
        if size == rows < total:
            text = (
                f"'{name}' is shared by all {total} data, but a batch of {rows} counts as all of them, "
                "so its posterior would be too wide"
            )
            remedy = f"write the plate as pyro.plate('data', {total}, subsample=...)"
            yield Finding("batch-as-all", "error", name, text, remedy)
        elif plate is not None and size > rows:
            text = (
                f"'{name}' is shared by all {total} data, but plate '{plate.name}' counts each batch as {size} data, "
                f"so its posterior would be too {'narrow' if size > total else 'wide'}"
            )
            severity: Severity = "warning" if whole else "error"  # the rows may be meant as a part of a larger set
            yield Finding("plate-size", severity, name, text, f"give the plate the size {total}")


def _scaled(data: dict[str, Any], factor: float) -> bool:
    """True if a `pyro.poutine.scale` has the part of the plate."""
    scales = [torch.as_tensor(node["scale"]).double() for node in data.values()]
    return all(bool(((scale / factor - 1).abs() < 1e-6).all()) for scale in scales)
