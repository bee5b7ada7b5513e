"""The aggregate posterior q(z) = E_x q(z | x) of the local latents, by mixtures over the data.

* `information_of` bounds the mutual information I(x; z) from both sides, of all local latents together.
* `information_of_units` does so for each unit of a site.

With z_n ~ q(z | x_n), I = E log q(z_n | x_n) / q(z_n). A mixture over N data that has x_n among them is too large at z_n, and
one that leaves x_n out too small, so that their means bound I from below and from above (Poole et al. 2019,
arXiv:1905.06922, sections 2.2 and 2.4). The lower bound is at most log N.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vi.data import Batch
from pyro_vi.diagnostics.collapsing.local_runs import LocalRun, log_q_of, with_particles
from pyro_vi.diagnostics.collapsing.units import UnitSite
from pyro_vi.elbo import MEMORY, nesting_of
from pyro_vi.programs import Pair

OTHERS = 200
"""Other data in the mixture where each of them takes a run of the guide by itself."""


@dataclass(frozen=True)
class Mixtures:
    """log q(z_n | x_n) − log of the mixture at z_n, for each datum, in nats.

    Attributes:
        lower: the mixture has x_n among its data.
        upper: it leaves x_n out.
        count: number of data in the mixture, x_n among them.
    """

    lower: Tensor
    upper: Tensor
    count: int


def information_of(
    pair: Pair, args: Batch, drawn: LocalRun, sites: Mapping[str, UnitSite], fixed: bool
) -> Mixtures | None:
    """log q(z_n | x_n) / q(z_n) of each datum, for all local latents together; None where q cannot be scored elsewhere.

    Args:
        pair: model and guide.
        args: the data.
        drawn: a draw of each datum.
        sites: the local sites.
        fixed: the guide's distributions do not depend on the draws.
    """
    rows = len(drawn.log_q)
    if any(not bool(site.present.all()) for site in sites.values()) or rows < 2:
        return None
    if fixed:
        found = _at_once(drawn, sites, rows)
        if found is not None:
            return found
    return _by_runs(pair, args, drawn, sites, rows)


def _at_once(drawn: LocalRun, sites: Mapping[str, UnitSite], rows: int) -> Mixtures | None:
    """By broadcasting the distributions of all sites over the values of all data."""
    nodes = drawn.run.guide_trace.nodes
    parts = []
    widest = max(math.prod((*s.batch, *s.inner, *s.own)) for s in sites.values())
    try:
        for rows_here in torch.arange(rows).split(max(1, 4 * MEMORY // max(1, widest))):
            block: Any = 0.0
            for name, site in sites.items():
                density = nodes[name]["fn"].log_prob(_elsewhere(nodes[name]["value"], site, rows_here)).double()
                density = density.movedim(site.axis + 1, -1)
                block = block + (density.flatten(1, -2).sum(1) if density.dim() > 2 else density)
            parts.append(block)
        every = torch.cat(parts)
    except (RuntimeError, ValueError, NotImplementedError, IndexError):
        return None  # such as a flow that takes values of its own shape only
    same = every.shape == (rows, rows) and torch.allclose(every.diagonal(), drawn.log_q, rtol=1e-4, atol=1e-3)
    return _mixtures(every, torch.arange(rows)) if same else None


def _by_runs(pair: Pair, args: Batch, drawn: LocalRun, sites: Mapping[str, UnitSite], rows: int) -> Mixtures | None:
    """By runs of the guide that are given the values of other data, many at once where the guide allows it."""
    run, nesting = drawn.run, nesting_of(pair, args)
    local = {name: run.guide_trace.nodes[name]["value"] for name in sites}
    shared = {name: value for name, value in run.values.items() if name not in local}
    nodes = run.guide_trace.nodes
    if any((nodes[name]["infer"] or {}).get("is_auxiliary") for name in shared if name in nodes):
        return None  # the values are functions of other draws, and have no density by themselves

    def shifted(shifts: list[int], at_once: bool) -> Tensor:
        values = {
            name: torch.stack([value.roll(shift, sites[name].axis) for shift in shifts])
            for name, value in local.items()
        }
        if not at_once:
            return log_q_of(pair, args, run, {**shared, **{name: value[0] for name, value in values.items()}}, None)
        many = {name: with_particles(value, len(sites[name].batch), nesting) for name, value in values.items()}
        return log_q_of(pair, args, run, {**shared, **many}, len(shifts))

    at_once = _agree(lambda: shifted([0, 1], True), lambda: torch.cat([shifted([k], False) for k in (0, 1)]))
    if not _agree(lambda: shifted([0], False), lambda: drawn.log_q.unsqueeze(0)):
        return None
    count = rows if at_once else min(rows, OTHERS + 1)
    shifts = torch.linspace(0, rows - 1, count).round().long()
    widest = max(math.prod((*s.batch, *s.inner, *s.own)) for s in sites.values())
    chunk = max(1, 2 * MEMORY // widest) if at_once else 1
    # Row m of a shift by j is the value of datum m − j, scored at x_m.
    parts = [
        torch.stack(
            [row.roll(-shift) for row, shift in zip(shifted(some.tolist(), at_once), some.tolist(), strict=True)]
        )
        for some in shifts.split(chunk)
    ]
    return _mixtures(torch.cat(parts).T, torch.zeros(rows, dtype=torch.long))


def _agree(one: Any, other: Any) -> bool:
    try:
        found, expected = one(), other()
    except Exception:  # whatever a program raises in a form that it is not written for
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-3)


def _mixtures(every: Tensor, own: Tensor) -> Mixtures:
    """From log q(z_n | x_m), shape ``(rows, count)``; ``own`` is the column of x_n."""
    count = every.shape[1]
    index = own.unsqueeze(1)
    mine = every.gather(1, index).squeeze(1)
    inside = every.logsumexp(1) - math.log(count)
    outside = every.scatter(1, index, -math.inf).logsumexp(1) - math.log(count - 1)
    return Mixtures(mine - inside, mine - outside, count)


def information_of_units(law: Any, values: Tensor, site: UnitSite) -> tuple[Tensor, Tensor]:
    """`Mixtures.lower` and ``upper`` of each unit, ``(rows, units)``: NaN where a unit is absent, or the only one.

    Args:
        law: the distribution of the units, which does not depend on the draws.
        values: one draw of each datum.
        site: the site.
    """
    lower, upper = [], []
    here = site.present.T  # (units, rows)
    count = here.sum(1).double()
    for rows, density in _crossed(law, values, site):
        every = density.masked_fill(~site.present, -math.inf).transpose(1, 2)  # (chunk, units, rows)
        own = rows.reshape(-1, 1, 1).expand(-1, every.shape[1], 1)
        mine = every.gather(2, own).squeeze(2)
        outside = every.scatter(2, own, -math.inf).logsumexp(2) - (count - 1).log()
        lower.append(mine - every.logsumexp(2) + count.log())
        upper.append(mine - outside)
    absent = ~site.present | (count < 2)
    return tuple(torch.cat(part).masked_fill(absent, math.nan) for part in (lower, upper))  # type: ignore[return-value]


def _crossed(law: Any, values: Tensor, site: UnitSite) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows n and log q_u(z_n | x_m), ``(rows n, rows m, units)``, a chunk of rows n at a time."""
    rows, units = site.present.shape
    for chunk in torch.arange(rows).split(max(1, 4 * MEMORY // (rows * units * math.prod(site.own)))):
        yield chunk, site.split(law.log_prob(_elsewhere(values, site, chunk)).double())


def _elsewhere(values: Tensor, site: UnitSite, rows: Tensor) -> Tensor:
    """The values of some data as draws of every datum: ``(rows, *batch, *event)`` with 1 for the data plate."""
    return values.movedim(site.axis, 0)[rows].unsqueeze(site.axis + 1)
