"""Sites and plates of a program, read from a prototype run.

* `prototype` runs one program once and reads its sites, supports, shapes and plates into a `Prototype`.
* `data_plate` is the plate of a minibatch, as the project's own programs write it.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch.distributions import constraints

from pyro_vi.data import Batch
from pyro_vi.errors import InputError, first_line
from pyro_vi.programs.isolation import isolated, kept_buffers, ready


@dataclass(frozen=True)
class Plate:
    """A plate: its name, its dimension (negative), and its full size; ``None`` where that is the batch's own length."""

    name: str
    dim: int
    size: int | None


@dataclass(frozen=True)
class Site:
    """A sample statement of a program.

    ``batch_shape`` and ``event_shape`` are those of the prototype's batch; ``plates`` are named from the outermost in.
    """

    name: str
    observed: bool
    auxiliary: bool
    distribution: str
    support: constraints.Constraint
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    plates: tuple[str, ...]
    reparametrized: bool
    dtype: torch.dtype
    enumerated: bool = False

    @property
    def numel(self) -> int:
        """Numbers in one draw."""
        return math.prod(self.batch_shape) * math.prod(self.event_shape)


@dataclass(frozen=True)
class Prototype:
    """What one run of a program shows: its sites and plates, in the order of the program."""

    sites: Mapping[str, Site]
    plates: Mapping[str, Plate]

    @property
    def latents(self) -> dict[str, Site]:
        return {name: site for name, site in self.sites.items() if not site.observed and not site.auxiliary}

    @property
    def observed(self) -> dict[str, Site]:
        return {name: site for name, site in self.sites.items() if site.observed}

    @property
    def max_plate_nesting(self) -> int:
        """Number of batch dimensions that plates or distributions take, so that particles can stand left of them."""
        return max((len(site.batch_shape) for site in self.sites.values()), default=0)

    def data_plate(self, length: int) -> Plate | None:
        """The plate that all observed sites share: the one as long as the batch if several do, else the outermost."""
        observed = list(self.observed.values())
        if not observed:
            return None
        shared = [p for p in observed[0].plates if all(p in site.plates for site in observed)]
        by_length = [p for p in shared if observed[0].batch_shape[self.plates[p].dim] == length]
        names = by_length or shared
        return self.plates[names[0]] if names else None


def data_plate(size: int | None, x: torch.Tensor, name: str = "data", dim: int = -1) -> Any:
    """The plate of a minibatch ``x``: its log-densities are scaled to the full ``size``, by size / len(x).

    Without a size, or with a batch longer than it (held-out data), the plate is as long as the batch.
    """
    length = len(x)
    if size is None or size <= length:
        return pyro.plate(name, length, dim=dim)
    # Which rows they are does not matter: the batch is passed as values, and only the number of rows sets the scale.
    return pyro.plate(name, size, subsample=torch.arange(length, device=x.device), dim=dim)


def prototype(program: Any, args: Batch) -> Prototype:
    """Run ``program`` once on ``args`` and once on its first rows, and read its sites, supports, shapes and plates.

    The second run tells a plate with a size of its own (``plate("data", 1500, subsample=...)``) from one that is as long
    as the batch; all sizes of a program that takes no shorter batch are its own.

    Raises:
        InputError: the program fails on this batch (say, a shape that does not fit), with its message.
    """
    trace = _trace(program, args)
    length = len(args[0]) if args and isinstance(args[0], torch.Tensor) and args[0].dim() else 0
    shorter = tuple(
        a[: max(1, length // 2)] if isinstance(a, torch.Tensor) and a.dim() and len(a) == length else a for a in args
    )
    sizes: dict[str, int] = {}
    if length > 1:
        with suppress(InputError):  # such as a guide with parameters for each datum
            sizes = {f.name: f.full_size for f in _frames(_trace(program, shorter))}
    plates = {}
    for frame in _frames(trace):
        if frame.vectorized:
            fixed = frame.full_size == sizes.get(frame.name, frame.full_size)
            plates[frame.name] = Plate(frame.name, frame.dim, frame.full_size if fixed else None)
    sites = {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        fn, value = node["fn"], node["value"]
        sites[name] = Site(
            name=name,
            observed=node["is_observed"],
            auxiliary=bool(node["infer"].get("is_auxiliary")),
            distribution=describe(fn),
            support=_support(fn),
            batch_shape=tuple(fn.batch_shape),
            event_shape=tuple(fn.event_shape),
            plates=tuple(f.name for f in sorted(node["cond_indep_stack"], key=lambda f: f.dim or 0) if f.vectorized),
            reparametrized=bool(fn.has_rsample),
            dtype=value.dtype,
            enumerated=bool((node["infer"] or {}).get("enumerate")),
        )
    return Prototype(sites, plates)


def _support(fn: Any) -> constraints.Constraint:
    # Pyro's wrapper of zuko's flows does not say on what they have their density.
    try:
        support: constraints.Constraint = fn.support
    except NotImplementedError:
        return constraints.dependent
    return support


def describe(fn: Any) -> str:
    """A distribution's name as people write it: ``Normal``, ``Independent(Normal)``, ``Transformed(Normal)``.

    Example:
        >>> import pyro.distributions as dist
        >>> describe(dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        'Independent(Normal)'
    """
    name = type(fn).__name__
    base = getattr(fn, "base_dist", None)
    if name in ("Independent", "MaskedDistribution", "ExpandedDistribution") and base is not None:
        return describe(base) if name == "ExpandedDistribution" else f"{name}({describe(base)})"
    if name == "TransformedDistribution":
        return f"Transformed({describe(base)})"
    return name


def _trace(program: Any, args: Batch) -> Any:
    ready(program)
    with torch.no_grad(), isolated(seed=0), kept_buffers(program):
        try:
            return prune_subsample_sites(poutine.trace(program).get_trace(*args))
        except InputError:
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(a.shape)) for a in args if isinstance(a, torch.Tensor))
            raise InputError(f"{title(program)} fails on a batch of shape {shapes}: {first_line(error)}") from error


def title(program: Any) -> str:
    """What to call a program in a message."""
    hidden = getattr(program, "_hidden", None)
    if hidden is not None:
        program = hidden[0]
    return getattr(program, "__qualname__", None) or type(program).__name__


def _frames(trace: Any) -> Iterator[Any]:
    for node in trace.nodes.values():
        if node["type"] == "sample":
            yield from node["cond_indep_stack"]
