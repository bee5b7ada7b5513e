"""Log-weights log p(x, z) − log q(z) of draws, with the sites that the guide leaves to enumeration summed exactly.

* `Weight` is the log-weight of draws, split into the part of each datum and the part that all data share.
* `weight_of_terms` takes it from `Terms`; `enumerated_run` makes a run with enumeration, and `summed_weight` sums it.
* `density_of` is the log-density of some sites of a trace alone.
* `summed_at_once` finds out if many such draws can be made in one run.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import broadcast_shape, scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vi.data import Batch, fresh
from pyro_vi.elbo.decomposition import Terms
from pyro_vi.elbo.traces import PARTICLES, Run
from pyro_vi.programs import Give, Pair, Plate, data_plate_of, isolated, kept_buffers, trace_of_guide
from pyro_vi.support.pyro_internals import dims_of


class Keep(Messenger):
    """Keep the guide's draws in a model that is enumerated: its sites have them, whether they are marked or not.

    `poutine.replay` would also take away what enumeration notes about the dimensions of a site.
    """

    def __init__(self, guide_trace: Any) -> None:
        super().__init__()
        nodes = guide_trace.nodes.items()
        self.values = {n: v["value"] for n, v in nodes if v["type"] == "sample" and not v["is_observed"]}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["infer"] = self.values[msg["name"]], {**msg["infer"], "enumerate": None}


@dataclass(frozen=True)
class Weight:
    """log p(x, z) − log q(z) of draws, without the factor of a subsampled plate, in nats.

    Attributes:
        local: the part of each datum, shape ``(..., B)``; of a model without a data plate it is 0, and B is 1.
        shared: the part of all data, shape ``(...)``.
    """

    local: Tensor
    shared: Tensor

    @property
    def total(self) -> Tensor:
        """The log-weight of the whole batch, shape ``(...)``."""
        return self.local.sum(-1) + self.shared


def weight_of_terms(terms: Terms) -> Weight:
    """The log-weight of the draws in ``terms``, in which no site is summed."""
    local: list[Tensor] = []
    shared: list[Tensor] = []
    for site in terms.sites.values():
        into = local if site.local else shared
        into += [] if site.log_p is None else [site.log_p]
        into += [] if site.log_q is None else [-site.log_q]
    return _weight(local, shared, terms.rows)


def summed_weight(run: Run) -> Weight:
    """The log-weight of an `enumerated_run`: log Σ_k p(x, z, k) − log q(z), summed over the states of the enumerated sites.

    The sum is made by the message passing of `pyro.ops.contract`, as in `TraceEnum_ELBO`.
    """
    trace = run.model_trace
    plate = data_plate_of(trace)
    frames = {f.name: f for t in (trace, run.guide_trace) for n in _samples(t) for f in n["cond_indep_stack"]}
    rows = 1 if plate is None else plate.length
    names = {symbol: name for name, symbol in trace.plate_to_symbol.items()}
    factors: OrderedDict[frozenset[str], list[Any]] = OrderedDict()
    summed: set[str] = set()
    for node in _samples(trace):
        ordinal = frozenset(trace.plate_to_symbol[f.name] for f in node["cond_indep_stack"] if f.vectorized)
        factor = node["packed"]["log_prob"]
        summed |= set(dims_of(factor)) - set(names)
        factors.setdefault(ordinal, []).append(factor)
    contracted = contract_tensor_tree(factors, summed)
    parts = [
        (_reduced(packed.unpack(factor, trace.symbol_to_dim), held, plate), held)
        for ordinal, found in contracted.items()
        for held in [[frames[names[symbol]] for symbol in ordinal]]
        for factor in found
    ]
    for node in _samples(run.guide_trace):
        parts.append((-_reduced(node["log_prob"], node["cond_indep_stack"], plate), node["cond_indep_stack"]))
    inside = [plate is not None and plate.name in {f.name for f in held} for _, held in parts]
    local = [part for (part, _), here in zip(parts, inside, strict=True) if here]
    return _weight(local, [part for (part, _), here in zip(parts, inside, strict=True) if not here], rows)


def density_of(trace: Any, plate: Plate | None, names: Collection[str] | None = None) -> Weight:
    """The log-density of what a trace has drawn or observed, without any scale, split as a log-weight is.

    Args:
        trace: of a model or a guide.
        plate: the data plate.
        names: the sites that count; by default all.
    """
    local: list[Tensor] = []
    shared: list[Tensor] = []
    for node in _samples(trace):
        if names is None or node["name"] in names:
            inside = plate is not None and plate.name in {f.name for f in node["cond_indep_stack"]}
            value = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
            (local if inside else shared).append(_reduced(value, node["cond_indep_stack"], plate))
    return _weight(local, shared, 1 if plate is None else plate.length)


def enumerated_run(pair: Pair, args: Batch, particles: int | None = None, nesting: int = 0) -> Run:
    """Run the guide, and the model on its draws, with the marked sites that the guide lacks enumerated.

    The traces have log-densities without any scale, and those of the model are packed.
    """
    model: Any = pair.model
    guide: Any = pair.guide
    if particles is not None:
        plate = pyro.plate(PARTICLES, particles, dim=-1 - nesting)
        model, guide = plate(model), plate(guide)
    args = fresh(args)
    guide_trace: Any = trace_of_guide(guide, args)
    enumerated = poutine.enum(Keep(guide_trace)(model), first_available_dim=-1 - nesting - (particles is not None))
    model_trace: Any = poutine.trace(enumerated).get_trace(*args)
    values = {
        name: node["value"]
        for trace in (model_trace, guide_trace)
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and not node["is_observed"]
        and isinstance(node["value"], Tensor)
        and node["infer"].get("_enumerate_dim") is None
    }
    values.pop(PARTICLES, None)
    model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
    subsamples = {n: v for n, v in values.items() if n not in model_trace.nodes and n not in guide_trace.nodes}
    for trace in (model_trace, guide_trace):
        trace.compute_log_prob()
        for node in _samples(trace):
            node["log_prob"] = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
    model_trace.pack_tensors()
    return Run(model_trace, guide_trace, values, subsamples)


def summed_at_once(pair: Pair, args: Batch, nesting: int) -> bool:
    """True if many enumerated draws can be made in one run: two of them must equal two single ones on the same values."""
    with torch.no_grad(), isolated(seed=0, validation=False), kept_buffers(pair):
        single = enumerated_run(pair, args, None, nesting)
        try:
            with Give(single.subsamples):
                many = enumerated_run(pair, args, 2, nesting)
            together = summed_weight(many)
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError):
            return False
        apart = []
        for k in range(2):
            values = dict(single.subsamples)
            for name in many.values.keys() - values.keys():
                value, like = many.values[name], single.values[name]
                if value.shape[:1] != (2,) or value[k].numel() != like.numel():
                    return False
                values[name] = value[k].reshape(like.shape)
            with Give(values):
                apart.append(summed_weight(enumerated_run(pair, args, None, nesting)))
    for part in ("local", "shared"):
        expected, found = torch.stack([getattr(one, part) for one in apart]), getattr(together, part)
        tolerance = 1e-4 if expected.dtype == torch.float32 else 1e-9
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
            return False
    return True


def _samples(trace: Any) -> list[Any]:
    return [node for node in trace.nodes.values() if node["type"] == "sample"]


def _weight(local: list[Tensor], shared: list[Tensor], rows: int) -> Weight:
    zero = next((torch.zeros((), dtype=t.dtype, device=t.device) for t in (*local, *shared)), torch.zeros(()))
    inside, outside = sum(local, zero.expand(rows)), sum(shared, zero)
    many = broadcast_shape(inside.shape[:-1], outside.shape)
    return Weight(inside.expand(*many, rows), outside.expand(many))


def _reduced(value: Tensor, frames: Any, plate: Plate | None) -> Tensor:
    """Sum over all batch dimensions but those of the particles and of the data plate."""
    kept = {f.dim: f.size for f in frames if f.name == PARTICLES}
    if plate is not None and plate.name in {f.name for f in frames}:
        kept[plate.dim] = plate.length  # the frame of a plate without a size does not know it
    if kept:
        # torch.broadcast_shapes takes longer than the sum.
        wide = max(value.dim(), -min(kept))
        have = (1,) * (wide - value.dim()) + tuple(value.shape)
        value = value.expand([kept.get(i - wide, 1) if n == 1 else n for i, n in enumerate(have)])
    others = [dim for dim in range(-value.dim(), 0) if dim not in kept]
    return value.sum(others) if others else value
