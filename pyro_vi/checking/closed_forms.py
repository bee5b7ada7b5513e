"""Rules of `check` on the KL: where its closed form is wrong or missing, and guides of a single point, which have no KL."""

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from pyro_vi.checking.estimates import of_closed_forms
from pyro_vi.checking.findings import Finding, View
from pyro_vi.data import fresh
from pyro_vi.elbo import dependence_of, has_closed_form
from pyro_vi.programs import bare, isolated, kept_buffers, support_of


def points(view: View) -> Iterator[Finding]:
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
        yield Finding(
            "point-estimate",
            "note",
            fixed[0],
            text,
            "for a posterior, sample from a law with a width: dist.Normal(loc, scale)",
        )


def _discrete(fn: Any) -> bool:
    support = support_of(fn)
    return support is not None and bool(support.is_discrete)


def site_order(view: View) -> Iterator[Finding]:
    """Guides that draw in another order of dependence than the model, under closed forms that trust the order."""
    if not view.traits.trusts_order or view.run is None:
        return
    shown: str | None = None
    for name, reason in dependence_of(view.pair, view.args, view.run).items():
        if has_closed_form(view.run, name):
            shown = of_closed_forms(view) if shown is None else shown
            text = f"the closed form of the KL of site '{name}' is wrong: {reason}{shown}"
            yield Finding(
                "site-order", "error", name, text, "use 'analytic' or 'trace', or sample in the model's order"
            )


def fallback(view: View) -> Iterator[Finding]:
    """KLs that are sampled although a closed form was asked for."""
    for name, source in view.terms.sources.items() if view.terms is not None else ():
        if source.reason and name in view.model_trace.nodes:
            text = f"the KL of site '{name}' is sampled, not analytic: {source.reason}"
            remedy = "choose a prior and a guide with a closed form if that matters"
            yield Finding("kl-fallback", "note", name, text, remedy)
