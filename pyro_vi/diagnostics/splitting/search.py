"""The search for the best member of each family, for all data of a pair.

* `Search` goes through blocks of data, each of which gives a `Part`.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_vi.data import Batch, length_of
from pyro_vi.diagnostics.splitting.evidence_from_search import Evidence, evidence_by_flows, evidence_by_normals, higher
from pyro_vi.diagnostics.splitting.expectations import Draws
from pyro_vi.diagnostics.splitting.local_flows import Flows, best_flows
from pyro_vi.diagnostics.splitting.normals import Normals, projected, read_normals, refined, searched, starts_of
from pyro_vi.diagnostics.splitting.own_family import (
    BLOCKS,
    DIAGONAL,
    FLOW,
    FULL,
    LOW_RANK,
    Own,
    best_low_rank,
    family_of,
)
from pyro_vi.diagnostics.splitting.targets import Target, target_of
from pyro_vi.elbo import Facts, stream_weights
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair

EXACT = 1e-4
"""Where log p(x, z) − log q varies by less than this, q is the posterior up to 1e-8 nats, and no flow is searched."""


@dataclass
class Part:
    """The results of a search for some data.

    Attributes:
        elbo: numbers whose mean is the ELBO of the guide, (draws, R).
        best: the same of the best of each family.
        paired: True if the draws of both are the same.
        evidence: log p(x), its error and k-hat, (R,) each.
    """

    elbo: Tensor
    best: dict[str, Tensor]
    paired: bool
    evidence: Evidence | None

    @property
    def rows(self) -> int:
        """Number of data."""
        return self.elbo.shape[1]

    def given(self, evidence: Evidence) -> "Part":
        """The same with another evidence."""
        return Part(self.elbo, self.best, self.paired, evidence)


@dataclass
class Search:
    """The search for the best of each family, block by block of the data."""

    pair: Pair
    facts: Facts
    whole: bool
    families: list[str]
    draws: int
    particles: int
    seed: int
    own: Own | None = None
    notes: list[str] = field(default_factory=list)
    size: int = 0
    rising: int = 0

    def block(self, args: Batch) -> Part:
        """Search for the data of a block."""
        try:
            target = target_of(self.pair, args, self.facts, self.whole)
        except InputError as error:
            self.own = Own("", note=f"no best q of a family is searched: {error}")
            self.size = sum(site.numel for site in self.pair.layouts(args)[0].latents.values()) // (
                1 if self.whole else max(length_of(args), 1)
            )
            return Part(self._weights(args), {}, False, None)
        self.size = target.size
        with torch.no_grad():
            return self._searched(target)

    def _searched(self, target: Target) -> Part:
        guide = read_normals(target)
        if self.own is None:
            self.own = family_of(target, guide)
        own = self.own
        choice = Draws.made(self.draws, target.size, self.seed + 1)
        fresh = Draws.made(self.draws, target.size, self.seed + 2)

        def mean(q: Normals | Flows) -> Tensor:
            return choice.adjusted(q.integrand(target, choice.both)).mean(0)

        def better(q: Normals, other: Normals | None) -> Normals:
            return q if other is None else q.where(mean(q) >= mean(other), other)

        if guide is None:
            points, elbo = target.guide_draws(self.draws)
            start = _moments(points)
        else:
            start, elbo = guide, fresh.adjusted(guide.integrand(target, fresh.both))
        eye = torch.eye(target.size, dtype=torch.bool)
        every = torch.ones_like(eye)
        starts = starts_of(target, self.seed)
        found: dict[str, Normals | Flows] = {}
        # A correlated posterior is found by the full normal only; the nearest independent normals start from there.
        full = searched(target, [start, *starts], every, self.seed + 3)
        diagonal = searched(target, [projected(q, eye) for q in (start, full, *starts)], eye, self.seed + 4)
        diagonal, rising = refined(target, diagonal, eye, self.seed + 5)
        diagonal = better(diagonal, guide if own.name == DIAGONAL else None)
        found[DIAGONAL] = below = diagonal
        if own.name == BLOCKS and own.pattern is not None:
            blocks = searched(
                target, [projected(q, own.pattern) for q in (start, full, below)], own.pattern, self.seed + 6
            )
            blocks, more = refined(target, blocks, own.pattern, self.seed + 7)
            found[BLOCKS] = below = better(better(blocks, below), guide)
            rising += more
        full = searched(target, [full, below], every, self.seed + 8)
        full, more = refined(target, full, every, self.seed + 9)
        rising += more
        full = better(better(full, below), guide if own.name == FULL else None)
        found[FULL] = full
        if own.name == LOW_RANK:
            low = best_low_rank(target, full, own.rank, self.seed + 10)
            found[LOW_RANK] = better(better(low, diagonal), guide)
        at = full.at(choice.both)
        exact = bool(((target.value(at) - full.log_prob(at)).std(0) < EXACT).all())
        flows = None
        if FLOW in (*self.families, own.name):
            flows = None if exact else best_flows(target, full, self.seed + 11)
            found[FLOW] = full if flows is None else flows
        values = {name: fresh.adjusted(q.integrand(target, fresh.both)) for name, q in found.items()}
        if flows is not None:
            values[FLOW] = torch.where(mean(flows) < mean(full), values[FULL], values[FLOW])
        if guide is None and own.name:
            # The guide itself is the best of its family where the search finds no better one.
            ahead = target.guide_draws(self.draws)[1].mean(0) > mean(found[own.name])
            again = target.guide_draws(2 * len(fresh.half))[1]
            again = (again[: len(fresh.half)] + again[len(fresh.half) :]) / 2
            values[own.name] = torch.where(ahead, again, values[own.name])
        self.rising += rising
        # The posterior itself needs no company: its weights are equal.
        parts = [full] if exact else [q for q in (guide, full, full.widened(math.sqrt(2))) if q is not None]
        evidence = evidence_by_normals(target, parts, self.particles, self.seed + 12)
        if flows is not None:
            evidence = higher(evidence, evidence_by_flows(target, flows, self.particles, self.seed + 13))
        kept = {name: value for name, value in values.items() if name in (*self.families, own.name)}
        return Part(elbo, kept, guide is not None, evidence)

    def _weights(self, args: Batch) -> Tensor:
        """Log-weights of draws of the guide, (draws, R)."""
        found = []
        for weight in stream_weights(self.pair, args, self.draws, self.facts):
            size = self.facts.plate.size if self.facts.plate is not None else 1
            each = weight.local + weight.shared.unsqueeze(-1) / max(size, 1)
            value = weight.total.unsqueeze(-1) if self.whole else each
            found.append(value.reshape(-1, value.shape[-1]).double())
        return torch.cat(found)


def _moments(points: Tensor) -> Normals:
    """The normals with the moments of draws, (K, R, D)."""
    offset = points - points.mean(0)
    covariance = torch.einsum("krd,kre->rde", offset, offset) / len(points)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    return Normals(points.mean(0), torch.linalg.cholesky(covariance + (1e-6 * diagonal + 1e-12).diag_embed()))
