"""Draws of a guide with their log-weights, in which some of the guide's sites can be held at given values.

* `Draws` makes them: log p(x, z) − log q(z) in double precision, of each datum and of what all data share, with the values.
* `Picked` keeps one draw for each datum, from where guide and posterior overlap.
* `rows_of` takes some rows of a batch; `evenly` says which; `asked` refuses pairs without such weights, and cuts the data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import Delta
from torch import Tensor

from pyro_vi.data import Batch, changed, length_of, part
from pyro_vi.diagnostics.log_evidence import refuse_part
from pyro_vi.elbo import (
    MEMORY,
    Facts,
    at_once,
    chunk_of,
    draw_traces,
    enumerated_run,
    facts_of,
    from_run,
    nesting_of,
    one_run,
    quoted,
    refuse_no_density,
    refuse_own_minibatch,
    refuse_unguided,
    unwrapped,
    weight_of_terms,
)
from pyro_vi.elbo.weights import summed_weight
from pyro_vi.errors import InputError
from pyro_vi.programs import Give, Pair

SUFFIX = "_unconstrained"
"""The ending that Pyro's AutoNormal adds to the name of a site for the number that it draws."""


@dataclass(frozen=True)
class Drawn:
    """Draws with their weights.

    Attributes:
        local: log-weights of each datum, (draws, rows), float64: of its own latents, given those that all data share.
        shared: log-weights of what all data share, (draws,), float64.
        sources: values of the sites that the guide draws at random, as drawn, the draws as first dimension.
        values: values of the latent sites of the model that the guide has, in the same form.
        log_q: log q of the sites that were held, in the same form.
    """

    local: Tensor
    shared: Tensor
    sources: dict[str, Tensor]
    values: dict[str, Tensor]
    log_q: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """The log-weight of everything together, (draws,)."""
        return self.local.sum(-1) + self.shared


class Draws:
    """Draws of a pair on one batch; call within `pyro_vi.programs.isolated`, in evaluation mode.

    Args:
        pair: model and guide.
        args: the batch.
        facts: the facts about the pair.

    Attributes:
        sources: the sites that the guide draws at random, and whether each is in the data plate. An AutoGuide draws other
            sites than the model has.
        latents: the latent sites of the model that the guide has, in the same form.
    """

    def __init__(self, pair: Pair, args: Batch, facts: Facts) -> None:
        self.pair, self.args, self.facts = pair, args, facts
        self.vectorized = at_once(pair, args, facts)
        run = one_run(pair, args, bool(facts.summed))
        guide, model = run.guide_trace.nodes, run.model_trace.nodes
        drawn = {n: v for n, v in guide.items() if v["type"] == "sample" and not v["is_observed"]}
        self.sources = {n: self._local(v) for n, v in drawn.items() if not isinstance(unwrapped(v["fn"]), Delta)}
        self.latents = {n: self._local(v) for n, v in drawn.items() if n in model}
        self._events = {n: len(v["fn"].event_shape) for n, v in drawn.items()}
        if facts.summed:
            nodes = [node for node in model.values() if node["type"] == "sample"]
            self._nesting = nesting_of(pair, args)
            self.chunk = max(1, MEMORY // max(1, *(node["log_prob"].numel() for node in nodes)))
        else:
            self.chunk, self._nesting = chunk_of(pair, args)

    def _local(self, node: Any) -> bool:
        plate = self.facts.plate
        return plate is not None and any(frame.name == plate.name for frame in node["cond_indep_stack"])

    def stream(self, count: int, held: Mapping[str, Tensor] | None = None) -> Iterator[Drawn]:
        """Yield ``count`` draws, some at a time.

        Args:
            count: number of draws.
            held: values of some sources, of one draw, without the dimension of draws.
        """
        for start in range(0, count, self.chunk):
            size = min(self.chunk, count - start)
            yield self.draw(size, {n: v.expand(size, *v.shape) for n, v in (held or {}).items()})

    def draw(self, count: int, held: Mapping[str, Tensor] | None = None) -> Drawn:
        """Make some draws; ``held`` are values of some sources, the draws as first dimension."""
        held = dict(held or {})
        with torch.no_grad():
            if self.vectorized:
                return self._one(count, held)
            single = [self._one(None, {n: v[k] for n, v in held.items()}) for k in range(count)]
        return Drawn(
            torch.stack([one.local for one in single]),
            torch.stack([one.shared for one in single]),
            *(
                {n: torch.stack([getattr(one, what)[n] for one in single]) for n in getattr(single[0], what)}
                for what in ("sources", "values", "log_q")
            ),
        )

    def _one(self, particles: int | None, held: dict[str, Tensor]) -> Drawn:
        with Give(held):
            if self.facts.summed:
                run = enumerated_run(self.pair, self.args, particles, self._nesting)
                weight = summed_weight(run)
            else:
                run = draw_traces(self.pair.model, self.pair.guide, self.args, particles, self._nesting)
                refuse_unguided(run)
                weight = weight_of_terms(from_run(run, length_of(self.args), kl="sampled"))
        nodes = run.guide_trace.nodes
        return Drawn(
            weight.local.double(),
            weight.shared.double(),
            {n: nodes[n]["value"] for n in self.sources},
            {n: nodes[n]["value"] for n in self.latents},
            {n: nodes[n]["log_prob"].double() for n in held},
        )

    def numbers(self, name: str, value: Tensor) -> Tensor:
        """Return the numbers of a latent site, float64: (draws, rows, D) of a local site, (draws, D) of a shared one."""
        if not self.latents.get(name, self.sources.get(name, False)):
            return value.double().reshape(len(value), -1)
        place = self._place(name, value)
        return value.double().movedim(place, 1).flatten(2) if value.dim() > 2 else value.double().unsqueeze(-1)

    def _place(self, name: str, value: Tensor) -> int:
        """The dimension of the data plate in a value with the draws as first dimension."""
        assert self.facts.plate is not None
        return value.dim() + self.facts.plate.dim - self._events[name]

    def chosen(self, name: str, value: Tensor, index: Tensor) -> Tensor:
        """Return the value of one draw: of a local site, for each row that of the draw with its number in ``index``, (rows,).

        For a shared site, ``index`` has one number.
        """
        if not self.sources[name]:
            return value[int(index)]
        place = self._place(name, value)
        moved = value.movedim(place, 1)
        return moved[index, torch.arange(moved.shape[1])].movedim(0, place - 1)


class Picked:
    """One draw for each datum, from draws that come in parts: one of min(p, c q), where guide and posterior overlap.

    A draw has a probability in proportion to its weight, cut off at the median c of the first part. So a guide that is too
    wide gives a likely draw, and one that is too narrow no extreme one. The draw with the largest log w + g, g standard Gumbel,
    is such a draw (Efraimidis and Spirakis 2006).

    Args:
        draws: the draws.
        local: true for the local sites, one draw for each row; false for the shared ones, one for all.
    """

    def __init__(self, draws: Draws, *, local: bool) -> None:
        self.draws = draws
        self.names = [name for name, inside in draws.sources.items() if inside == local]
        self.values: dict[str, Tensor] = {}
        self._key: Tensor | None = None
        self._most: Tensor | None = None

    def add(self, log_weight: Tensor, sources: Mapping[str, Tensor]) -> None:
        """Take draws: their log-weights, (draws, rows) or (draws, 1), and the values of the sites."""
        self._most = log_weight.median(0).values if self._most is None else self._most
        key, index = (
            (torch.minimum(log_weight, self._most) - (-torch.rand_like(log_weight).log()).log())
            .nan_to_num(nan=-torch.inf)
            .max(0)
        )
        better = torch.ones_like(key, dtype=torch.bool) if self._key is None else key > self._key
        for name in self.names:
            new = self.draws.chosen(name, sources[name], index)
            if name not in self.values:
                self.values[name] = new
                continue
            shape = [1] * new.dim()
            if self.draws.sources[name]:
                shape[self.draws._place(name, sources[name]) - 1] = len(better)
            self.values[name] = torch.where(better.reshape(shape), new, self.values[name])
        self._key = key if self._key is None else torch.maximum(key, self._key)


def shown_name(source: str, latents: Mapping[str, Any]) -> str:
    """The name of what a source draws: the site of the model, where the guide draws it on the unconstrained scale."""
    plain = source.removesuffix(SUFFIX)
    return plain if plain in latents else source


def evenly(count: int, most: int | None) -> np.ndarray:
    """Return at most ``most`` of the numbers 0, …, count − 1, evenly spaced; all of them for None."""
    return np.unique(np.linspace(0, count - 1, min(count, most or count)).round().astype(int))


def rows_of(args: Batch, index: np.ndarray) -> Batch:
    """Return some rows of a batch; what has another number of rows than the first column stays whole."""
    length, rows = length_of(args), torch.as_tensor(index)
    return changed(args, lambda v: v[rows.to(v.device)] if v.dim() and len(v) == length else v)


@dataclass(frozen=True)
class Asked:
    """Data to weigh.

    Attributes:
        facts: the facts about the pair.
        index: numbers of the rows that are reported.
        blocks: the data in blocks, each with the places in it of the rows that are reported.
        length: number of data.
    """

    facts: Facts
    index: np.ndarray
    blocks: list[tuple[Batch, np.ndarray]]
    length: int


def asked(pair: Pair, args: Batch, most: int | None, rows: int) -> Asked:
    """Refuse a pair without importance weights, choose the data and cut them into blocks of at most ``rows`` rows.

    Latents that all data share need all data at once.

    Raises:
        InputError: the weight is no ratio of densities, or is not that of the data.
    """
    facts = facts_of(pair, args)
    refuse_no_density(pair, args, facts)
    layout, length = pair.layouts(args)[0], length_of(args)
    drawn = [name for name in layout.latents if name not in facts.summed]
    if not drawn:
        raise InputError(
            "the guide draws no latent site, as the estimator sums all of them, so that there are no weights: the posterior "
            "is exact"
        )
    local = [name for name in drawn if name not in facts.shared]
    summed = [name for name in facts.summed if name in facts.shared]
    if summed and local:
        raise InputError(
            f"{quoted(summed)} is summed and shared by all data, which couples the latents {quoted(local)} of the data: no "
            "datum has a weight of its own; sample it in the guide"
        )
    if facts.plate is None or facts.shared:
        refuse_part(pair, args, facts)
        count = 1 if facts.plate is None else facts.plate.length
        return Asked(facts, evenly(count, most), [(args, evenly(count, most))], length)
    refuse_own_minibatch(pair, args)
    index = evenly(length, most)
    if len(index) < length and pair.separable(args, len(index)):
        args, places = rows_of(args, index), np.arange(len(index))
    elif pair.separable(args, min(rows, length)):
        places = index
    else:
        return Asked(facts, index, [(args, index)], length)
    count = length_of(args)
    blocks = []
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        here = places[(places >= start) & (places < stop)] - start
        if len(here):
            blocks.append((args if count <= rows else part(args, start, stop), here))
    return Asked(facts, index, blocks, length)
