"""Sites and plates of a program, read from a prototype run.

* `prototype` runs a program and reads its sites, supports, shapes and plates into a `Prototype`; `layout_of` reads a trace.
* `data_frame` finds the plate of the data; `role_of` tells data from latents, and both from statements that only record a
  value or add a number.
* `data_plate` makes the plate of a minibatch, for use in models and guides; `ModelPlate` makes that of a given model.
* `key_of` is a key of arguments that give a program the same sites.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, MaskedDistribution, Unit
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch.distributions import constraints

from pyro_vi.data import Batch, fresh, length_of, tensors_in
from pyro_vi.programs.isolation import Program
from pyro_vi.programs.messages import describe, running
from pyro_vi.programs.supports import support_of
from pyro_vi.support.pyro_internals import mask_of

Role = Literal["latent", "observed", "deterministic", "factor", "auxiliary", "subsample"]
"""The part of a sample statement in a program: see `role_of`."""
DATA_PLATES = ("data", "batch")
"""Names of a data plate, where several plates could be it."""


@dataclass(frozen=True)
class Plate:
    """A plate: its name, its dimension (negative), its full size, and its length: the number of rows in this run."""

    name: str
    dim: int
    size: int
    length: int


@dataclass(frozen=True)
class Site:
    """A sample statement of a program.

    ``batch_shape`` and ``event_shape`` are those on the prototype's batch; ``plates`` lists names, the outermost first.
    """

    name: str
    role: Role
    distribution: str
    support: constraints.Constraint
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    plates: tuple[str, ...]
    reparametrized: bool
    dtype: torch.dtype
    enumerated: bool = False

    @property
    def observed(self) -> bool:
        """True for a site of data."""
        return self.role == "observed"

    @property
    def auxiliary(self) -> bool:
        """True for a site of the guide that the model need not have."""
        return self.role == "auxiliary"

    @property
    def numel(self) -> int:
        """Number of scalars in one draw."""
        return math.prod(self.batch_shape) * math.prod(self.event_shape)


@dataclass(frozen=True)
class Prototype:
    """The sites and plates of a program, in the order in which one run met them; ``data`` is the name of the data plate."""

    sites: Mapping[str, Site]
    plates: Mapping[str, Plate]
    data: str | None

    @property
    def latents(self) -> dict[str, Site]:
        return {name: site for name, site in self.sites.items() if site.role == "latent"}

    @property
    def observed(self) -> dict[str, Site]:
        return {name: site for name, site in self.sites.items() if site.observed}

    @property
    def shared(self) -> list[str]:
        """Names of the latent sites outside the data plate, which all data share."""
        return [name for name, site in self.latents.items() if self.data not in site.plates]

    @property
    def max_plate_nesting(self) -> int:
        """Number of batch dimensions that plates or distributions use; a plate of particles goes to the left of them."""
        return max((len(site.batch_shape) for site in self.sites.values()), default=0)

    @property
    def data_plate(self) -> Plate | None:
        """The plate of the data: see `data_frame`."""
        return None if self.data is None else self.plates[self.data]

    def rows(self, length: int) -> tuple[int, int]:
        """Number of rows of the batch and number of data; see `pyro_vi.programs.pair.Pair.rows`."""
        plate = self.data_plate
        return (length, length) if plate is None else (plate.length, plate.size)


def data_plate(size: int | None, x: torch.Tensor, name: str = "data", dim: int = -1) -> Any:
    """Return the plate of a minibatch ``x``, in which log-densities are scaled by size / len(x), to the full ``size``.

    Without a size, or if the batch is longer (held-out data), the plate has the length of the batch and nothing is scaled.
    """
    length = len(x)
    if size is None or size <= length:
        return pyro.plate(name, length, dim=dim)
    # The row numbers do not matter: the batch is passed as values, and the scale depends on the number of rows only.
    return pyro.plate(name, size, subsample=torch.arange(length, device=x.device), dim=dim)


class ModelPlate:
    """The data plate of a model, for a guide that is made from the model.

    A plate that is as long as the batch grows and shrinks with it; a plate of a fixed size scales the rows of a minibatch.
    Which of both a plate is shows when the model runs on another number of rows: it is run once for each.

    Args:
        model: the generative program.
        layout: its prototype.
        args: the batch of the prototype.
    """

    def __init__(self, model: Program, layout: Prototype, args: Batch) -> None:
        assert layout.data_plate is not None
        self._model = model
        self.name, self.dim = layout.data_plate.name, layout.data_plate.dim
        self.plates = {length_of(args): layout.data_plate}

    def __call__(self, args: Batch) -> Any:
        """Return the plate for a batch, to be entered."""
        length = length_of(args)
        if length not in self.plates:
            with poutine.block():  # no handler of the guide sees this run
                found = prototype(self._model, args).data_plate
            self.plates[length] = found if found is not None else next(iter(self.plates.values()))
        plate = self.plates[length]
        device = next((a.device for a in tensors_in(args)), None)
        return data_plate(plate.size, torch.empty(plate.length, 0, device=device), self.name, self.dim)


def prototype(program: Program, args: Batch) -> Prototype:
    """Run a program by itself on ``args``, and read its sites, supports, shapes and plates.

    Raises:
        InputError: the program fails on this batch, for example because of its shape; the message includes the error.
    """
    with running(program, args):
        trace = poutine.trace(program).get_trace(*fresh(args))
    return layout_of(trace)


def layout_of(trace: Any) -> Prototype:
    """Read sites and plates from a trace."""
    trace = prune_subsample_sites(trace)
    nodes = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
    plates: dict[str, Plate] = {}
    for node in nodes.values():
        for frame in _vectorized(node):
            found = _plate(frame, node)
            if frame.name not in plates or found.length > plates[frame.name].length:
                plates[frame.name] = found
    data = data_frame(trace)
    sites = {}
    for name, node in nodes.items():
        fn, value = node["fn"], node["value"]
        sites[name] = Site(
            name=name,
            role=role_of(node),
            distribution=describe(fn),
            support=support_of(fn) or constraints.dependent,
            batch_shape=tuple(fn.batch_shape),
            event_shape=tuple(fn.event_shape),
            plates=tuple(f.name for f in sorted(node["cond_indep_stack"], key=lambda f: f.dim or 0) if f.vectorized),
            reparametrized=bool(fn.has_rsample),
            dtype=value.dtype,
            enumerated=bool((node["infer"] or {}).get("enumerate")),
        )
    return Prototype(sites, plates, data.name if data is not None else None)


def role_of(node: Any) -> Role:
    """Return the role of a site of a trace: latent, observed, deterministic, factor, auxiliary or subsample.

    A ``deterministic`` site records a value and has no density: `pyro.deterministic`, or a site that Pyro's reparameterizers
    have replaced. A ``factor`` adds a number to the log-density: `pyro.factor`, or the Jacobian of a reparameterizer.
    ``observed`` sites are the data.

    Example:
        >>> import pyro.distributions as dist
        >>> trace = poutine.trace(lambda: pyro.deterministic("b", torch.ones(()))).get_trace()
        >>> role_of(trace.nodes["b"])
        'deterministic'
    """
    fn, infer = node["fn"], node["infer"] or {}
    if site_is_subsample(node):
        return "subsample"
    if infer.get("_deterministic"):
        return "deterministic"
    if isinstance(fn, Unit):
        return "factor"
    if not node["is_observed"]:
        return "auxiliary" if infer.get("is_auxiliary") else "latent"
    # Pyro's reparameterizers leave an observed Delta at a site that they replace; nobody scores data by a Delta.
    masked = isinstance(fn, MaskedDistribution)
    if isinstance(fn.base_dist if masked else fn, Delta):
        return "deterministic" if masked and mask_of(fn) is False else "factor"
    return "observed"


def data_frame(trace: Any) -> Any:
    """Return the frame of the data plate in a trace of a model, or None: the plate whose rows are the data.

    It is a plate that all data sites share. Of several, in this order: one that subsamples; one that is named ``data`` or
    ``batch``; the one that most latent sites are in; the one that is entered first.
    """
    nodes = [n for n in trace.nodes.values() if n["type"] == "sample" and not site_is_subsample(n)]
    # A likelihood may be written as a factor alone.
    roles = ("observed",) if any(role_of(n) == "observed" for n in nodes) else ("factor",)
    stacks = [_vectorized(n) for n in nodes if role_of(n) in roles]
    if not stacks:
        return None
    shared = [frame for frame in stacks[0] if all(frame.name in [f.name for f in stack] for stack in stacks)]
    latents = [{f.name for f in _vectorized(n)} for n in nodes if role_of(n) == "latent"]

    def order(frame: Any) -> tuple[bool, bool, int]:
        inside = sum(frame.name in names for names in latents)
        return frame.full_size != frame.size, frame.name in DATA_PLATES, inside

    return max(shared, key=order, default=None)


def data_plate_of(trace: Any) -> Plate | None:
    """Return the data plate in a trace of a model: see `data_frame`."""
    frame = data_frame(trace)
    if frame is None:
        return None
    nodes = (
        n for n in trace.nodes.values() if n["type"] == "sample" and frame.name in [f.name for f in _vectorized(n)]
    )
    return max((_plate(frame, node) for node in nodes), key=lambda plate: plate.length)


def _plate(frame: Any, node: Any) -> Plate:
    # A plate without a size, `pyro.plate("data")`, is as long as its sites.
    fn, value = node["fn"], node["value"]
    values = value.shape[: value.dim() - len(fn.event_shape)] if isinstance(value, torch.Tensor) else ()
    own = max((shape[frame.dim] for shape in (fn.batch_shape, values) if len(shape) >= -frame.dim), default=1)
    length = frame.size if frame.size >= 0 else own
    return Plate(frame.name, frame.dim, frame.full_size if frame.full_size >= 0 else length, length)


def _vectorized(node: Any) -> list[Any]:
    # A name that starts with an underscore is the engine's: the plate of particles.
    return [f for f in node["cond_indep_stack"] if f.vectorized and not f.name.startswith("_")]


def key_of(args: Any) -> Any:
    """Return a key of the shapes and values of arguments: equal keys give a program the same sites."""
    if isinstance(args, torch.Tensor):
        return tuple(args.shape), args.dtype, args.device
    if isinstance(args, dict):
        return tuple((name, key_of(value)) for name, value in args.items())
    if isinstance(args, (tuple, list)):
        return tuple(map(key_of, args))
    return args if isinstance(args, (int, float, str, bool, type(None))) else id(args)
