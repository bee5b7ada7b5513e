"""The latent sites of a model as a guide needs them: support, shape, mask and scale, and where the prior has its mass.

`Reading` is an effect handler that reads them from a run of the model: `Latent` sites, `LatentPlate` plates and the `Datum` of
each observed site.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_vi.programs.messages import describe
from pyro_vi.programs.supports import bare, innermost, masked_by, support_of

DRAWS, MOST = 100, 2**20
"""Draws of each prior from which its mass is read, and most numbers in them."""


@dataclass(frozen=True)
class LatentPlate:
    """A plate in one run: its full size, its rows in this run, and if the model draws these rows itself."""

    name: str
    dim: int
    size: int
    length: int
    drawn: bool


@dataclass(frozen=True)
class Datum:
    """An observed site in one run: its distribution and value, the dimensions of its plates, and its mask."""

    name: str
    fn: Any
    value: Tensor
    plates: Mapping[str, int]
    mask: Any

    @property
    def event_dim(self) -> int:
        """Number of event dimensions."""
        return len(self.fn.event_shape)


@dataclass(frozen=True)
class Latent:
    """A latent site in one run.

    Attributes:
        name: its name.
        distribution: name of its prior.
        enumerated: the model marks it for enumeration.
        support: support of the prior; all real numbers if it states none.
        bijection: from the real numbers to the support; None if there is none.
        batch_shape: of the prior.
        event_shape: of the prior.
        plates: names of its plates, the outermost first.
        dtype: of its draws.
        mask: as in `pyro_vi.programs.supports.masked_by`.
        scale: its `pyro.poutine.scale`, without the factors of plates.
        start: the median of the prior given those of the sites before it, on the unconstrained scale.
        spread: the prior's standard deviation there.
        chain: the plate at the attribute ``chain_dim`` of the prior, along which each element depends on the one before it;
            empty if there is none.
        states: the values of a discrete site with finitely many, the first dimension over them; None for other sites.
    """

    name: str
    distribution: str
    enumerated: bool
    support: Any
    bijection: Any
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    plates: tuple[str, ...]
    dtype: torch.dtype
    mask: Any
    scale: float
    start: Tensor
    spread: Tensor
    states: Tensor | None = None
    chain: str = ""

    @property
    def event_dim(self) -> int:
        """Number of event dimensions on the unconstrained scale."""
        return self.start.dim() - len(self.batch_shape)

    @property
    def bounds(self) -> list[Tensor]:
        """The bounds of the support that are tensors."""
        base = innermost(self.support)
        found = (getattr(base, name, None) for name in ("lower_bound", "upper_bound"))
        return [bound for bound in found if isinstance(bound, Tensor)]

    def bijection_on(self, device: torch.device) -> Any:
        """The bijection with its bounds on a device."""
        base, bounds = innermost(self.support), self.bounds
        if not bounds or all(bound.device == device for bound in bounds):
            return self.bijection
        moved = copy.copy(base)
        vars(moved).update((k, v.to(device)) for k, v in vars(base).items() if isinstance(v, Tensor))
        extra = self.support.event_dim - base.event_dim
        return biject_to(constraints.independent(moved, extra) if extra else moved)


class Reading(Messenger):
    """Reads the latent sites of the first run within it, and holds each at the median of its prior, or at a given value.

    A prior that cannot be drawn from is held at 0 on the unconstrained scale, so that such a model runs too.

    Args:
        values: values by site, on the unconstrained scale.
    """

    def __init__(self, values: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.values = values or {}
        self.latents: dict[str, Latent] = {}
        self.plates: dict[str, LatentPlate] = {}
        self.data: dict[str, Datum] = {}
        self._drawn: set[str] = set()

    def __enter__(self) -> "Reading":
        self._generator = (
            torch.get_rng_state()
        )  # a median may be that of draws, which those of the guide must not follow
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        torch.set_rng_state(self._generator)
        return super().__exit__(*error)

    def _pyro_sample(self, msg: Any) -> None:
        fn, name = msg["fn"], msg["name"]
        if site_is_subsample(msg):
            if msg["value"] is None and fn.subsample_size not in (None, fn.size):
                self._drawn.add(name)
            return
        scale, frames = (
            torch.as_tensor(msg["scale"], dtype=torch.float64),
            [f for f in msg["cond_indep_stack"] if f.vectorized],
        )
        for f in frames:
            own = fn.batch_shape[f.dim] if len(fn.batch_shape) >= -f.dim else 1
            length = f.size if f.size > 0 else own  # a plate without a size is as long as its sites
            size = f.full_size if f.size > 0 else length
            plate = LatentPlate(f.name, f.dim, size, length, f.name in self._drawn)
            if f.name not in self.plates or self.plates[f.name].length < length:
                self.plates[f.name] = plate
            scale = scale / (size / length)
        if msg["is_observed"] or msg["value"] is not None:
            if msg["is_observed"] and isinstance(msg["value"], Tensor):
                dims = {f.name: f.dim for f in frames}
                self.data.setdefault(name, Datum(name, fn, msg["value"], dims, masked_by(msg)))
            return
        support = support_of(fn) or constraints.independent(constraints.real, len(fn.event_shape))
        start, spread, bijection = torch.zeros(()), torch.ones(()), None
        try:
            bijection = biject_to(support)
        except NotImplementedError:
            return self._add(msg, support, None, start, spread, frames, scale)
        start, spread = _mass(fn, support, bijection) if name not in self.values else (self.values[name], spread)
        msg["value"] = bijection(start)
        return self._add(msg, support, bijection, start, spread, frames, scale)

    def _add(
        self, msg: Any, support: Any, bijection: Any, start: Tensor, spread: Tensor, frames: list[Any], scale: Tensor
    ) -> None:
        fn = msg["fn"]
        latent = Latent(
            name=msg["name"],
            distribution=describe(fn),
            enumerated=bool((msg["infer"] or {}).get("enumerate")),
            support=support,
            bijection=bijection,
            batch_shape=tuple(fn.batch_shape),
            event_shape=tuple(fn.event_shape),
            plates=tuple(f.name for f in sorted(frames, key=lambda f: f.dim)),
            dtype=start.dtype,
            mask=masked_by(msg),
            scale=float(scale.max()) if bool(((scale - 1).abs() > 1e-6).any()) else 1.0,
            start=start,
            spread=spread,
            states=_states(fn),
            chain=next((f.name for f in frames if f.dim == getattr(fn, "chain_dim", None)), ""),
        )
        self.latents.setdefault(msg["name"], latent)


def _states(fn: Any) -> Tensor | None:
    try:
        single = bare(fn)
        states: Tensor | None = single.enumerate_support(expand=False) if single.has_enumerate_support else None
    except NotImplementedError:  # as many as the row says
        return None
    return states


def _mass(fn: Any, support: Any, bijection: Any) -> tuple[Tensor, Tensor]:
    """Median and standard deviation of draws on the unconstrained scale; 0 and 1 if a distribution cannot be drawn from."""
    shape = torch.Size(bijection.inverse_shape(fn.batch_shape + fn.event_shape))
    if isinstance(fn, ExpandedDistribution):  # the same law for each row, whose draws may be slow, as those of a flow
        start, spread = _mass(fn.base_dist, support, bijection)
        return start.expand(shape), spread.expand(shape)
    count = max(5, min(DRAWS, MOST // max(1, shape.numel())))
    try:
        draws = bijection.inv(fn.sample((count,))).reshape(count, *shape)
    except (NotImplementedError, RuntimeError, ValueError):
        return torch.zeros(shape), torch.ones(shape)
    draws = torch.where(draws.isfinite(), draws, draws.new_zeros(()))
    known = _moments(fn, shape) if isinstance(innermost(support), type(constraints.real)) else None
    if known is not None and all(right.all() for _, right in known):
        (mean, _), (sd, _) = known
        return mean.clone(), sd.clone()
    start, spread = draws.median(0).values, draws.std(0).clamp(min=1e-6)
    if known is not None:  # without the noise of the draws
        (mean, finite), (sd, positive) = known
        start, spread = torch.where(finite, mean, start), torch.where(positive, sd, spread)
    return start, spread


def _moments(fn: Any, shape: torch.Size) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Mean and standard deviation of a distribution, each with where it is usable; None if they are not known."""
    try:
        mean, sd = fn.mean.expand(shape), fn.stddev.expand(shape)
    except (NotImplementedError, AttributeError):
        return None
    return (mean, mean.isfinite()), (sd, sd.isfinite() & (sd > 0))
