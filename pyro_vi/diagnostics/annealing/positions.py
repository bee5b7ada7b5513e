"""The draws of a guide as positions on the unconstrained scale, (chains, rows, directions), with log q and log w at them.

`Positions` is the path from a guide to the posterior that `annealed` takes. A row is a datum; of latents that all data share,
the whole data set is one row, with its local latents among the directions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_vi.data import Batch, length_of
from pyro_vi.elbo import (
    Facts,
    Run,
    Weight,
    density_of,
    draw_traces,
    enumerated_run,
    from_run,
    nesting_of,
    one_run,
    site_mask,
    summed_weight,
    unwrapped,
    weight_of_terms,
)
from pyro_vi.errors import InputError, first_line
from pyro_vi.programs import Give, Pair, describe, innermost, support_of


@dataclass(frozen=True)
class _Site:
    """A site that the guide draws.

    Attributes:
        like: its value in one run.
        bijection: from the real numbers to its support.
        flat: the support is all real numbers.
        events: number of its event dimensions.
        batch: its batch shape in a run of many draws, without these.
        event: its event shape on the unconstrained scale.
        place: the dimension of the rows in ``batch``; None for one row of all data.
        mask: which draws count.
    """

    like: Tensor
    bijection: Any
    flat: bool
    events: int
    batch: tuple[int, ...]
    event: tuple[int, ...]
    place: int | None
    mask: Tensor

    @property
    def size(self) -> int:
        """Number of directions of all rows."""
        return math.prod(self.batch) * math.prod(self.event)

    def packed(self, u: Tensor, rows: int) -> Tensor:
        """(K, *batch, …), as (K, rows, …)."""
        return (
            u.reshape(len(u), 1, -1) if self.place is None else u.movedim(1 + self.place, 1).reshape(len(u), rows, -1)
        )

    def unpacked(self, part: Tensor) -> Tensor:
        """(K, rows, …), as (K, *batch, *event)."""
        if self.place is None:
            return part.reshape(len(part), *self.batch, *self.event)
        others = self.batch[: self.place] + self.batch[self.place + 1 :]
        return part.reshape(*part.shape[:2], *others, *self.event).movedim(1, 1 + self.place)


class Positions:
    """Positions of the draws of a guide, for annealing from it to the posterior.

    The path is π_β ∝ q(z | x) (p(x, z) / q(z | x))^β in the sites that the guide draws at random; sites that are functions of
    these follow, and sites that the guide leaves to enumeration are summed in w. Directions that are masked out stay at rest.

    Args:
        pair: model and guide, in evaluation mode.
        args: the batch.
        facts: the facts about the pair.
        whole: true for one row of all data.
        vectorized: true if the pair can make many draws in one run.

    Raises:
        InputError: a site is discrete or has no bijection, its support depends on other sites, the rows depend on each other,
            the guide cannot score values that it has not drawn, or it draws numbers that are no sample site.
    """

    def __init__(self, pair: Pair, args: Batch, facts: Facts, whole: bool, vectorized: bool) -> None:
        self.pair, self.args, self.facts, self.whole, self.vectorized = pair, args, facts, whole, vectorized
        self.nesting = nesting_of(pair, args)
        plate = facts.plate
        self.rows = 1 if whole or plate is None else plate.length
        single, other = (one_run(pair, args, bool(facts.summed), seed) for seed in (0, 1))
        self.sites = {
            name: self._site(name, node, other.guide_trace.nodes[name])
            for name, node in single.guide_trace.nodes.items()
            if node["type"] == "sample" and not node["is_observed"] and not isinstance(unwrapped(node["fn"]), Delta)
        }
        if self.sites:
            self._prove()

    def _site(self, name: str, node: Any, other: Any) -> _Site:
        fn, value, plate = node["fn"], node["value"], self.facts.plate
        support = _support(fn)
        if support.is_discrete:
            raise InputError(
                f"the guide draws '{name}' ({describe(fn)}), which is discrete: Hamiltonian moves need a gradient; leave it "
                "out of the guide and mark it by infer={'enumerate': 'parallel'} in the model, or use method='iw'"
            )
        try:
            bijection = biject_to(support)
        except NotImplementedError:
            raise InputError(
                f"site '{name}' ({describe(fn)}) has no bijection to its support, so that it cannot be moved; use method='iw'"
            ) from None
        if not all(torch.equal(*both) for both in zip(_bounds(support), _bounds(_support(other["fn"])), strict=True)):
            raise InputError(
                f"the support of site '{name}' depends on other latent sites, so that it cannot be moved alone; draw it on a "
                "fixed interval and scale it in the model, or use method='iw'"
            )
        events = len(fn.event_shape)
        batch, inner = tuple(value.shape[: value.dim() - events]), bijection.inv(value)
        if self.vectorized:  # a run of many draws has all batch dimensions of the pair
            batch = (1,) * (self.nesting - len(batch)) + batch
        place = None if self.whole or plate is None else len(batch) + plate.dim
        if place is not None and (place < 0 or batch[place] != self.rows):
            raise InputError(
                f"site '{name}' has one draw for all rows of its plate; give pyro.plate the number of rows"
            )
        real = isinstance(innermost(support), type(constraints.real))
        event = tuple(inner.shape[value.dim() - events :])
        return _Site(value, bijection, real, events, batch, event, place, site_mask(node).to(value.device))

    @property
    def active(self) -> Tensor:
        """Which directions are moved, (R, D): ones, and zeros for what is masked out."""
        parts = []
        for site in self.sites.values():
            mask = site.mask.expand(site.batch).reshape(site.batch + (1,) * len(site.event))
            parts.append(site.packed(mask.expand(1, *site.batch, *site.event).to(site.like.dtype), self.rows))
        return torch.cat(parts, -1)[0]

    def draw(self, count: int) -> Tensor:
        """Draws of the guide, as positions (count, R, D)."""
        with torch.no_grad():
            if self.vectorized:
                return self._positions(self._run(count).values)
            return torch.cat(
                [self._positions({n: v.unsqueeze(0) for n, v in self._run(None).values.items()}) for _ in range(count)]
            )

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """log q with the Jacobian, and log w, at positions (K, R, D): (K, R) each, in float64 and differentiable."""
        values, jacobian = self._values(positions)
        if self.vectorized:
            log_q, log_weight = self._parts(self._given(values, len(positions)))
        else:
            each = [self._parts(self._given({n: v[k] for n, v in values.items()}, None)) for k in range(len(positions))]
            log_q, log_weight = (torch.cat(column) for column in zip(*each, strict=True))
        return log_q + jacobian, log_weight

    def of(self, values: Mapping[str, Tensor]) -> Tensor:
        """The position of given values of the model's latent sites, (1, R, D).

        Raises:
            InputError: the guide draws another site than the latents, and the values do not tell its draw.
        """
        run = one_run(self.pair, self.args, bool(self.facts.summed))
        supports = {n: _support(run.model_trace.nodes[n]["fn"]) for n in run.guide_trace.nodes if n in values}
        unconstrained = {n: biject_to(support).inv(values[n]) for n, support in supports.items()}
        found = {}
        for name, site in self.sites.items():
            if name in values:
                found[name] = values[name].expand(site.like.shape).to(site.like.dtype)
                continue
            # Pyro's AutoGuides draw a site or all sites on the unconstrained scale.
            own = unconstrained.get(name.removesuffix("_unconstrained"))
            guess = torch.cat([u.reshape(-1) for u in unconstrained.values()]) if own is None else own
            if guess.numel() == site.like.numel():
                found[name] = guess.reshape(site.like.shape).to(site.like.dtype)
        if found.keys() == self.sites.keys():
            with torch.no_grad():
                nodes = self._given(found, None).guide_trace.nodes
            if all(_close(nodes[name]["value"], values[name]) for name in supports):
                return self._positions({n: v.unsqueeze(0) for n, v in found.items()})
        raise InputError(
            "the guide draws auxiliary sites that cannot be told from the latents, so that no chain can start at the exact "
            "draw; use start='prior'"
        )

    def _prove(self) -> None:
        """Compare log w at given draws with those of the run that drew them, and look for rows that depend on each other."""
        with torch.no_grad():
            count = 2 if self.vectorized else None
            run = self._run(count)
            drawn = run.values if self.vectorized else {n: v.unsqueeze(0) for n, v in run.values.items()}
            weight = (
                summed_weight(run)
                if self.facts.summed
                else weight_of_terms(from_run(run, length_of(self.args), kl="sampled"))
            )
            expected = self._by_row(weight)
            positions = self._positions(drawn)
            try:
                found = self.at(positions)[1]
            except NotImplementedError as error:
                raise InputError(
                    f"the guide cannot score values that it has not drawn ({first_line(error)}); use start='prior', or a guide "
                    "whose density is known everywhere"
                ) from error
        close = 2e-3 if positions.dtype == torch.float32 else 1e-7
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=close, atol=close, equal_nan=True):
            raise InputError(
                "log p(x, z) / q(z | x) at given draws differs from that of the run that drew them, so that no chain can be "
                "weighed: a program has random numbers that are no sample site; draw them by pyro.sample"
            )
        half = self.rows // 2
        if half:
            positions.requires_grad_()
            for rows, others in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
                total = torch.stack([part[:, rows].sum() for part in self.at(positions)]).sum()
                (slope,) = torch.autograd.grad(total, positions, materialize_grads=True)
                if bool((slope[:, others] != 0).any()):
                    raise InputError(
                        "the density of a datum depends on the latents of other data, so that there is no evidence of a datum "
                        "alone; draw what data share outside of their plate"
                    )

    def _run(self, count: int | None) -> Run:
        if self.facts.summed:
            return enumerated_run(self.pair, self.args, count, self.nesting)
        return draw_traces(self.pair.model, self.pair.guide, self.args, count, self.nesting)

    def _given(self, values: dict[str, Tensor], count: int | None) -> Run:
        with Give(values):
            return self._run(count)

    def _parts(self, run: Run) -> tuple[Tensor, Tensor]:
        plate = self.facts.plate
        log_q = self._by_row(density_of(run.guide_trace, plate, self.sites))
        if self.facts.summed:
            return log_q, self._by_row(summed_weight(run))
        functions = [name for name in run.guide_trace.nodes if name not in self.sites]
        rest = self._by_row(density_of(run.guide_trace, plate, functions)) if functions else 0
        return log_q, self._by_row(density_of(run.model_trace, plate)) - log_q - rest

    def _by_row(self, weight: Weight) -> Tensor:
        local, shared = weight.local.double(), weight.shared.double()
        if self.whole:
            return (local.sum(-1) + shared).reshape(-1, 1)
        # A factor that all data share belongs to each of them equally.
        plate = self.facts.plate
        share = shared / (plate.size if plate is not None and plate.size else self.rows)
        return (local + share.unsqueeze(-1)).reshape(-1, self.rows)

    def _positions(self, values: Mapping[str, Tensor]) -> Tensor:
        """Values with the chains as first dimension, as positions."""
        parts = [site.packed(site.bijection.inv(values[name]), self.rows) for name, site in self.sites.items()]
        return torch.cat(parts, -1)

    def _values(self, positions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Values by site of positions, and log |dz/du| of each row."""
        values: dict[str, Tensor] = {}
        jacobian = torch.zeros(positions.shape[:2], dtype=torch.float64, device=positions.device)
        parts = positions.split([site.size // self.rows for site in self.sites.values()], -1)
        for (name, site), part in zip(self.sites.items(), parts, strict=True):
            u = site.unpacked(part)
            values[name] = site.bijection(u)
            if not site.flat:
                change = site.bijection.log_abs_det_jacobian(u, values[name])
                change = change.reshape(len(part), *site.batch, -1).sum(-1)
                change = torch.where(site.mask, change, 0).double()
                jacobian = jacobian + site.packed(change, self.rows).sum(-1)
        return values, jacobian


def _support(fn: Any) -> Any:
    return support_of(fn) or constraints.independent(constraints.real, len(fn.event_shape))


def _close(found: Tensor, value: Tensor) -> bool:
    return torch.allclose(found, value.expand(found.shape).to(found.dtype), rtol=1e-3, atol=1e-3)


def _bounds(support: Any) -> list[Tensor]:
    base = innermost(support)
    found = (getattr(base, name, None) for name in ("lower_bound", "upper_bound"))
    return [torch.as_tensor(bound) for bound in found if bound is not None]
