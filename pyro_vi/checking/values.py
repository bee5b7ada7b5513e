"""Rules of `check` on values: data and draws outside the support of a distribution.

The support is taken by values (`pyro_vi.programs.supports`). Where the author of a model wrote ``validate_args=False``, values
outside are meant: a note instead of an error. Entries that a mask leaves out count for nothing.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor

from pyro_vi.checking.encoders import saturated
from pyro_vi.checking.findings import Finding, View, data_of
from pyro_vi.programs import bare, describe, inside, isolated, masked_by, range_of, support_of
from pyro_vi.support import leaves_of

DRAWS = 50
"""Draws of a guide that are looked at where its support is no interval."""
LEAST = 12
"""Fewest values that are recognised as counts."""


def observed_support(view: View) -> Iterator[Finding]:
    """Observed values where the likelihood has no density."""
    for name, node in data_of(view.model_trace).items():
        good = _inside(node, node["value"])
        if good is None or bool(good.all()):
            continue
        kind = describe(bare(node["fn"]))
        text = (
            f"{int((~good).sum())} of {good.numel()} observed values of site '{name}' are outside the support of {kind}, "
            "where the likelihood is not a density"
        )
        remedy = "use a likelihood for such data, or change them: (x > 0.5).float()"
        yield _unless_meant(view, Finding("outside-support", "error", name, text, remedy))


def guide_support(view: View) -> Iterator[Finding]:
    """Guides that draw where the prior has no density."""
    for name, (node, other) in view.shared.items():
        if not _wider(node, other):
            continue
        text = (
            f"the guide's {describe(other['fn'])} for site '{name}' has a different support from the model's "
            f"{describe(node['fn'])}, so log p of some draws is -inf or undefined"
        )
        remedy = "use a guide with the model's support, such as 'diag_normal'"
        yield _unless_meant(view, Finding("guide-support", "error", name, text, remedy))


def _unless_meant(view: View, found: Finding) -> Finding:
    """The finding; a note if the distribution of its site is not to be validated."""
    if found.site not in view.meant:
        return found
    return replace(found, severity="note", remedy="validate_args=False says that this is meant")


def unknown_support(view: View) -> Iterator[Finding]:
    """Priors that state no support, so that the guide's draws cannot be compared with it."""
    for name, (node, _) in view.shared.items():
        if support_of(node["fn"]) is None:
            text = f"the model's {describe(node['fn'])} at site '{name}' states no support"
            yield Finding(
                "support-unknown", "note", name, text, "make sure that it has a density wherever the guide draws"
            )


def counts(view: View) -> Iterator[Finding]:
    """Counts under a density, which can be as narrow as it likes around whole numbers."""
    for name, node in data_of(view.model_trace).items():
        support, values = support_of(node["fn"]), torch.as_tensor(node["value"])
        if support is None or support.is_discrete or not _are_counts(values):
            continue
        kind = describe(bare(node["fn"]))
        text = (
            f"the {values.numel()} observed values of site '{name}' are whole numbers from 0 to {int(values.max())}, and "
            f"{kind} is a density: its ELBO compares with that of no distribution of counts"
        )
        yield Finding(
            "counts", "note", name, text, "use dist.Poisson, dist.NegativeBinomial or dist.Binomial for counts"
        )


def _are_counts(values: Tensor) -> bool:
    if values.numel() < LEAST or bool((values < 0).any()) or bool((values != values.round()).any()):
        return False
    found, often = values.unique(return_counts=True)
    return len(found) > 2 and not float(found[0]) and int(often.max()) >= max(3, values.numel() / 10)


def not_finite(view: View) -> Iterator[Finding]:
    """Terms that are not finite, or whose gradient is not, though data and draws are in their supports."""
    found = list(_not_finite(view))
    yield from (list(saturated(view)) if found else []) or found  # an encoder at its bound is the cause


def _not_finite(view: View) -> Iterator[Finding]:
    if view.terms is None or view.run is None:
        return
    for what, trace in (("log p", view.run.model_trace), ("log q", view.run.guide_trace)):
        for name, node in trace.nodes.items():
            if node["type"] == "sample" and not bool(node["log_prob"].isfinite().all()):
                bad = ~node["log_prob"].isfinite()
                where = f" at {tuple(bad.nonzero()[0].tolist())}" if bad.dim() else ""
                text = (
                    f"{what} of site '{name}' is {float(node['log_prob'].detach()[bad][0]):g}{where}: {_numbers(node)}"
                )
                yield Finding(
                    "not-finite", "error", name, text, "keep scales and rates away from 0: add 1e-6, or softplus"
                )
                return
    names = {id(p): name for name, p in view.pair.named_parameters()}
    leaves = list(leaves_of(view.terms.loss)) if bool(view.terms.loss.isfinite()) else []
    gradients = torch.autograd.grad(view.terms.loss, leaves, retain_graph=True, allow_unused=True) if leaves else ()
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None and not bool(gradient.isfinite().all()):
            name = names.get(id(leaf), "a tensor")
            text = f"the loss is {float(view.terms.loss.detach()):.3f}, and its gradient of '{name}' is not finite"
            remedy = "look for the square root, norm or logarithm of 0, and for a torch.where that hides a NaN"
            yield Finding("not-finite", "error", None, text, remedy)
            return


def _numbers(node: Any) -> str:
    """The numbers of a site's distribution, each from its least to its greatest."""
    fn = node["fn"]
    while not fn.arg_constraints and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    parts = []
    for name in fn.arg_constraints:
        value = getattr(fn, name, None)
        if isinstance(value, Tensor) and value.numel() and value.is_floating_point():
            value = value.detach()
            parts.append(f"{name} from {float(value.min()):g} to {float(value.max()):g}")
    return f"{describe(fn)} with {', '.join(parts)}" if parts else describe(fn)


def _wider(node: Any, other: Any) -> bool:
    """True if the guide draws outside the prior's support, or could: by this draw, the intervals of both, or more draws."""
    p, q = node["fn"], other["fn"]
    good = _inside(node, node["value"])
    if good is not None and not bool(good.all()):
        return True
    if good is None or isinstance(bare(q), Delta):  # a Delta claims all reals, whatever it is the value of
        return False
    ours, theirs = range_of(p), range_of(q)
    if ours is not None and theirs is not None:
        return not ours.covers(theirs)
    if ours is not None and bool((ours.low.isinf() & ours.high.isinf()).all()):
        return False
    with torch.no_grad(), isolated(seed=0):
        try:
            good = _inside(node, q.sample((DRAWS,)))
        except (NotImplementedError, RuntimeError, ValueError):
            return False
    return good is not None and not bool(good.all())


def _inside(node: Any, value: Any) -> Tensor | None:
    """True for each value that has a density, or that the mask of its site leaves out."""
    good = inside(node["fn"], value)
    mask = masked_by(node)
    return good if good is None or mask is None else good | ~torch.as_tensor(mask, device=good.device).bool()
