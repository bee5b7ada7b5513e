"""The family that a guide belongs to, and the best of it for each datum.

* `family_of` reads it: from log q itself, which is quadratic for normals, and from the distributions of its sites.
"""

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Delta, LowRankMultivariateNormal, MultivariateNormal, Normal, TransformedDistribution
from torch import Tensor

from pyro_vi.data import Batch, fresh
from pyro_vi.diagnostics.splitting.descent import descend
from pyro_vi.diagnostics.splitting.expectations import matched
from pyro_vi.diagnostics.splitting.normals import Normals, blocks_of
from pyro_vi.diagnostics.splitting.targets import Target
from pyro_vi.elbo import quoted, unwrapped
from pyro_vi.programs import Pair, describe, trace_of_guide

DIAGONAL, BLOCKS, LOW_RANK, FULL, FLOW = "diag_normal", "block_normal", "low_rank_normal", "full_normal", "flow"
WORDS = {
    DIAGONAL: "the diagonal normal",
    BLOCKS: "the normal with blocks of covariances",
    LOW_RANK: "the low-rank normal",
    FULL: "the full normal",
    FLOW: "the flow",
}
"""The families by name, in the words of sentences."""
LOW_RANK_STEPS, LOW_RANK_DRAWS = 300, 256


@dataclass(frozen=True)
class Own:
    """The family of a guide.

    Attributes:
        name: one of `WORDS`; empty if it is none of them.
        pattern: of a normal, which covariances differ from 0, (D, D).
        rank: of a low-rank normal.
        note: what was taken for the family, or why there is none, in one line; empty where nothing needs to be said.
    """

    name: str
    pattern: Tensor | None = None
    rank: int = 0
    note: str = ""


def family_of(target: Target, normals: Normals | None) -> Own:
    """Return the family of a guide; ``normals`` are those that `read_normals` has read, or None."""
    sites = _distributions(target.pair, target.args)
    rank = max(
        (fn.cov_factor.shape[-1] for fn in sites.values() if isinstance(fn, LowRankMultivariateNormal)), default=0
    )
    if normals is not None:
        pattern, full = blocks_of(normals, 1e-3 if target.dtype == torch.float32 else 1e-7)
        if 0 < rank < target.size - 1:  # with more columns, it is any normal
            return Own(LOW_RANK, rank=rank)
        if bool(pattern.all()) and target.size > 1:
            if full:
                return Own(FULL, pattern)
            return Own("", note=_NO_FAMILY.format("a normal in which some numbers are independent given the others"))
        if int(pattern.sum()) == target.size:
            return Own(DIAGONAL, pattern)
        if full:
            return Own(BLOCKS, pattern)
        return Own("", note=_NO_FAMILY.format("a normal in which some numbers are independent given the others"))
    if any(getattr(fn, "described", "") == "Flow" or _flow(fn) for fn in sites.values()):
        note = (
            "the guide's flow has parameters for all data; its family is taken as a flow with parameters for each datum"
        )
        return Own(FLOW, note=note)
    auxiliary = [fn for name, fn in sites.items() if name not in target.sizes]
    if auxiliary and all(isinstance(fn, Normal) for fn in auxiliary):
        return Own(DIAGONAL, torch.eye(target.size, dtype=torch.bool))
    if len(auxiliary) == 1 and isinstance(auxiliary[0], MultivariateNormal | LowRankMultivariateNormal):
        if 0 < rank < target.size - 1:
            return Own(LOW_RANK, rank=rank)
        return Own(FULL, torch.ones(target.size, target.size, dtype=torch.bool))
    kinds = sorted({describe(fn) for fn in sites.values()})
    return Own("", note=_NO_FAMILY.format(f"{', '.join(kinds)} at {quoted(sites)}"))


_NO_FAMILY = "the guide's family is {}, of which the best is not searched: amortization is left out"


def best_low_rank(target: Target, start: Normals, rank: int, seed: int) -> Normals:
    """Return N(loc, W Wᵀ + diag d) with W of ``rank`` columns, the best for each datum, by Adam on fixed draws.

    Args:
        target: the densities.
        start: normals to start from; W and d are fitted to their covariance.
        rank: columns of W.
        seed: seed of the draws.
    """
    noise = matched(max(LOW_RANK_DRAWS, 4 * target.size), target.size, seed)
    unit = start.root.diagonal(dim1=-2, dim2=-1)
    covariance = start.root @ start.root.mT / (unit.unsqueeze(-1) * unit.unsqueeze(-2))
    values, vectors = torch.linalg.eigh(covariance)
    factor = vectors[..., -rank:] * (values[..., -rank:] - values[..., :1]).clamp(min=1e-4).sqrt().unsqueeze(-2)
    rest = (covariance.diagonal(dim1=-2, dim2=-1) - factor.square().sum(-1)).clamp(min=1e-2)
    numbers = [value.clone().requires_grad_() for value in (torch.zeros_like(unit), rest.log() / 2, factor)]

    def normals() -> Normals:
        loc, log_scale, factor = numbers
        within = factor @ factor.mT + (2 * log_scale).exp().diag_embed()
        return Normals(start.loc + unit * loc, unit.unsqueeze(-1) * torch.linalg.cholesky(within))

    def loss() -> Tensor:
        now = normals()
        u = now.at(noise)
        slope = target.value_and_gradient(u.detach())[1].nan_to_num(0.0, 0.0, 0.0)
        return -((u * slope).sum(-1).mean(0) + now.log_scale).sum()

    descend(numbers, loss, LOW_RANK_STEPS, 0.03)
    with torch.no_grad():
        return normals()


def _distributions(pair: Pair, args: Batch) -> dict[str, Any]:
    """The distributions of the guide's sites, without those of sites that only take a value from others."""
    trace = trace_of_guide(pair.guide, fresh(args))
    nodes = {n: unwrapped(node["fn"]) for n, node in trace.nodes.items() if node["type"] == "sample"}
    names = {f.name for node in trace.nodes.values() if node["type"] == "sample" for f in node["cond_indep_stack"]}
    found = {n: fn for n, fn in nodes.items() if not isinstance(fn, Delta) and n not in names}
    return {n: getattr(fn, "vectors", fn) for n, fn in found.items()}


def _flow(fn: Any) -> bool:
    """True for a distribution with transforms that have parameters."""
    return isinstance(fn, TransformedDistribution) and any(
        # Of a conditional flow, the guide sees Pyro's ConditionedPlanar and its like, which are no modules.
        isinstance(t, torch.nn.Module) or hasattr(t, "hypernet") or type(t).__name__.startswith("Conditioned")
        for t in fn.transforms
    )
