"""Rules of `check` on values: data and draws outside the support of a distribution.

The support is taken by values (`pyro_vi.programs.supports`). Where the author of a model wrote ``validate_args=False``, values
outside are meant: a note instead of an error. Entries that a mask leaves out count for nothing.
"""

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor

from pyro_vi.checking.findings import Finding, View, data_of
from pyro_vi.programs import bare, describe, inside, isolated, masked_by, range_of, support_of

DRAWS = 50
"""Draws of a guide that are looked at where its support is no interval."""


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
        if name in view.meant:
            yield Finding("outside-support", "note", name, text, "validate_args=False says that this is meant")
        else:
            remedy = "use another likelihood, or binarise or rescale the data"
            yield Finding("outside-support", "error", name, text, remedy)


def guide_support(view: View) -> Iterator[Finding]:
    """Guides that draw where the prior has no density."""
    for name, (node, other) in view.shared.items():
        if not _wider(node, other):
            continue
        text = (
            f"the guide's {describe(other['fn'])} for site '{name}' has a different support from the model's "
            f"{describe(node['fn'])}, so log p of some draws is -inf or undefined"
        )
        if name in view.meant:
            yield Finding("guide-support", "note", name, text, "validate_args=False says that this is meant")
        else:
            remedy = "use a guide with the model's support, such as 'diag_normal'"
            yield Finding("guide-support", "error", name, text, remedy)


def unknown_support(view: View) -> Iterator[Finding]:
    """Priors that state no support, so that the guide's draws cannot be compared with it."""
    for name, (node, _) in view.shared.items():
        if support_of(node["fn"]) is None:
            text = f"the model's {describe(node['fn'])} at site '{name}' states no support"
            yield Finding(
                "support-unknown", "note", name, text, "make sure that it has a density wherever the guide draws"
            )


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
