"""Rules of `check` on what a pair is fitted with: the estimator, the optimizer, the warm-up, and Pyro's parameter store."""

import math
from collections.abc import Iterator

import pyro
import torch
from pyro.infer import JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO
from pyro.optim import PyroOptim
from pyro.params.param_store import normalize_param_name

from pyro_vi.checking.estimates import apart
from pyro_vi.checking.findings import Finding, View
from pyro_vi.errors import InputError
from pyro_vi.estimators import estimator_of
from pyro_vi.programs import Pair

TRACED = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)


def traced(view: View) -> Iterator[Finding]:
    """Pyro's traced estimators, which keep the branches and the Python numbers of their first call."""
    if not isinstance(view.elbo, TRACED):
        return
    kind = type(view.elbo).__name__
    if isinstance(view.elbo, JitTraceMeanField_ELBO):
        text = f"{kind} traces the programs anew in each step, which is slower than no trace"
    else:
        text = f"{kind} keeps the branches and the Python numbers of its first batch for all others"
    remedy = f"use {kind.removeprefix('Jit')}; fit(compile=True) makes one piece of machine code of its steps"
    yield Finding("traced-estimator", "error", None, text, remedy)


def refused(view: View) -> Iterator[Finding]:
    """Pairs that the estimator cannot serve."""
    if view.elbo is None:
        return
    try:
        with apart(view, gradients=True):
            estimator_of(view.elbo).loss_of_pair(view.pair, view.args)
    except InputError as error:
        text, _, remedy = str(error).rpartition("; ")
        yield Finding("estimator-refuses", "error", None, text or remedy, remedy if text else "use another estimator")
    except Exception:  # told with its cause by the fit
        return


def clipped(view: View) -> Iterator[Finding]:
    """`clip_norm` of Pyro's optimizers, of which each has one parameter."""
    given = view.planned.optimizer
    limit = getattr(given, "pt_clip_args", None) if isinstance(given, PyroOptim) else None
    limit = limit.get("clip_norm") if isinstance(limit, dict) else None
    if limit is None or view.terms is None:
        return
    own = [p for p in view.pair.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(view.terms.loss, own, retain_graph=True, allow_unused=True)
    norms = [float(g.norm()) for g in gradients if g is not None]
    joint = math.sqrt(sum(min(norm, limit) ** 2 for norm in norms))
    if joint > 1.01 * limit:
        text = (
            f"clip_norm={limit:g} of Pyro's optimizers limits each of {len(norms)} parameters by itself: their joint norm is "
            f"{math.sqrt(sum(n * n for n in norms)):.3g} before and {joint:.3g} after"
        )
        yield Finding("clip-each", "note", None, text, f"use fit(clip_norm={limit:g}) to limit the joint norm")


def warmup(view: View) -> Iterator[Finding]:
    """A warm-up of the KL that does not end before the fit does."""
    steps, rising = view.planned.steps, view.planned.warmup
    if steps is not None and rising > steps:
        text = f"the weight of the KL rises over {rising} steps, and the fit has {steps}, so that it never has its full weight"
        yield Finding("warmup-too-long", "error", None, text, f"use warmup={steps // 5}, or more steps")


def stale(pair: Pair) -> Iterator[Finding]:
    """Values in Pyro's parameter store that are not those of the pair."""
    store = pyro.get_param_store()
    kept = {normalize_param_name(name): name for name in store}
    for name, value in pair.values().items() if kept else ():
        held = next((kept[key] for key in (name, *_prefixed(pair, name)) if key in kept), None)
        there = store[held].detach() if held is not None else value
        if there.shape == value.shape and not torch.equal(there.to(value), value):
            at = tuple((there.to(value) != value).nonzero()[0].tolist())
            one, two = float(there[at]), float(value[at])
            text = (
                f"Pyro's parameter store holds '{held}' of an earlier fit ({one:.3g}), where SVI and Predictive would start; "
                f"a fit starts with the program's own value ({two:.3g})"
            )
            yield Finding("stale-store", "note", None, text, "call pyro.clear_param_store() before SVI or Predictive")
            return


def _prefixed(pair: Pair, name: str) -> tuple[str, ...]:
    return tuple(f"{type(program).__name__}.{name}" for program in (pair.model, pair.guide))
