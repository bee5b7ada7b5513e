"""Rules of `check` on gradients: what cannot be differentiated, and what never trains."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pyro_vi.checking.estimates import apart
from pyro_vi.checking.findings import Finding, View, is_point
from pyro_vi.elbo import Run, draw_traces, from_run
from pyro_vi.estimators import instead_of_paths
from pyro_vi.programs import Give, Pair, describe
from pyro_vi.support import leaves_of

AGAIN = 10
"""Draws on which a parameter must have no part in the loss."""


def reparametrized(view: View) -> Iterator[Finding]:
    """Draws that have no pathwise gradient, under an estimator that goes through them."""
    if not view.traits.through_draws:
        return
    for name, (_, other) in view.shared.items():
        if not other["fn"].has_rsample:
            text = f"the guide's {describe(other['fn'])} at '{name}' cannot be reparameterised, so its gradient is lost"
            yield Finding("not-reparametrized", "error", name, text, instead_of_paths(other))


def unregistered(view: View) -> Iterator[Finding]:
    """Networks that the programs use and do not register."""
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


def no_gradient(view: View) -> Iterator[Finding]:
    """Latents that change log p of other sites, and get no gradient from them."""
    drawn = {name: other for name, (_, other) in view.shared.items() if other["fn"].has_rsample and not is_point(other)}
    if view.run is None or not drawn or getattr(view.elbo, "gradient", "") == "score":
        return
    leaves = {name: other["value"].detach().requires_grad_() for name, other in drawn.items()}
    with apart(view, gradients=True):
        run = _given(view, leaves)
        cut = [name for name, leaf in leaves.items() if not _reaches(_others(run, name), leaf)]
    for name in cut:
        with apart(view):
            before = float(_others(_given(view, leaves), name))
        with apart(view, 1):
            again = float(_others(_given(view, leaves), name))
        with apart(view):
            after = float(_others(_given(view, {**leaves, name: _moved(leaves[name].detach())}), name))
        # A program that draws more than its sites has another value each time.
        if again == before and abs(after - before) > 1e-6 * max(1.0, abs(before)):
            text = (
                f"log p of the other sites depends on '{name}' ({before:.3f} at one draw, {after:.3f} at another), "
                "and its gradient does not reach the draw"
            )
            remedy = f"leave out what cuts it ('{name}'.detach(), torch.no_grad(), round, argmax), or use 'score'"
            yield Finding("no-gradient", "error", name, text, remedy)


def _reaches(value: Tensor, leaf: Tensor) -> bool:
    if not value.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(value, [leaf], allow_unused=True, retain_graph=True)
    return gradient is not None and bool(gradient.any())


def _given(view: View, values: dict[str, Tensor]) -> Run:
    with Give({**_all(view), **values}):
        return draw_traces(view.pair.model, view.pair.guide, view.args)


def _all(view: View) -> dict[str, Tensor]:
    assert view.run is not None
    return {name: value.detach() for name, value in view.run.values.items() if name not in view.run.subsamples}


def _others(run: Run, name: str) -> Tensor:
    """log p of all sites but one."""
    parts = [n["log_prob"].sum() for k, n in run.model_trace.nodes.items() if n["type"] == "sample" and k != name]
    return torch.stack([torch.as_tensor(part).double() for part in parts]).sum() if parts else torch.zeros(())


def _moved(value: Tensor) -> Tensor:
    """A value in the same support that differs: the same numbers in another order, if they differ, else other ones."""
    turned = value.flatten().roll(1).reshape(value.shape)
    return turned if not torch.equal(turned, value) else value * 1.5


def idle(view: View) -> Iterator[Finding]:
    """Parameters that the loss does not depend on."""
    if view.terms is None or view.run is None or _has_baseline(view):
        return
    reached, ran = {id(leaf) for leaf in leaves_of(view.terms.loss)}, _ran(view)
    found = {
        id(parameter): name
        for name, parameter in _candidates(view.pair, ran)
        if parameter.requires_grad and id(parameter) not in reached
    }
    for seed in range(1, AGAIN if found else 0):  # a program may choose by chance what it uses
        with apart(view, seed, gradients=True):
            run = draw_traces(view.pair.model, view.pair.guide, view.args)
            again = {id(leaf) for leaf in leaves_of(from_run(run, view.length, kl="sampled").loss)}
        found = {key: name for key, name in found.items() if key not in again}
    names = list(found.values())
    if names:
        listed = ", ".join(f"'{name}'" for name in names[:3]) + (
            f" and {len(names) - 3} more" if len(names) > 3 else ""
        )
        text = f"on this batch the loss does not depend on {listed} of {len(list(view.pair.parameters()))} parameters"
        remedy = "use them in a distribution, or leave them out; look for detach() and torch.no_grad()"
        yield Finding("idle-parameter", "warning", None, text, remedy)


def _candidates(pair: Pair, ran: set[int]) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of the guide, and those of the model but for networks that do not run, which may be of another guide."""
    of_model = {id(p) for p in pair.model.parameters()}
    for owner, program in (("guide", pair.guide), ("model", pair.model)):
        for prefix, module in program.named_modules():
            shared = owner == "model" or any(id(p) in of_model for p in module.parameters(recurse=False))
            container = type(module) is nn.Module or module is program
            if shared and not container and id(module) not in ran:
                continue
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{prefix}.{name}".lstrip("."), parameter


def _ran(view: View) -> set[int]:
    """The modules that are called in a run."""
    found: set[int] = set()
    hooks = [m.register_forward_pre_hook(lambda m, _: found.add(id(m))) for m in view.pair.modules()]
    try:
        with apart(view):
            draw_traces(view.pair.model, view.pair.guide, view.args)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _has_baseline(view: View) -> bool:
    return any("baseline" in (n.get("infer") or {}) for n in view.guide_trace.nodes.values() if n["type"] == "sample")
