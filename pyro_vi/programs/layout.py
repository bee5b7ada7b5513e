"""Sites and plates of a program, read from a prototype run.

* `prototype` runs a program and reads its sites, supports, shapes and plates into a `Prototype`.
* `data_plate` makes the plate of a minibatch, for use in models and guides.
* `describe` and `title` name distributions and programs in messages.
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
from pyro_vi.programs.isolation import Program, isolated, kept_buffers, ready


@dataclass(frozen=True)
class Plate:
    """A plate: its name, its dimension (negative), and its full size, or ``None`` if the size is the length of the batch."""

    name: str
    dim: int
    size: int | None


@dataclass(frozen=True)
class Site:
    """A sample statement of a program.

    ``batch_shape`` and ``event_shape`` are those on the prototype's batch; ``plates`` lists names, the outermost first.
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
        """Number of scalars in one draw."""
        return math.prod(self.batch_shape) * math.prod(self.event_shape)


@dataclass(frozen=True)
class Prototype:
    """The sites and plates of a program, in the order in which one run met them."""

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
        """Number of batch dimensions that plates or distributions use; a plate of particles goes to the left of them."""
        return max((len(site.batch_shape) for site in self.sites.values()), default=0)

    def data_plate(self, length: int) -> Plate | None:
        """The plate that all observed sites share: of several, the one as long as the batch, else the outermost."""
        observed = list(self.observed.values())
        if not observed:
            return None
        shared = [p for p in observed[0].plates if all(p in site.plates for site in observed)]
        by_length = [p for p in shared if observed[0].batch_shape[self.plates[p].dim] == length]
        names = by_length or shared
        return self.plates[names[0]] if names else None


def data_plate(size: int | None, x: torch.Tensor, name: str = "data", dim: int = -1) -> Any:
    """Return the plate of a minibatch ``x``, in which log-densities are scaled by size / len(x), to the full ``size``.

    Without a size, or if the batch is longer (held-out data), the plate has the length of the batch and nothing is scaled.
    """
    length = len(x)
    if size is None or size <= length:
        return pyro.plate(name, length, dim=dim)
    # The row numbers do not matter: the batch is passed as values, and the scale depends on the number of rows only.
    return pyro.plate(name, size, subsample=torch.arange(length, device=x.device), dim=dim)


def prototype(program: Program, args: Batch) -> Prototype:
    """Run ``program`` once on ``args`` and once on its first rows, and read its sites, supports, shapes and plates.

    The second run distinguishes a plate of fixed size (``plate("data", 1500, subsample=...)``) from one that is as long as
    the batch. If the program fails on the shorter batch, all sizes count as fixed.

    Raises:
        InputError: the program fails on this batch, for example because of its shape; the message includes the error.
    """
    trace = _trace(program, args)
    length = len(args[0]) if args and isinstance(args[0], torch.Tensor) and args[0].dim() else 0
    shorter = tuple(
        a[: max(1, length // 2)] if isinstance(a, torch.Tensor) and a.dim() and len(a) == length else a for a in args
    )
    sizes: dict[str, int] = {}
    if length > 1:
        with suppress(InputError):  # for example, a guide with parameters for each datum
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


def describe(fn: Any) -> str:
    """Return the name of a distribution in messages: ``Normal``, ``Independent(Normal)``, ``Transformed(Normal)``.

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


def title(program: Program) -> str:
    """Return the name of a program in messages."""
    hidden = getattr(program, "_hidden", None)
    if hidden is not None:
        program = hidden[0]
    return getattr(program, "__qualname__", None) or type(program).__name__


def _trace(program: Program, args: Batch) -> Any:
    ready(program)
    with torch.no_grad(), isolated(seed=0), kept_buffers(program):
        try:
            return prune_subsample_sites(poutine.trace(program).get_trace(*args))
        except InputError:
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(a.shape)) for a in args if isinstance(a, torch.Tensor))
            raise InputError(f"{title(program)} fails on a batch of shape {shapes}: {first_line(error)}") from error


def _frames(trace: Any) -> Iterator[Any]:
    for node in trace.nodes.values():
        if node["type"] == "sample":
            yield from node["cond_indep_stack"]


def _support(fn: Any) -> constraints.Constraint:
    # Pyro's wrapper of zuko's flows does not define their support.
    try:
        support: constraints.Constraint = fn.support
    except NotImplementedError:
        return constraints.dependent
    return support
