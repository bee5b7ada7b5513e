"""Rules of `check` on bounds with a logarithm around several draws: what stands inside it and belongs outside."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.infer import RenyiELBO
from torch import Tensor
from torch.distributions import Independent

from pyro_vi.checking.estimates import Estimates, apart, loss_of, two_estimates
from pyro_vi.checking.findings import Finding, View, data_of, latents_of
from pyro_vi.elbo import Run, draw_traces, subsampled
from pyro_vi.elbo.closed import same
from pyro_vi.programs import Give, data_plate_of

REPEATS = 30
"""Repetitions of a bound of many draws."""


def tensor_monte_carlo(view: View) -> Iterator[Finding]:
    """Pyro's tensor Monte Carlo of a minibatch."""
    if not view.traits.scale_inside:
        return
    nodes = [n for t in (view.model_trace, view.guide_trace) for n in t.nodes.values() if n["type"] == "sample"]
    for frame in (f for node in nodes for f in node["cond_indep_stack"] if f.size != f.full_size and f.size > 0):
        text = (
            f"'tmc' puts the scale of {frame.size} of {frame.full_size} data inside a logarithm, so the bound is biased"
        )
        yield Finding("tmc-subsampled", "error", None, text, "use full batches, or 'enum' or 'score'")
        return


def renyi(view: View) -> Iterator[Finding]:
    """Pyro's Rényi bound of a minibatch; a fit takes the estimator `renyi` in its place."""
    elbo, plate = view.elbo, subsampled(view.model_trace, view.guide_trace)
    if not isinstance(elbo, RenyiELBO) or plate is None:
        return
    both = two_estimates(
        view, lambda: float(elbo.loss(view.pair.model, view.pair.guide, *view.args)), loss_of(view, elbo), REPEATS
    )
    shown = f" ({both.words('by RenyiELBO', 'with the scale outside')})" if both is not None else ""
    text = f"Pyro's RenyiELBO puts the scale of plate '{plate}' inside its logarithm{shown}"
    remedy = f"a fit uses elbo='renyi(alpha={elbo.alpha:g}, num_particles={elbo.num_particles})' instead, as SVI should"
    yield Finding("renyi-subsampled", "note", None, text, remedy)


def scale_inside(view: View) -> Iterator[Finding]:
    """A scale of the latents that is not that of the data, as that of an annealed KL, under a many-sample bound."""
    if not view.many_sample or view.terms is None or view.terms.outer is None:
        return
    for name, site in view.terms.sites.items():
        if site.drawn and not same(site.scale, view.terms.outer):
            text = f"poutine.scale of site '{name}' stands inside the logarithm of {view.traits.target}, which is no bound then"
            remedy = "leave poutine.scale out, or use the ELBO ('trace', 'stl')"
            yield Finding("scale-inside", "error", name, text, remedy)


def data_in_event(view: View) -> Iterator[Finding]:
    """Independent rows that are one event: such a bound has one weight for all of them, and is looser."""
    if not view.many_sample or view.run is None or data_plate_of(view.model_trace) is not None or view.length < 2:
        return
    data, latents = data_of(view.model_trace), latents_of(view.model_trace)
    sides = [*data.values(), *latents.values(), *(other for _, other in view.shared.values())]
    if not latents or len(view.shared) != len(latents) or not all(_rows(node, view.length) for node in sides):
        return
    with apart(view, gradients=True):
        if not _independent(view):
            return
    name, rows = next(iter(data)), view.length
    shown = _joint_and_single(view).words("with one weight", "with one for each row")
    text = f"the {rows} rows of site '{name}' are one event, so {view.traits.target} has one weight for all of them ({shown})"
    remedy = "put the rows into pyro.plate('data', len(x)), and leave them out of to_event"
    yield Finding("data-in-event", "warning", name, text, remedy)


def _rows(node: Any, length: int) -> bool:
    fn = node["fn"]
    event = tuple(fn.event_shape)
    whole = isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == len(event)
    return whole and event[:1] == (length,) and not fn.batch_shape and not isinstance(fn.base_dist, Delta)


def _each(node: Any) -> Tensor:
    """Log-density of each row."""
    value: Tensor = node["fn"].base_dist.log_prob(node["value"])
    return value.flatten(1).sum(-1) if value.dim() > 1 else value


def _independent(view: View) -> bool:
    """True if the likelihood of the first row depends on the latents of the first row only."""
    run = draw_traces(view.pair.model, view.pair.guide, view.args)
    drawn = [n["value"].detach().requires_grad_() for n in latents_of(run.model_trace).values()]
    values = dict(zip(latents_of(run.model_trace), drawn, strict=True))
    with Give(values):
        again = draw_traces(view.pair.model, view.pair.guide, view.args)
    first = sum(
        _each(node)[0] for node in (*data_of(again.model_trace).values(), *latents_of(again.model_trace).values())
    )
    gradients = torch.autograd.grad(torch.as_tensor(first), drawn, allow_unused=True)
    return all(g is None or not bool(g[1:].any()) for g in gradients)


def _joint_and_single(view: View) -> Estimates:
    """The bound with one weight for all rows, and with one for each, on the same draws; errors are of their difference."""
    count = max(2, min(int(getattr(view.elbo, "num_particles", 1)), 10))
    with apart(view):
        draws = [_weight(draw_traces(view.pair.model, view.pair.guide, view.args)) for _ in range(count * REPEATS)]
    weights = torch.stack(draws).double().unflatten(0, (REPEATS, count))
    joint = (weights.sum(-1).logsumexp(1) - math.log(count)) / view.length
    single = (weights.logsumexp(1) - math.log(count)).mean(-1)
    error = float((joint - single).std()) / math.sqrt(2 * REPEATS)
    return Estimates(float(joint.mean()), error, float(single.mean()), error)


def _weight(run: Run) -> Tensor:
    model = (*data_of(run.model_trace).values(), *latents_of(run.model_trace).values())
    log_p = torch.stack([_each(node) for node in model]).sum(0)
    return log_p - torch.stack([_each(run.guide_trace.nodes[name]) for name in latents_of(run.model_trace)]).sum(0)
