"""log p(x, z) as a function of the latents on the unconstrained scale, for guides that optimise within themselves.

* `log_joint` gives it for each row of data, and for what all data share.
* `refuse_noise` and `coupled` find models for which such a guide would be wrong.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_vi.amortized.frame import Call, Frame
from pyro_vi.data import fresh
from pyro_vi.errors import InputError

_BY_MODE = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
)
"""Layers that draw, or couple the rows and change their statistics, in training mode."""


def log_joint(
    frame: Frame, call: Call, values: Mapping[str, Tensor], given: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return log p(x, z) + log |dz/du| of each row of data, (*particles, rows), and of what all data share, (*particles).

    The factors N/B of a minibatch are left out of the rows; `pyro.poutine.scale` and masks count. Without a data plate that
    has latents, there are no rows. Dropout and batch norms act as in evaluation, and nothing is left in the traces
    of handlers outside.

    Args:
        frame: the latents of the model.
        call: the batch.
        values: latent sites on the unconstrained scale, u, each (*particles, *batch, *event).
        given: values of the other latent sites on their supports; they add no Jacobian.
    """
    (model,) = frame.model
    sites = {name: call.sites[name] for name in values}
    constrained = {name: sites[name].bijection_on(u.device)(u) for name, u in values.items()}
    rows = {name: index for name, index in call.index.items() if frame.plates[name].drawn}
    with poutine.block(), _still(model):
        conditioned = poutine.condition(model, data={**constrained, **(given or {}), **rows})
        trace = prune_subsample_sites(poutine.trace(conditioned).get_trace(*fresh(call.args)))
        trace.compute_log_prob()
    dim = None if frame.data is None else frame.plates[frame.data].dim
    length = 0 if frame.data is None else call.plates[frame.data].subsample_size
    particles = any(_batch_dim(call, name, u) > frame.nesting for name, u in {**constrained, **(given or {})}.items())
    local: Tensor | float = 0.0
    shared: Tensor | float = 0.0
    for name, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        term = node["log_prob"]
        frames = {f.name: f for f in node["cond_indep_stack"]}
        if name in values:
            term = term + _jacobian(values[name], constrained[name], sites[name], node)
        nesting = frame.nesting if particles else max(frame.nesting, term.dim())
        if frame.data in frames and dim is not None:
            own = frames[frame.data]
            factor = own.full_size / own.size if own.size > 0 and own.full_size else 1.0
            local = local + _summed(term, nesting, dim, length) / factor
        else:
            shared = shared + _summed(term, nesting, None, 0)
    some = next(iter(values.values()))
    return (
        local if isinstance(local, Tensor) else some.new_zeros(length),
        shared if isinstance(shared, Tensor) else some.new_zeros(()),
    )


def refuse_noise(frame: Frame, once: Tensor, again: Tensor) -> None:
    """Raise InputError if two evaluations of log p(x, z) at the same z differ."""
    if not torch.equal(once.nan_to_num(), again.nan_to_num()):
        raise InputError(
            f"guide '{frame.guide}' looks for the best z of each datum, and log p(x, z) of the model differs between two runs "
            "at the same z: it has random numbers that are no sample site; take them out, or use guide 'diag_normal'"
        )


def coupled(local: Tensor, shared: Tensor, vectors: Mapping[str, Tensor]) -> str | None:
    """Return a local site at which a row of data depends on the latents of other rows, or None.

    Args:
        local: log p(x, z) of each row, (rows,).
        shared: what all data share, ().
        vectors: the latents that both were computed from, by local site, each (rows, …).
    """
    half = len(local) // 2
    parts = ((local[:half], slice(half, None)), (local[half:], slice(None, half)), (shared, slice(None)))
    for part, others in parts:
        if not part.requires_grad:
            continue
        found = torch.autograd.grad(
            part.sum(), list(vectors.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for name, gradient in zip(vectors, found, strict=True):
            if bool((gradient[others] != 0).any()):
                return name
    return None


def _batch_dim(call: Call, name: str, value: Tensor) -> int:
    """Number of batch dimensions of a value on its support."""
    return value.dim() - len(call.sites[name].event_shape)


def _jacobian(u: Tensor, value: Tensor, site: Any, node: Any) -> Tensor:
    jacobian = site.bijection_on(u.device).log_abs_det_jacobian(u, value)
    extra = jacobian.dim() - (value.dim() - len(site.event_shape))
    jacobian = (jacobian.flatten(-extra).sum(-1) if extra > 0 else jacobian) * node["scale"]
    return jacobian if site.mask is None else torch.where(torch.as_tensor(site.mask, device=u.device), jacobian, 0)


def _summed(term: Tensor, nesting: int, dim: int | None, length: int) -> Tensor:
    """Sum a term over all dimensions of the model but that of the data plate: (*particles, rows), or (*particles)."""
    while term.dim() < nesting:
        term = term.unsqueeze(0)
    away = [d for d in range(-nesting, 0) if d != dim]
    summed = term.sum(away) if away else term
    # A number that the rows share, such as a factor, is spread over them.
    return summed.expand(*summed.shape[:-1], length) / length if dim and summed.shape[-1] != length else summed


@contextmanager
def _still(model: Any) -> Iterator[None]:
    """Set dropout and batch norms to evaluation for the block."""
    parts = (
        [p for p in model.modules() if isinstance(p, _BY_MODE) and p.training] if isinstance(model, nn.Module) else []
    )
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True
