"""Ranks of the latents that made data, among draws of the guide for these data.

* `Ranked` holds the ranks of some simulations, and the quantities that they belong to.
* `Ranker` ranks what `simulated` has drawn: each number of each latent, log p(x | z) and log p(x, z).

If the guide is the posterior, all ranks are uniform on 0, …, K (Talts et al. 2018, arXiv:1804.06788). Ranks of the latents
alone are uniform also if the guide is the prior; those of log p(x | z) are not (Modrák et al. 2023, arXiv:2211.02383).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.util import broadcast_shape
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vi.data import Batch, fresh
from pyro_vi.diagnostics.simulating import Simulated
from pyro_vi.elbo import (
    MEMORY,
    Facts,
    Run,
    Terms,
    at_once,
    chunk_of,
    draw_traces,
    from_run,
    length_of,
    nesting_of,
    posterior_trace,
    site_mask,
)
from pyro_vi.elbo.traces import PARTICLES
from pyro_vi.programs import Give, Pair, role_of, support_of

LIKELIHOOD, JOINT = "log p(x | z)", "log p(x, z)"
"""Names of the two quantities that depend on the data: they tell the posterior from the prior."""


@dataclass(frozen=True)
class Quantity:
    """A number of a simulation that is ranked.

    Attributes:
        name: such as ``"z[3]"``.
        site: the latent site, or the name of the log-density.
        kind: ``"latent"``, ``"discrete"`` for a latent with a countable support, or ``"density"``.
    """

    name: str
    site: str
    kind: str


@dataclass(frozen=True)
class Ranked:
    """Ranks of simulations.

    Attributes:
        quantities: what is ranked.
        ranks: the number of draws below the value that made the data, ``(simulations, quantities)``; NaN where an entry is
            masked or a log-density is no number. Ties are broken at random.
        draws: K; ranks are 0 to K.
    """

    quantities: tuple[Quantity, ...]
    ranks: np.ndarray
    draws: int

    @staticmethod
    def joined(parts: "list[Ranked]") -> "Ranked":
        """The ranks of several simulations of the same quantities."""
        return Ranked(parts[0].quantities, np.concatenate([part.ranks for part in parts]), parts[0].draws)


@dataclass
class Ranker:
    """Ranks simulated latents of a pair. Call it within `isolated` and `evaluating`.

    Args:
        pair: model and guide.
        facts: the facts about the pair.
        draws: K.
        whole: a simulation is a whole data set; otherwise it is a datum, and its quantities are those of its own latents. In
            a whole data set, latents of single data are ranked at one datum.
        generator: breaks ties.
    """

    pair: Pair
    facts: Facts
    draws: int
    whole: bool
    generator: np.random.Generator

    def __post_init__(self) -> None:
        self._at_once: bool | None = None

    def __call__(self, made: Simulated, given: Mapping[str, Tensor], rows: np.ndarray) -> Ranked:
        """Rank the latents that made data among draws of the guide for these data.

        Args:
            made: data, and the latents that made them.
            given: latents that are held at given values, in the model and in the guide.
            rows: numbers of the rows that are simulations; of a whole data set, the one row whose own latents are ranked.
        """
        nesting = nesting_of(self.pair, made.args)
        with torch.no_grad(), Give(dict(made.values)):
            nodes, terms = _scored(self.pair.model, made.args, None, nesting)
        quantities, present = self._quantities(nodes, rows)
        truth = self._values(nodes, terms, rows, False)[0]
        # Log-densities at the same state differ by rounding, as the model runs for another number of draws at once.
        close = torch.zeros_like(truth)
        unit = 1e-10 if terms.elbo.dtype == torch.float64 else 1e-5
        close[:, -2:] = unit * (1 + truth[:, -2:].abs().nan_to_num(posinf=0.0))
        below, equal, bad = torch.zeros_like(truth), torch.zeros_like(truth), truth.isnan()
        for values in self._draws(made.args, given, nesting, rows, truth.numel()):
            tie = ((values - truth).abs() <= close) | (values == truth)
            below += ((values < truth) & ~tie).sum(0)
            equal += tie.sum(0)
            bad |= values.isnan().any(0)
        ranks = (below + equal.new_tensor(self.generator.random(equal.shape)).mul(equal + 1).floor()).cpu().numpy()
        ranks[(bad | ~present).cpu().numpy()] = math.nan
        return Ranked(quantities, ranks, self.draws)

    def _draws(
        self, args: Batch, given: Mapping[str, Tensor], nesting: int, rows: np.ndarray, size: int
    ) -> Iterator[Tensor]:
        """Yield the quantities of draws of the guide, ``(draws, rows, quantities)``, a chunk at a time."""
        if self._at_once is None:
            self._at_once = at_once(self.pair, args, self.facts)
        chunk = min(chunk_of(self.pair, args)[0], max(1, 4 * MEMORY // size)) if self._at_once else 1
        for start in range(0, self.draws, chunk):
            count = min(chunk, self.draws - start) if self._at_once else None
            with torch.no_grad(), Give(dict(given)):
                if self.facts.summed:
                    drawn = posterior_trace(self.pair, args, self.facts, count)
                    with Give({name: node["value"] for name, node in drawn.nodes.items() if _latent(node)}):
                        nodes, terms = _scored(self.pair.model, args, count, nesting)
                else:
                    trace = draw_traces(self.pair.model, self.pair.guide, args, count, nesting).model_trace
                    nodes, terms = trace.nodes, _terms(trace, args)
            yield self._values(nodes, terms, rows, count is not None)

    def _sites(self, nodes: Any) -> dict[str, Any]:
        """The latent sites that are ranked, of a trace of the model."""
        left = () if self.whole else self.facts.shared
        return {name: node for name, node in nodes.items() if _latent(node) and name not in left}

    def _quantities(self, nodes: Any, rows: np.ndarray) -> tuple[tuple[Quantity, ...], Tensor]:
        """The quantities, and which of them are part of the model, ``(rows, quantities)``."""
        found: list[Quantity] = []
        present = []
        for name, node in self._sites(nodes).items():
            fn = node["fn"]
            mask = site_mask(node)
            mask = mask.reshape(mask.shape + (1,) * fn.event_dim)
            present.append(self._of_rows(name, mask, fn, rows, False)[0])
            kind = "discrete" if getattr(support_of(fn), "is_discrete", False) else "latent"
            found += [Quantity(one, name, kind) for one in self._names(name, node)]
        found += [Quantity(name, name, "density") for name in (LIKELIHOOD, JOINT)]
        present.append(torch.ones((1 if self.whole else len(rows), 2), dtype=torch.bool))
        return tuple(found), torch.cat([part.to(present[0].device) for part in present], -1)

    def _names(self, name: str, node: Any) -> list[str]:
        """The names of the numbers of a site: dimensions of length 1 have no index."""
        axis, shape = self._axis(name, node["fn"]), _shape(node["value"], node["fn"])
        kept = [size for i, size in enumerate(shape) if i - len(shape) != axis]
        start = f"{name} of a datum" if self.whole and axis is not None else name
        places = np.ndindex(*(size for size in kept if size != 1))
        return [start + (f"[{','.join(map(str, place))}]" if place else "") for place in places]

    def _axis(self, name: str, fn: Any) -> int | None:
        """The dimension of the data in the values of a site, counted from the last; None for a shared site."""
        plate = self.facts.plate
        return None if plate is None or name in self.facts.shared else plate.dim - fn.event_dim

    def _values(self, nodes: Any, terms: Terms, rows: np.ndarray, many: bool) -> Tensor:
        """The quantities of draws in double precision, ``(draws, rows, quantities)``; ``many`` draws, or a single one."""
        parts = [
            self._of_rows(name, node["value"], node["fn"], rows, many) for name, node in self._sites(nodes).items()
        ]
        observed = [n for n, node in nodes.items() if node["type"] == "sample" and role_of(node) == "observed"]
        parts += [self._density(terms, names, rows) for names in (observed, list(terms.sites))]
        count = max(len(part) for part in parts)
        return torch.cat([part.double().expand(count, *part.shape[1:]) for part in parts], -1)

    def _of_rows(self, name: str, value: Tensor, fn: Any, rows: np.ndarray, many: bool) -> Tensor:
        """The values of a site for some rows, ``(draws, rows, numbers)``."""
        value = value.expand(_shape(value, fn))
        value, axis = value if many else value.unsqueeze(0), self._axis(name, fn)
        if axis is None:
            return value.reshape(len(value), 1, -1)
        chosen = value.movedim(axis, 1).index_select(1, torch.as_tensor(rows, device=value.device))
        return chosen.reshape(len(value), len(rows), -1)

    def _density(self, terms: Terms, names: list[str], rows: np.ndarray) -> Tensor:
        """The sum of the log-densities of some sites, ``(draws, rows, 1)``: of a datum, or of the whole data set."""
        total = torch.zeros((1, 1 if self.whole else len(rows)), dtype=torch.float64)
        for site in (terms.sites[name] for name in names):
            if site.log_p is None or not (site.local or self.whole):
                continue
            value = site.log_p.double().reshape(-1, terms.rows if site.local else 1)
            total = total.to(value.device) + (value.sum(-1, keepdim=True) if self.whole else value[:, rows])
        return total.unsqueeze(-1)


def _scored(model: Any, args: Batch, count: int | None, nesting: int) -> tuple[Any, Terms]:
    """The nodes and the terms of a run of the model alone, in which other handlers give the latents."""
    if count is not None:
        model = pyro.plate(PARTICLES, count, dim=-1 - nesting)(model)
    trace: Any = prune_subsample_sites(poutine.trace(model).get_trace(*fresh(args)))
    trace.compute_log_prob()
    return trace.nodes, _terms(trace, args)


def _terms(trace: Any, args: Batch) -> Terms:
    return from_run(Run(trace, poutine.Trace(), {}, {}), length_of(args), kl="sampled")


def _latent(node: Any) -> bool:
    return bool(node["type"] == "sample" and role_of(node) == "latent")


def _shape(value: Tensor, fn: Any) -> tuple[int, ...]:
    return tuple(broadcast_shape(value.shape, fn.shape()))
