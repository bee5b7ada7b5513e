"""A pair: a model and a guide that share their latent sites, and what one run of them shows.

* `isolated` is the room in which every program runs: a parameter store of its own, every global put back.
* `prototype` runs one program once and reads its sites, supports, shapes and plates.
* `Pair` holds the two programs as modules.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import nn
from torch.distributions import Distribution, constraints

from pyro_vi.binding import kept_buffers, ready
from pyro_vi.data import Batch
from pyro_vi.errors import InputError, first_line
from pyro_vi.randomness import kept_generators, seed_generators

PARTICLES = "_particles"
"""Name of the plate in which many draws are made at once."""


@contextmanager
def isolated(seed: int | None = None, *, validation: bool | None = None) -> Iterator[None]:
    """Run Pyro programs without a trace: the parameter store, generators, validation flags and dtype are put back.

    Args:
        seed: seeds the generators of torch, NumPy and Python for the time of the block; by default they run on as they are.
        validation: Pyro's validation of distributions and traces within the block; by default as it is.
    """
    dtype, check_args = torch.get_default_dtype(), Distribution._validate_args
    flag = pyro.poutine.util.is_validation_enabled() if validation is None else validation
    try:
        with (
            pyro.get_param_store().scope(),
            pyro.settings.context(module_local_params=True),
            kept_generators() if seed is not None else nullcontext(),
            pyro.validation_enabled(flag),
        ):
            if seed is not None:
                seed_generators(seed)
            yield
    finally:
        torch.set_default_dtype(dtype)
        Distribution.set_default_validate_args(check_args)


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


class Pair(nn.Module):
    """A model and a guide as one module; a parameter is named as in its program, with its owner before it on a clash.

    Args:
        model: the generative program p(x, z), a module called with a batch.
        guide: the variational program q(z | x), a module called with the same batch.
    """

    def __init__(self, model: nn.Module, guide: nn.Module) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        self._layouts: dict[Any, tuple[Prototype, Prototype]] = {}
        ready(self)

    def layouts(self, args: Batch) -> tuple[Prototype, Prototype]:
        """The prototypes of model and guide on a batch; the programs run once for each shape of a batch."""
        shapes = tuple(tuple(a.shape) if isinstance(a, torch.Tensor) else None for a in args)
        if shapes not in self._layouts:
            self._layouts[shapes] = prototype(self.model, args), prototype(self.guide, args)
        return self._layouts[shapes]

    def owned(self, args: Batch | None = None) -> dict[str, tuple[str, nn.Parameter]]:
        """Trainable parameters by name, each with its owner: ``"model"`` or ``"guide"``.

        A parameter that both programs hold (a network registered in both, an exact guide that reads the model) is the
        model's if log p(x, z) at a fixed z depends on it, which is looked up on the batch ``args``, else the guide's.
        """
        held = {id(p) for p in self.guide.parameters()} & {id(p) for p in self.model.parameters() if p.requires_grad}
        only_guide = self._unused_by_model(args, held) if held and args is not None else set()
        result: dict[str, tuple[str, nn.Parameter]] = {}
        seen: set[int] = set()
        for owner, program in (("model", self.model), ("guide", self.guide)):
            for name, parameter in program.named_parameters():
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    part = "guide" if id(parameter) in only_guide else owner
                    result[f"{owner}.{name}" if name in result else name] = (part, parameter)
        return result

    def _unused_by_model(self, args: Batch, held: set[int]) -> set[int]:
        with isolated(seed=0):
            with torch.no_grad():
                guide_trace = poutine.trace(self.guide).get_trace(*args)
            trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(*args)
            log_p = torch.as_tensor(trace.log_prob_sum())
        shared = [p for p in self.model.parameters() if id(p) in held]
        gradients = (
            torch.autograd.grad(log_p, shared, allow_unused=True) if log_p.requires_grad else [None] * len(shared)
        )
        return {id(p) for p, g in zip(shared, gradients, strict=True) if g is None}
