"""Runs of a pair for numbers of its local latents: densities and KL of each datum, without factors of a minibatch.

* `LocalRun` is one draw of all latents, with log q and the KL of each datum; `local_run` makes it, also where the guide leaves
  discrete sites to enumeration: they are summed out then.
* `log_q_of` gives log q of each datum at other values; `log_joint_of` gives log p(x_n, z_n).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions.util import broadcast_shape, scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vi.data import Batch, fresh, length_of
from pyro_vi.elbo import Facts, Run, dependence_of, draw_traces, enumerated_run, from_run, nesting_of
from pyro_vi.elbo.traces import PARTICLES
from pyro_vi.elbo.weights import summed_weight
from pyro_vi.programs import Give, Pair, data_plate_of, role_of, trace_of_guide


@dataclass(frozen=True)
class LocalRun:
    """One draw z_n ~ q(z_n | x_n) of each datum.

    Attributes:
        run: the traces.
        log_q: log q(z_n | x_n) of all local latents, in nats, shape ``(rows,)``.
        divergence: log q(z_n | x_n) − log p(z_n), shape ``(rows,)``.
        kl: its mean over z_n where a closed form gives it, else the same, shape ``(rows,)``.
        of_sites: ``kl`` of each site; empty where sites are summed out.
        sampled: by site, the reason why a closed form of its KL is not the KL.
    """

    run: Run
    log_q: Tensor
    divergence: Tensor
    kl: Tensor
    of_sites: Mapping[str, Tensor]
    sampled: Mapping[str, str]


class _Unobserved(Messenger):
    """Takes the data out of a model: what is left is the density of its latents."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and role_of({**msg, "infer": msg["infer"] or {}}) in ("observed", "factor"):
            msg["mask"] = torch.zeros((), dtype=torch.bool)


def local_run(pair: Pair, args: Batch, facts: Facts) -> LocalRun:
    """Draw the latents once, with the generators as they are."""
    if facts.summed:
        with _Unobserved():
            run = enumerated_run(pair, args, None, nesting_of(pair, args))
        log_q, divergence = _log_q(run.guide_trace, run, nesting_of(pair, args))[0], -summed_weight(run).local.double()
        return LocalRun(run, log_q, divergence, divergence, {}, {})
    run = draw_traces(pair.model, pair.guide, args)
    dependence = dependence_of(pair, args, run)
    closed, sampled = (from_run(run, length_of(args), kl=kl, dependence=dependence) for kl in ("analytic", "sampled"))
    local = {
        name: site for name, site in closed.sites.items() if site.local and site.latent and site.source is not None
    }
    of_sites = {name: site.divergence.double() for name, site in local.items()}
    drawn = sum(sampled.sites[name].divergence.double() for name in local)
    assert isinstance(drawn, Tensor)
    log_q = _log_q(run.guide_trace, run, nesting_of(pair, args))[0]
    return LocalRun(run, log_q, drawn, sum(of_sites.values(), torch.zeros(())), of_sites, dependence)


def log_q_of(pair: Pair, args: Batch, run: Run, values: Mapping[str, Tensor], particles: int | None) -> Tensor:
    """log q(z_n | x_n) of the local latents at given values, shape ``(particles, rows)``.

    Args:
        pair: model and guide.
        args: the data.
        run: a run of the pair on them.
        values: values of all latents, in the shape of one run, or with the particles on the left.
        particles: their number; None for values of one run, which give ``(1, rows)``.
    """
    nesting = nesting_of(pair, args)
    guide: Any = pair.guide
    if particles is not None:
        guide = pyro.plate(PARTICLES, particles, dim=-1 - nesting)(guide)
    with Give({**run.subsamples, **values}):
        trace = trace_of_guide(guide, fresh(args))
    trace.compute_log_prob()
    return _log_q(trace, run, nesting)


def run_rows(run: Run) -> int:
    """Number of rows of the data plate in a run."""
    plate = data_plate_of(run.model_trace)
    return 1 if plate is None else plate.length


def _log_q(trace: Any, run: Run, nesting: int) -> Tensor:
    """The sum of a guide's local log-densities, without factors of a minibatch: shape ``(particles or 1, rows)``."""
    plate = data_plate_of(run.model_trace)
    assert plate is not None
    total = torch.zeros(1, plate.length, dtype=torch.float64)
    for node in trace.nodes.values():
        if node["type"] != "sample" or node["is_observed"] or role_of(node) == "subsample":
            continue
        if plate.name not in {frame.name for frame in node["cond_indep_stack"]}:
            continue
        term = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"]).double()
        term = term.expand(broadcast_shape(term.shape, node["fn"].batch_shape, (1,) * (nesting + 1)))
        term = term.movedim(plate.dim, -1)
        total = total + (term.flatten(1, -2).sum(1) if term.dim() > 2 else term)
    return total


def log_joint_of(pair: Pair, args: Batch, facts: Facts, values: Mapping[str, Tensor], particles: int | None) -> Tensor:
    """log p(x_n, z_n) of each datum at given values of all latents, shape ``(particles, rows)``; summed sites are summed out.

    What all data share is left out. See `log_q_of` for the arguments.
    """
    nesting = nesting_of(pair, args)
    with Give(dict(values)):
        if facts.summed:
            run = enumerated_run(pair, args, particles, nesting)
            local = summed_weight(run).local.double() + _log_q(run.guide_trace, run, nesting)
        else:
            run = draw_traces(pair.model, pair.guide, args, particles, nesting)
            sites = from_run(run, length_of(args), kl="sampled").sites.values()
            local = sum((s.log_p.double() for s in sites if s.local and s.log_p is not None), torch.zeros(()))
    return local.reshape(-1 if particles is None else particles, run_rows(run))


def with_particles(value: Tensor, rank: int, nesting: int) -> Tensor:
    """Values ``(K, *batch, *event)`` with the K draws where the plate of particles is; ``rank`` counts the batch dimensions."""
    return value.reshape(len(value), *[1] * (nesting - rank), *value.shape[1:])


def spread(pair: Pair, args: Batch, count: int) -> Batch:
    """At most ``count`` rows of a batch, evenly spaced; all of them where rows cannot be taken by themselves."""
    return pair.evenly(args, count)[0]
