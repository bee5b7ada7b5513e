"""The KL of a latent site, split over the units that may collapse one by one.

* `units_of` gives the KL of each unit, averaged over the batch. A unit is an element of the site's outer event dimensions if
  the guide and the model both have independent elements there (`to_event`, as for a diagonal normal); else the whole site.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyro_vi.elbo.closed import apart
from pyro_vi.elbo.decomposition import Terms
from pyro_vi.elbo.traces import Run
from pyro_vi.programs import data_plate_of


@dataclass(frozen=True)
class Units:
    """The KL of each unit of a site in nats, the mean over the batch; shapes ``(units,)``.

    Attributes:
        kl: as it is in the terms of the draw: in closed form, or log q − log p.
        size: the closed form if there is one, also where ``kl`` is sampled; without gradient.
    """

    kl: Tensor
    size: Tensor


def units_of(run: Run, terms: Terms, name: str, *, score: bool = True, closed: bool = True) -> Units:
    """Return (1/B) Σ_n KL_nj for each unit j of a site in the data plate that both programs draw.

    Args:
        run: the run that ``terms`` are of: one draw of each datum.
        terms: its terms.
        name: name of the site.
        score: False keeps log q of the draw constant in the parameters of the guide, for a path derivative.
        closed: False if a closed form of the KL is not the mean of log q − log p, because of the order of the draws.
    """
    site, plate = terms.sites[name], data_plate_of(run.model_trace)
    prior, posterior = run.model_trace.nodes[name], run.guide_trace.nodes[name]
    if plate is None or apart(prior, posterior):
        assert site.log_q is not None and site.log_p is not None
        kl = site.divergence if score else site.log_q.detach() - site.log_p
        return Units(kl.mean().unsqueeze(0), kl.detach().mean().unsqueeze(0))
    count = _independent(posterior["fn"], prior["fn"])
    q, p = (node["fn"].base_dist if count else node["fn"] for node in (posterior, prior))
    shape, z = posterior["fn"].batch_shape, posterior["value"]
    # The sum over the other batch dimensions, and the mean over the data.
    others = [dim for dim in range(len(shape)) if dim - len(shape) != plate.dim]

    def reduced(value: Tensor) -> Tensor:
        value = value.expand(*shape, *posterior["fn"].event_shape[:count])
        value = scale_and_mask(value, scale=_beside(site.scale, count), mask=_beside(posterior["mask"], count))
        return (value.sum(others) if others else value).mean(0).flatten()

    if site.kl is not None:
        kl = reduced(torch.as_tensor(kl_divergence(q, p)))
        return Units(kl, kl.detach())
    log_q = q.log_prob(z)
    kl = reduced((log_q if score else log_q.detach()) - p.log_prob(z))
    found = _tried(lambda: reduced(torch.as_tensor(kl_divergence(q, p)))) if closed else None
    return Units(kl, (kl if found is None else found).detach())


def _tried(call: Callable[[], Tensor]) -> Tensor | None:
    with torch.no_grad():
        try:
            return call()
        except (NotImplementedError, RuntimeError, ValueError):  # there is no closed form, or it has another shape
            return None


def _independent(q: Any, p: Any) -> int:
    """Number of event dimensions over which both distributions are independent; 0 if they do not have the same ones."""
    if not isinstance(q, Independent) or not isinstance(p, Independent) or q.event_shape != p.event_shape:
        return 0
    same = q.reinterpreted_batch_ndims == p.reinterpreted_batch_ndims
    return int(q.reinterpreted_batch_ndims) if same else 0


def _beside(value: Any, count: int) -> Any:
    """A scale or a mask of the batch, with dimensions for the units on the right."""
    return value.reshape(*value.shape, *[1] * count) if isinstance(value, Tensor) and value.dim() else value
