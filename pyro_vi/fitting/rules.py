"""The rules of `check`: each is a function from one run of a pair (`View`) to findings.

* `STRUCTURE` are the rules that need no densities: the sites of both programs and their shapes. Where one of them finds an
  error, the others would find its consequences.
* `RULES` are all others; those on values are in `pyro_vi.fitting.values`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from pyro_vi.data import fresh
from pyro_vi.elbo import draws_at_once
from pyro_vi.errors import InputError
from pyro_vi.estimators import instead_of_paths
from pyro_vi.fitting.findings import Finding, Severity, View, data_of, is_factor, is_point, latents_of, number
from pyro_vi.fitting.values import guide_support, observed_support, unknown_support
from pyro_vi.programs import bare, data_plate_of, describe, isolated, kept_buffers, masked_by, support_of

Rule = Callable[[View], Iterator[Finding]]


# Sites and shapes.


def _missing(view: View) -> Iterator[Finding]:
    model, guide = view.model_trace.nodes, view.guide_trace.nodes
    latents = latents_of(view.model_trace)
    for name, node in latents.items():
        marked = node["infer"].get("enumerate")
        if name not in guide and not (marked == "parallel" and view.traits.sums_marked):
            text = f"the guide has no site '{name}', so the latent would be drawn from the prior, without a KL"
            remedy = f"sample '{name}' in the guide" + (", or use the estimator 'enum'" if marked else "")
            yield Finding("missing-in-guide", "error", name, text, remedy)
    for name in latents_of(view.guide_trace):
        if name not in model:
            have = ", ".join(latents) or "none"
            text = f"the guide samples '{name}', which the model does not have (its latent sites: {have})"
            remedy = "rename it, or mark it with infer={'is_auxiliary': True}"
            yield Finding("missing-in-model", "error", name, text, remedy)


def _observed_twice(view: View) -> Iterator[Finding]:
    for name in latents_of(view.guide_trace):
        node = view.model_trace.nodes.get(name)
        if node is not None and node["type"] == "sample" and node["is_observed"]:
            text = (
                f"the guide draws '{name}', which the model observes, so log q counts a draw that the model never uses"
            )
            yield Finding("no-density", "error", name, text, f"leave '{name}' out of the guide")


def _shapes(view: View) -> Iterator[Finding]:
    for name, (node, other) in view.shared.items():
        ours, theirs = (tuple(n["fn"].batch_shape + n["fn"].event_shape) for n in (node, other))
        if _stripped(ours) != _stripped(theirs):
            text = f"one draw of site '{name}' has shape {ours} in the model and {theirs} in the guide"
            yield Finding("shape-mismatch", "error", name, text, "give both the same plates and dimension")
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


def _observed_shape(view: View) -> Iterator[Finding]:
    for name, node in data_of(view.model_trace).items():
        shape, value = node["fn"].batch_shape + node["fn"].event_shape, torch.as_tensor(node["value"]).shape
        try:
            fits = torch.broadcast_shapes(shape, value) == shape
        except RuntimeError:
            fits = False
        if not fits:
            text = (
                f"site '{name}' has shape {tuple(shape)} in the model, but its observed values have shape {tuple(value)}, "
                "so the same numbers count several times"
            )
            yield Finding("observed-shape", "error", name, text, "give the model the width of the data")


# Gradients.


def _reparametrized(view: View) -> Iterator[Finding]:
    if not view.traits.through_draws:
        return
    for name, (_, other) in view.shared.items():
        if not other["fn"].has_rsample:
            text = f"the guide's {describe(other['fn'])} at '{name}' cannot be reparameterised, so its gradient is lost"
            yield Finding("not-reparametrized", "error", name, text, instead_of_paths(other))


def _unregistered(view: View) -> Iterator[Finding]:
    known = {id(p) for p in view.pair.parameters()} | {id(a) for a in view.args}
    foreign = [leaf for leaf in leaves_of(view.terms.loss) if id(leaf) not in known] if view.terms is not None else []
    if foreign:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in foreign[:3])
        text = (
            f"{len(foreign)} tensors that need gradients are not parameters of the pair (shapes {shapes}), "
            "so they never train"
        )
        remedy = "register their network: make it a submodule, or call pyro.module on it in the program"
        yield Finding("unregistered", "error", None, text, remedy)


def leaves_of(value: Tensor) -> Iterator[Tensor]:
    """The tensors with gradients that a result depends on."""
    stack, seen = [value.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack += [before for before, _ in node.next_functions]


def _batch_norm(view: View) -> Iterator[Finding]:
    if view.flat and view.smallest == 1:
        text = "the last batch of an epoch has one row, of which batch norm cannot take a variance"
        yield Finding("batch-norm", "error", None, text, "use another batch_size, or drop_last=True")


# Masks, scales and plates.


def _masks(view: View) -> Iterator[Finding]:
    for name, (node, other) in view.shared.items():
        ours, theirs = masked_by(node), masked_by(other)
        if (ours is None and theirs is None) or is_point(other):
            continue
        a, b = (torch.as_tensor(True if m is None else m, device=node["value"].device).bool() for m in (ours, theirs))
        shape = torch.broadcast_shapes(a.shape, b.shape, node["fn"].batch_shape)
        if not torch.equal(a.expand(shape), b.expand(shape)):
            where = "in the model and the guide by different masks"
            if ours is None or theirs is None:
                where = f"in the {'guide' if ours is None else 'model'} and not in the {'model' if ours is None else 'guide'}"
            text = f"site '{name}' is masked {where}, so that log p and log q are sums over different rows"
            remedy = f"put the same poutine.mask around '{name}' in both"
            if name.endswith("_unobserved") and theirs is None:
                remedy += ": it is ~obs_mask, which the guide 'diag_normal' applies by itself"
            yield Finding("mask-mismatch", "error", name, text, remedy)


def _scales(view: View) -> Iterator[Finding]:
    for name, (node, other) in view.shared.items():
        ours, theirs = torch.broadcast_tensors(*(torch.as_tensor(n["scale"]).double() for n in (node, other)))
        if not is_point(other) and not torch.allclose(ours, theirs, rtol=1e-6):
            text = f"site '{name}' is scaled by {number(ours)} in the model and by {number(theirs)} in the guide"
            remedy = "give both the same plate (size and subsample) and the same poutine.scale"
            yield Finding("scale-mismatch", "error", name, text, remedy)


def _sizes(view: View) -> Iterator[Finding]:
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


def _tensor_monte_carlo(view: View) -> Iterator[Finding]:
    if not view.traits.scale_inside:
        return
    nodes = [n for t in (view.model_trace, view.guide_trace) for n in t.nodes.values() if n["type"] == "sample"]
    for frame in (f for node in nodes for f in node["cond_indep_stack"] if f.size != f.full_size and f.size > 0):
        text = (
            f"'tmc' puts the scale of {frame.size} of {frame.full_size} data inside a logarithm, so the bound is biased"
        )
        yield Finding("tmc-subsampled", "error", None, text, "use full batches, or 'enum' or 'score'")
        return


# What is computed.


def _points(view: View) -> Iterator[Finding]:
    """Guides that put all mass on one value: a MAP estimate, as with AutoDelta."""
    points: dict[str, Tensor] = {
        name: other["value"]
        for name, (node, other) in view.shared.items()
        if isinstance(bare(other["fn"]), Delta) and other["value"].is_floating_point() and not _discrete(node["fn"])
    }
    if not points:
        return
    # The guide of a Delta that depends on another draw has a density.
    with torch.no_grad(), isolated(seed=1, validation=False), kept_buffers(view.pair):
        again = poutine.trace(view.pair.guide).get_trace(*fresh(view.args))
    fixed = [name for name, value in points.items() if bool(torch.as_tensor(value == again.nodes[name]["value"]).all())]
    if fixed:
        names = ", ".join(f"'{name}'" for name in fixed)
        text = (
            f"the guide's Delta puts all mass of {names} on one value, so a fit maximises log p(x, z): a MAP estimate"
        )
        yield Finding("no-density", "note", fixed[0], text, "such a fit has no evidence and no posterior")


def _discrete(fn: Any) -> bool:
    support = support_of(fn)
    return support is not None and bool(support.is_discrete)


def _vectorized(view: View) -> Iterator[Finding]:
    elbo = view.elbo
    wanted = getattr(elbo, "vectorize_particles", False) or getattr(elbo, "vectorize", False)
    if not wanted or getattr(elbo, "num_particles", 1) < 2 or view.run is None:
        return
    with torch.no_grad(), isolated(seed=0, validation=False), kept_buffers(view.pair):
        try:
            fits = draws_at_once(view.pair.model, view.pair.guide, view.args, view.run)
        except InputError:  # a site that is summed out
            return
    if not fits:
        text = "vectorize_particles puts all draws into one run, which gives other numbers than single runs of these programs"
        remedy = "leave vectorize_particles out, or let the programs take a batch dimension on the left"
        yield Finding("not-vectorizable", "error", None, text, remedy)


def _order(view: View) -> Iterator[Finding]:
    if not view.traits.trusts_order:
        return
    shared = list(view.shared)
    guide_order = [name for name in view.guide_trace.nodes if name in shared]
    if guide_order != shared:
        text = f"the guide samples {', '.join(guide_order)}, the model {', '.join(shared)}: an analytic KL may be wrong"
        yield Finding("site-order", "warning", guide_order[0], text, "sample in the model's order, or use 'analytic'")


def _fallback(view: View) -> Iterator[Finding]:
    for name, source in view.terms.sources.items() if view.terms is not None else ():
        if source.reason and name in view.model_trace.nodes:
            text = f"the KL of site '{name}' is sampled, not analytic: {source.reason}"
            remedy = "choose a prior and a guide with a closed form if that matters"
            yield Finding("kl-fallback", "note", name, text, remedy)


STRUCTURE: tuple[Rule, ...] = (_observed_twice, _missing, _shapes)
RULES: tuple[Rule, ...] = (
    _observed_shape,
    observed_support,
    guide_support,
    _reparametrized,
    _masks,
    _scales,
    _sizes,
    _tensor_monte_carlo,
    _unregistered,
    _batch_norm,
    _vectorized,
    _points,
    _order,
    _fallback,
    unknown_support,
)
