"""Sites at which a closed form of the KL is not the KL term of the ELBO, and why; all who take a closed form ask here.

* `refused` are the sites of one run whose KL has to be sampled: model and guide scale, mask or shape them differently, or
  depend on each other in another order.
* `by_dependence` finds the last of these once for a pair of programs, `dependence_of` once for a `Pair` and its sites.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import detach_provenance, get_provenance
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vi.data import Batch, fresh
from pyro_vi.elbo.traces import Run
from pyro_vi.programs import Give, Pair, Program, kept_buffers, role_of
from pyro_vi.support import kept_generators
from pyro_vi.support.private import Missing
from pyro_vi.support.pyro_internals import mask_of

Reasons = Mapping[str, str]
"""By site, the reason why its KL is sampled."""

_KNOWN: WeakKeyDictionary[Pair, dict[Any, Reasons]] = WeakKeyDictionary()


def refused(run: Run, dependence: Reasons) -> dict[str, str]:
    """Sites of a run whose KL has to be sampled, with the reason; ``dependence`` are the reasons of `by_dependence`."""
    reasons = dict(dependence)
    for name, node in run.model_trace.nodes.items():
        other = run.guide_trace.nodes.get(name)
        if node["type"] == "sample" and not node["is_observed"] and other is not None:
            reason = apart(node, other)
            if reason:
                reasons[name] = reason
    return reasons


def apart(node: Any, other: Any) -> str:
    """The way in which model and guide treat a site differently, so that a closed form has no one factor; else empty."""
    try:
        masks = [m for m in (_own_mask(node["fn"]), _own_mask(other["fn"])) if m is not None]
    except Missing as error:
        return f"its mask cannot be seen: {error}"
    if not same(node["scale"], other["scale"]):
        return "model and guide scale it differently"
    if not same(_given_mask(node), _given_mask(other)) or (len(masks) == 2 and not same(*masks)):
        return "model and guide mask it differently"
    return ""


def has_closed_form(run: Run, name: str) -> bool:
    """True if there is a closed form of a site's KL, right or not."""
    try:
        kl_divergence(run.guide_trace.nodes[name]["fn"], run.model_trace.nodes[name]["fn"])
    except NotImplementedError:
        return False
    return True


def dependence_of(pair: Pair, args: Batch, run: Run) -> Reasons:
    """`by_dependence` of a pair that is bound already, found once for the sites of ``run``."""
    names = shared(run)
    if len(names) < 2:
        return {}
    key = names, tuple(type(a) for a in args)
    known = _KNOWN.setdefault(pair, {})
    if key not in known:
        known[key] = by_dependence(pair.model, pair.guide, args)
    return known[key]


def shared(run: Run) -> tuple[str, ...]:
    """The latent sites of a run that both programs have; of fewer than two none depends on another."""
    return tuple(name for name, _ in _drawn(run.model_trace) if name in run.guide_trace.nodes)


def by_dependence(model: Program, guide: Program, args: tuple[Any, ...]) -> Reasons:
    """Sites at which an analytic KL is wrong: z whose prior depends on a latent that the guide draws given z.

    There E_q of the closed form is over draws that depend on z. Dependence is found from the values, by tracking which draws
    enter the density of which site, and not from the order of the statements. The order decides where values cannot be
    tracked. The model runs on the guide's draws. The generators are as before afterwards, and the buffers too.
    """
    flag = pyro.settings.get("validate_distributions_torch")
    with (
        pyro.settings.context(validate_distributions_torch=flag),  # Pyro's own look-up leaves another in its place
        pyro.validation_enabled(False),
        kept_generators(),
        kept_buffers(model),
        kept_buffers(guide),
        torch.no_grad(),
        poutine.block(),
    ):
        theirs, given = _parents(guide, fresh(args), {})
        ours, _ = _parents(model, fresh(args), given)
    found = {}
    for name in ours.keys() & theirs.keys():
        later = {other for other in theirs if name in _ancestors(other, theirs)}
        clash = sorted(ours[name] & later)
        if clash:
            found[name] = f"its prior depends on '{clash[0]}', which the guide draws given '{name}'"
    return found


def _parents(program: Program, args: tuple[Any, ...], given: dict[str, Tensor]) -> tuple[dict[str, set[str]], Any]:
    """By latent site, the latents that enter its density; and the values of all of them."""
    tracked = True
    try:
        with TrackProvenance(), Give(given):
            trace = poutine.trace(program).get_trace(*args)
    except Exception:  # torch's own code does not always accept tracked tensors
        tracked = False
        with Give(given):
            trace = poutine.trace(program).get_trace(*args)
    parents: dict[str, set[str]] = {}
    for name, node in _drawn(trace):
        before = set(parents)
        try:
            entering = get_provenance(node["fn"].log_prob(node["value"])) if tracked else before
        except Exception:  # a density that is known only with its draw
            entering = before
        parents[name] = set(entering) - {name}
    return parents, {name: detach_provenance(node["value"]) for name, node in _drawn(trace)}


def _drawn(trace: Any) -> Iterator[tuple[str, Any]]:
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not node["is_observed"] and role_of(node) != "subsample":
            yield name, node


def _ancestors(name: str, parents: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    stack = list(parents.get(name, ()))
    while stack:
        one = stack.pop()
        if one not in seen:
            seen.add(one)
            stack += parents.get(one, ())
    return seen


def _given_mask(node: Any) -> Any:
    return True if node["mask"] is None else node["mask"]


def _own_mask(fn: Any) -> Any:
    # A closed form can handle the mask of one distribution (pyro_vi.elbo.kl), but with two masks it keeps only what both keep.
    while fn is not None and not isinstance(fn, MaskedDistribution):
        fn = getattr(fn, "base_dist", None)
    return None if fn is None else mask_of(fn)


def same(ours: Any, theirs: Any) -> bool:
    """True if two scales or masks, numbers or tensors, are equal after broadcasting."""
    if ours is theirs:
        return True
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=1e-12)
    ours, theirs = torch.broadcast_tensors(torch.as_tensor(ours), torch.as_tensor(theirs))
    return torch.equal(ours.double(), theirs.double())
