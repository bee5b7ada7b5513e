"""Rules of `check` on sites: those that one program has and the other lacks, and their shapes."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions.util import broadcast_shape
from pyro.util import check_site_shape

from pyro_vi.checking.findings import Finding, View, data_of, is_factor, latents_of
from pyro_vi.programs import data_frame


def missing(view: View) -> Iterator[Finding]:
    """Latents that one program has and the other lacks."""
    model, guide = view.model_trace.nodes, view.guide_trace.nodes
    latents = latents_of(view.model_trace)
    unknown = [name for name in latents_of(view.guide_trace) if name not in model]
    lacking = {
        name: node["infer"].get("enumerate")
        for name, node in latents.items()
        if name not in guide and not (node["infer"].get("enumerate") == "parallel" and view.traits.sums_marked)
    }
    renamed = unknown[0] if len(unknown) == len(lacking) == 1 else None
    for name, marked in lacking.items():
        text = f"the guide has no site '{name}', so the latent would be drawn from the prior, without a KL"
        remedy = f"write pyro.sample('{name}', ...) in the guide" + (", or use the estimator 'enum'" if marked else "")
        if renamed is not None:
            remedy += f", where '{renamed}' is no site of the model"
        yield Finding("missing-in-guide", "error", name, text, remedy)
    for name in unknown if renamed is None else ():
        have = ", ".join(latents) or "none"
        text = f"the guide samples '{name}', which the model does not have (its latent sites: {have})"
        yield Finding(
            "missing-in-model", "error", name, text, "rename it, or mark it with infer={'is_auxiliary': True}"
        )


def observed_twice(view: View) -> Iterator[Finding]:
    """Draws of the guide that the model observes."""
    for name in latents_of(view.guide_trace):
        node = view.model_trace.nodes.get(name)
        if node is not None and node["type"] == "sample" and node["is_observed"]:
            text = (
                f"the guide draws '{name}', which the model observes, so log q counts a draw that the model never uses"
            )
            yield Finding("no-density", "error", name, text, f"leave '{name}' out of the guide")


def shapes(view: View) -> Iterator[Finding]:
    """Latents of different shapes."""
    for name, (node, other) in view.shared.items():
        ours, theirs = (tuple(n["fn"].batch_shape + n["fn"].event_shape) for n in (node, other))
        if _stripped(ours) != _stripped(theirs):
            text = f"one draw of site '{name}' has shape {ours} in the model and {theirs} in the guide"
            yield Finding(
                "shape-mismatch", "error", name, text, "give both the same plates and the same .to_event(...)"
            )
        elif len(node["fn"].event_shape) != len(other["fn"].event_shape):
            text = (
                f"one draw of site '{name}' has {len(node['fn'].event_shape)} event dimensions in the model and "
                f"{len(other['fn'].event_shape)} in the guide"
            )
            yield Finding("shape-mismatch", "error", name, text, "call to_event in both programs, or in neither")


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape[:1] == (1,):  # dimensions of size 1 on the left broadcast
        shape = shape[1:]
    return shape


def guide_of_densities(trace: Any) -> Iterator[Finding]:
    """Guides that observe a site or have a factor: what they leave is no density of the latent sites."""
    auxiliary = any(
        n["type"] == "sample" and n["infer"].get("is_auxiliary") and not is_factor(n) for n in trace.nodes.values()
    )
    for name in data_of(trace):
        text = f"the guide observes '{name}', so that its log q is no log-density of the latent sites"
        yield Finding("no-density", "error", name, text, "observe it in the model only")
    for name, node in trace.nodes.items():
        # With an auxiliary site, a factor may be the Jacobian of the map from that site.
        if is_factor(node) and not auxiliary:
            text = f"the guide has a factor '{name}', so that its log q is no log-density of the latent sites"
            remedy = "leave it out, put it into the model, or state a Jacobian as log_density of a Delta"
            yield Finding("no-density", "error", name, text, remedy)


def observed_shape(view: View) -> Iterator[Finding]:
    """Data that broadcast against their likelihood."""
    for name, node in data_of(view.model_trace).items():
        shape, value = node["fn"].batch_shape + node["fn"].event_shape, torch.as_tensor(node["value"]).shape
        try:
            fits = broadcast_shape(shape, value) == shape
        except ValueError:
            fits = False
        if fits:
            continue
        part = next((f for f in node["cond_indep_stack"] if f.vectorized and f.size != f.full_size), None)
        text = f"site '{name}' has shape {tuple(shape)} in the model, but its observed values have shape {tuple(value)}"
        if part is not None and part.full_size in value:
            text += f": plate '{part.name}' draws {part.size} of {part.full_size} rows"
            yield Finding("observed-shape", "error", name, text, "observe the rows that the plate gives: obs=x[rows]")
        else:
            text += (
                ", so one prediction counts for several values" if _broadcast(shape, value) else ", which do not fit"
            )
            yield Finding("observed-shape", "error", name, text, "give the model the width of the data")


def _broadcast(*shapes: tuple[int, ...]) -> bool:
    try:
        broadcast_shape(*shapes)
    except ValueError:
        return False
    return True


def plates(view: View) -> Iterator[Finding]:
    """Latents of each datum that the guide samples in a plate of another name."""
    frame = data_frame(view.model_trace)
    for name, (node, other) in view.shared.items() if frame is not None else ():
        ours, theirs = ({f.dim: f.name for f in n["cond_indep_stack"] if f.vectorized} for n in (node, other))
        found = theirs.get(frame.dim)
        if ours.get(frame.dim) == frame.name and found not in (None, frame.name):
            text = f"site '{name}' is in plate '{frame.name}' in the model and in plate '{found}' in the guide"
            remedy = f"write pyro.plate('{frame.name}', ...) in both, so that the terms of a datum belong together"
            yield Finding("plate-mismatch", "error", name, text, remedy)


def nesting(view: View) -> Iterator[Finding]:
    """An estimator that was told, or has found out elsewhere, that plates nest less deeply than here."""
    known: Any = getattr(view.elbo, "max_plate_nesting", math.inf)
    nodes = [n for t in (view.model_trace, view.guide_trace) for n in t.nodes.values() if n["type"] == "sample"]
    deepest = max((-f.dim for node in nodes for f in node["cond_indep_stack"] if f.vectorized), default=0)
    if known < deepest:
        kind = type(view.elbo).__name__
        text = f"this {kind} takes plates to be {known} deep, and those of the pair are {deepest} deep"
        remedy = f"use a new one for each pair: {kind}(max_plate_nesting={deepest})"
        yield Finding("other-nesting", "error", None, text, remedy)


def undeclared(view: View) -> Iterator[Finding]:
    """Pyro's own check of shapes, which is off in a fit: each batch dimension must be that of a plate."""
    most: Any = getattr(view.elbo, "max_plate_nesting", math.inf)
    for trace in (view.model_trace, view.guide_trace):
        for name, node in trace.nodes.items():
            if node["type"] != "sample":
                continue
            try:
                check_site_shape(node, most)
            except ValueError:
                there = [f"{f.name} ({f.size})" for f in node["cond_indep_stack"] if f.vectorized]
                text = (
                    f"site '{name}' has log-densities of shape {tuple(node['log_prob'].shape)}, "
                    f"which its plates do not declare: {', '.join(there) or 'it has none'}"
                )
                remedy = "write .to_event(1) after the distribution, or put the site into a pyro.plate for each batch dimension"
                yield Finding("undeclared-dimension", "error", name, text, remedy)
                return
