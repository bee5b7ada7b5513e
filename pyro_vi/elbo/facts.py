"""Facts about a pair on which it depends what can be reported of it: point estimates, summed sites, sites shared by all data.

* `facts_of` finds them from runs of the pair; `Facts.objective` names what a fit of the pair maximises.
* `refuse_no_density` raises an error where p(x, z) / q(z) is no ratio of densities, so that there is no evidence.
"""

import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import TransformedDistribution

from pyro_vi.data import Batch, fresh
from pyro_vi.elbo.traces import Run, draw_traces
from pyro_vi.elbo.weights import enumerated_run
from pyro_vi.errors import InputError
from pyro_vi.programs import (
    Pair,
    Plate,
    bare,
    data_plate_of,
    describe,
    evaluating,
    inside,
    isolated,
    kept_buffers,
    role_of,
    trace_of_guide,
)
from pyro_vi.support.pyro_internals import mask_of

ELBO, MAP = "ELBO", "log p(x, z)"


@dataclass(frozen=True)
class Facts:
    """Facts about a pair on one batch.

    Attributes:
        points: latent sites at which the guide is a Delta: a point estimate, which has no density.
        summed: latent sites that the guide lacks and that are marked for enumeration.
        shared: latent sites outside the data plate.
        plate: the data plate, or None.
    """

    points: tuple[str, ...]
    summed: tuple[str, ...]
    shared: tuple[str, ...]
    plate: Plate | None

    @property
    def objective(self) -> str:
        """The name of what a fit maximises: ``"ELBO"``, or ``"log p(x, z)"`` where the guide is a point estimate."""
        return MAP if self.points else ELBO

    @property
    def remark(self) -> str:
        """The sentence that a report of a point estimate needs; empty for other guides."""
        if not self.points:
            return ""
        return (
            f"MAP: no ELBO, no evidence; the fit maximises log p(x, z), with a point estimate of {quoted(self.points)}"
        )


def facts_of(pair: Pair, args: Batch) -> Facts:
    """Return the facts about a pair, from runs on the batch; they change neither the pair nor the generators.

    Raises:
        InputError: the guide lacks a latent site that cannot be summed.
    """
    layout, guide_layout = pair.layouts(args)
    lacking = [name for name in layout.latents if name not in guide_layout.sites]
    run = one_run(pair, args, bool(lacking))
    summed = []
    for name in lacking:
        infer = run.model_trace.nodes[name]["infer"]
        if infer.get("_enumerate_dim") is None:
            raise InputError(
                f"the guide has no site '{name}' and the model does not sum over it, so no report can include it; sample "
                f"'{name}' in the guide, or mark it by infer={{'enumerate': 'parallel'}} if it is discrete"
            )
        if infer.get("num_samples") is not None:
            raise InputError(
                f"site '{name}' is drawn {infer['num_samples']} times and not summed over its states; sample it in the "
                "guide, or leave out num_samples if it is discrete"
            )
        summed.append(name)
    plate = data_plate_of(run.model_trace)
    nodes = {n: node for n, node in run.model_trace.nodes.items() if n in layout.latents}
    shared = [n for n, node in nodes.items() if plate is None or plate.name not in _frames(node)]
    return Facts(_points(pair, args, run), tuple(summed), tuple(shared), plate)


def one_run(pair: Pair, args: Batch, enumerate: bool, seed: int = 0) -> Run:
    """Return one run of a pair in evaluation mode, without side effects."""
    with torch.no_grad(), evaluating(pair), isolated(seed, validation=False), kept_buffers(pair):
        if not enumerate:
            return draw_traces(pair.model, pair.guide, args)
        return enumerated_run(pair, args, None, nesting_of(pair, args))


def nesting_of(pair: Pair, args: Batch) -> int:
    """Number of batch dimensions of the widest site or plate: sites in a plate without a size may be narrower than it."""
    layouts = pair.layouts(args)
    plates = [-plate.dim for layout in layouts for plate in layout.plates.values()]
    return max([layout.max_plate_nesting for layout in layouts] + plates)


def refuse_no_density(pair: Pair, args: Batch, facts: Facts) -> None:
    """Raise InputError, with the site and the remedy, where the weight p(x, z) / q(z) is no ratio of densities."""
    if facts.points:
        raise InputError(f"{facts.remark}; for an evidence, fit a guide that has a density, such as AutoNormal")
    run = one_run(pair, args, bool(facts.summed))
    model, guide = run.model_trace.nodes, run.guide_trace.nodes
    for name, node in guide.items():
        if node["type"] != "sample":
            continue
        if isinstance(node["fn"], dist.Unit):
            raise InputError(
                f"the guide has a factor '{name}', so that it is no density and its weights give no evidence; leave the "
                "factor out, or draw from a distribution whose log_prob includes it"
            )
        if role_of(node) == "observed":
            raise InputError(f"the guide observes '{name}', so that it is no density; observe it in the model only")
        if node["is_observed"] or node["infer"].get("is_auxiliary"):
            continue
        if name not in model:
            raise InputError(f"the guide draws '{name}', which the model does not have; leave it out of the guide")
        if model[name]["is_observed"]:
            raise InputError(f"the guide draws '{name}', which the model observes; leave it out of the guide")
        if _delta(node["fn"]) and not _delta(model[name]["fn"]) and not _has_auxiliary(run.guide_trace):
            raise InputError(
                f"the guide puts '{name}' at a function of its other draws, so that it has no density; use a "
                "distribution, or compute it in the model"
            )
        if not _same_mask(model[name], node):
            raise InputError(
                f"site '{name}' has different masks in the model and the guide, so that p(x, z) / q(z) is no importance "
                "weight; put the same poutine.mask around both"
            )
    for nodes in (model, guide):
        for name, node in nodes.items():
            if node["type"] == "sample" and role_of(node) != "deterministic":
                _refuse_scale(name, node)
    for name, node in model.items():
        if node["type"] == "sample" and role_of(node) == "observed":
            _refuse_data(name, node, None if facts.summed else facts.plate)


def _refuse_data(name: str, node: Any, plate: Plate | None) -> None:
    """Refuse observed values without a density, and values whose rows are not those of the data plate."""
    fn = node["fn"]
    # torch clamps what a chain of transforms does not reach. Other values outside a support may be meant: grey pixels.
    good = inside(fn, node["value"]) if isinstance(bare(fn), TransformedDistribution) else None
    if good is not None and not bool((good | ~site_mask(node)).all()):
        raise InputError(
            f"observed values of site '{name}' are outside the support of {describe(fn)}, where log p is -inf; use another "
            "likelihood, or rescale the data"
        )
    declared = {frame.dim for frame in node["cond_indep_stack"] if frame.vectorized}
    undeclared = [d for d in range(-len(fn.batch_shape), 0) if fn.batch_shape[d] > 1 and d not in declared]
    if plate is not None and undeclared:
        raise InputError(
            f"site '{name}' has the batch shape {tuple(fn.batch_shape)}, which its plates do not declare, so that its rows "
            "may not be those of the data; call to_event on its distribution"
        )


def quoted(names: Any) -> str:
    """Return names in quotation marks, separated by commas; of many names the first three and the number of the others."""
    listed = [repr(name) for name in names]
    return ", ".join(listed if len(listed) <= 4 else [*listed[:3], f"and {len(listed) - 3} more"])


def own_scale(node: Any) -> Tensor | float:
    """The scale of a site by `poutine.scale`: its whole scale without the factors of subsampled plates."""
    factor = math.prod(f.full_size / f.size for f in node["cond_indep_stack"] if f.size and f.size > 0)
    scale: Tensor | float = node["scale"] / factor
    return scale


def _refuse_scale(name: str, node: Any) -> None:
    scale = torch.as_tensor(own_scale(node))
    if not torch.allclose(scale, torch.ones_like(scale), rtol=1e-5):
        size = f"by {float(scale):.4g}" if scale.numel() == 1 else "by a tensor"
        raise InputError(
            f"site '{name}' is scaled {size} (poutine.scale), so that its term is no log-density and there is no evidence; "
            "call the programs without the scale"
        )


def _points(pair: Pair, args: Batch, run: Run) -> tuple[str, ...]:
    """Delta sites of the guide whose value is the same in each draw, unless it is empty or the model has a Delta too."""
    guide, model = run.guide_trace.nodes, run.model_trace.nodes
    deltas = [
        name
        for name, node in guide.items()
        if node["type"] == "sample" and not node["is_observed"] and _delta(node["fn"])
        if name in model and not model[name]["is_observed"] and not _delta(model[name]["fn"])
    ]
    if not deltas:
        return ()
    with torch.no_grad(), evaluating(pair), isolated(1, validation=False), kept_buffers(pair), poutine.block():
        other: Any = trace_of_guide(pair.guide, fresh(args))
    values = {name: guide[name]["value"] for name in deltas}
    return tuple(n for n, value in values.items() if value.numel() and torch.equal(value, other.nodes[n]["value"]))


def _delta(fn: Any) -> bool:
    while not isinstance(fn, dist.Delta) and hasattr(fn, "base_dist") and type(fn).__name__ in _WRAPPERS:
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


_WRAPPERS = ("Independent", "MaskedDistribution", "ExpandedDistribution")


def _has_auxiliary(trace: Any) -> bool:
    return any(n["type"] == "sample" and n["infer"].get("is_auxiliary") for n in trace.nodes.values())


def _frames(node: Any) -> set[str]:
    return {frame.name for frame in node["cond_indep_stack"]}


def _same_mask(one: Any, other: Any) -> bool:
    masks = [torch.ones(()).bool() & entry_mask(node) for node in (one, other)]
    try:
        return all(torch.equal(*pair) for pair in [torch.broadcast_tensors(*masks)])
    except RuntimeError:
        return False


def site_mask(node: Any) -> Tensor:
    """The mask of a site, by `poutine.mask` and by ``dist.mask``; True where there is none."""
    mask = torch.as_tensor(True if node["mask"] is None else node["mask"])
    if isinstance(node["fn"], dist.MaskedDistribution):
        mask = mask & torch.as_tensor(mask_of(node["fn"]))
    return mask


def entry_mask(node: Any) -> Tensor:
    """`site_mask` with the dimensions of the event, and with masks inside it: ``dist.Normal(…).mask(m).to_event(1)``."""
    fn: Any = node["fn"]
    mask = torch.as_tensor(True if node["mask"] is None else node["mask"])
    mask = mask.reshape(mask.shape + (1,) * len(fn.event_shape))
    while isinstance(fn, (dist.MaskedDistribution, dist.Independent, dist.ExpandedDistribution)):
        if isinstance(fn, dist.MaskedDistribution):
            own = torch.as_tensor(mask_of(fn))
            mask = mask & own.reshape(own.shape + (1,) * len(fn.event_shape))
        fn = fn.base_dist
    return mask
