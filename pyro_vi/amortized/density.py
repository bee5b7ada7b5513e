"""log p(x, z) as a function of the latents on the unconstrained scale, for guides that optimise within themselves."""

from collections.abc import Mapping

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vi.amortized.frame import Call, Frame
from pyro_vi.data import fresh


def log_joint(frame: Frame, call: Call, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return log p(x, z) + log |dz/du| at given latents: of each row of data, (rows,), and of what all data share, ().

    The factors N/B of a minibatch are left out of the rows; `pyro.poutine.scale` and masks count. The first is empty for a
    model without a data plate that has latents. Nothing is left in the traces of handlers outside.

    Args:
        frame: the latents of the model.
        call: the batch.
        values: u of every latent site, in the shape of the site.
    """
    (model,) = frame.model
    sites = {name: call.sites[name] for name in values}
    constrained = {name: sites[name].bijection_on(u.device)(u) for name, u in values.items()}
    rows = {name: index for name, index in call.index.items() if frame.plates[name].drawn}
    with poutine.block():
        conditioned = poutine.condition(model, data={**constrained, **rows})
        trace = prune_subsample_sites(poutine.trace(conditioned).get_trace(*fresh(call.args)))
        trace.compute_log_prob()
    some = next(iter(values.values()))
    shared, dim = some.new_zeros(()), None if frame.data is None else frame.plates[frame.data].dim
    length = 0 if frame.data is None else call.plates[frame.data].subsample_size
    local = some.new_zeros(length)
    for name, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        term = node["log_prob"]
        frame_of = {f.name: f for f in node["cond_indep_stack"]}
        if name in values:
            term = term + _jacobian(values[name], constrained[name], sites[name], term, node)
        if frame.data in frame_of and dim is not None:
            own = frame_of[frame.data]
            factor = own.full_size / own.size if own.size > 0 and own.full_size else 1.0
            local = local + _along(term, dim, length) / factor
        else:
            shared = shared + term.sum()
    return local, shared


def _jacobian(u: Tensor, value: Tensor, site: object, term: Tensor, node: object) -> Tensor:
    bijection = site.bijection_on(u.device)  # type: ignore[attr-defined]
    jacobian = bijection.log_abs_det_jacobian(u, value)
    extra = jacobian.dim() - term.dim()
    jacobian = jacobian.flatten(-extra).sum(-1) if extra > 0 else jacobian
    mask, scale = node["mask"], node["scale"]  # type: ignore[index]
    jacobian = jacobian * scale
    return torch.where(mask, jacobian, 0) if isinstance(mask, Tensor) else jacobian


def _along(term: Tensor, dim: int, length: int) -> Tensor:
    """Sum a term over all dimensions but that of the data plate: (rows,)."""
    if term.dim() < -dim:
        return term.sum() / length * term.new_ones(length)
    moved = term.movedim(dim, 0)
    return moved.reshape(len(moved), -1).sum(-1)
