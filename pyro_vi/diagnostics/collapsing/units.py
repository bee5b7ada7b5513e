"""The units of the local latent sites of a pair, and their distributions in the guide and in the model.

* `UnitSite` says how the values of a site split into units; `sites_of` finds the local sites of a run.
* `law_of` gives the distribution of the units of a site, where it is known without draws.

A unit is one number of z_n. A value whose numbers are tied by its support, such as a point of a simplex or a one-hot vector,
is one unit.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, Normal

from pyro_vi.elbo import Run, site_mask, unwrapped
from pyro_vi.programs import data_plate_of, innermost, support_of


@dataclass(frozen=True)
class UnitSite:
    """A local latent site and its units.

    Attributes:
        name: name of the site.
        axis: dimension of the data plate in the batch shape, from the left.
        batch: batch shape of the guide's distribution.
        inner: event dimensions along which the units lie.
        own: event shape of one unit: empty if a unit is a number.
        discrete: the values are states.
        present: the units that are part of the model, by the masks, of shape ``(rows, units)``.
    """

    name: str
    axis: int
    batch: tuple[int, ...]
    inner: tuple[int, ...]
    own: tuple[int, ...]
    discrete: bool
    present: Tensor

    @property
    def labels(self) -> list[str]:
        """The name of each unit: that of the site, with the indices of the unit if there are several."""
        count, sizes = self.present.shape[1], [*self.batch[: self.axis], *self.batch[self.axis + 1 :], *self.inner]
        if count == 1:
            return [self.name]
        index = torch.cartesian_prod(*(torch.arange(n) for n in sizes if n > 1)).reshape(count, -1)
        return [f"{self.name}[{', '.join(str(i) for i in row)}]" for row in index.tolist()]

    def split(self, numbers: Tensor) -> Tensor:
        """Numbers of units, ``(*lead, *batch, *inner)``, as ``(*lead, rows, units)``."""
        return split(numbers, self.batch, self.inner, self.axis)

    def split_values(self, values: Tensor) -> Tensor:
        """Values of the site, ``(*lead, *batch, *event)``, as ``(*lead, rows, units, numbers of a unit)``."""
        lead = values.dim() - len(self.batch) - len(self.inner) - len(self.own)
        moved = values.movedim(lead + self.axis, lead)
        return moved.reshape(*moved.shape[: lead + 1], -1, prod(self.own))

    def join(self, units: Tensor) -> Tensor:
        """Values of the site from what `split_values` gives."""
        lead = units.dim() - 3
        others = [*self.batch[: self.axis], *self.batch[self.axis + 1 :]]
        shape = (*units.shape[: lead + 1], *others, *self.inner, *self.own)
        return units.reshape(shape).movedim(lead, lead + self.axis)


def split(numbers: Tensor, batch: tuple[int, ...], inner: tuple[int, ...], axis: int) -> Tensor:
    """See `UnitSite.split`."""
    shape = (*batch, *inner)
    lead = max(0, numbers.dim() - len(shape))
    moved = numbers.expand(*numbers.shape[:lead], *shape).movedim(lead + axis, lead)
    return moved.reshape(*moved.shape[: lead + 1], -1)


def sites_of(run: Run) -> dict[str, UnitSite]:
    """The latent sites in the data plate that the guide draws, in the order of the model."""
    plate = data_plate_of(run.model_trace)
    found = {}
    for name, node in run.model_trace.nodes.items():
        other = run.guide_trace.nodes.get(name)
        if plate is None or other is None or node["type"] != "sample" or node["is_observed"]:
            continue
        if plate.name not in {frame.name for frame in other["cond_indep_stack"]}:
            continue
        fn = other["fn"]
        batch, event = tuple(fn.batch_shape), tuple(fn.event_shape)
        support: Any = support_of(node["fn"])
        tied = 0 if support is None else innermost(support).event_dim
        inner, own = event[: len(event) - tied], event[len(event) - tied :]
        mask = site_mask(other).expand(batch)
        axis = len(batch) + plate.dim
        present = split(mask.reshape(*batch, *[1] * len(inner)), batch, inner, axis)
        found[name] = UnitSite(name, axis, batch, inner, own, bool(getattr(support, "is_discrete", False)), present)
    return found


def law_of(fn: Any, site: UnitSite) -> Any:
    """The distribution of the units of a site, of batch shape ``(*batch, *inner)`` after broadcasting; None if it is not known.

    Of a multivariate normal it is that of the single numbers.
    """
    base = unwrapped(fn)
    if isinstance(base, Delta):
        return None
    if tuple(base.event_shape) == site.own:
        return base
    if not site.own and isinstance(base, MultivariateNormal | LowRankMultivariateNormal):
        return Normal(base.mean, base.variance.sqrt())
    return None


def factorises(fn: Any, site: UnitSite) -> bool:
    """True if the units are independent of each other under a distribution."""
    return tuple(unwrapped(fn).event_shape) == site.own


def moment(law: Any, name: str) -> Tensor | None:
    """Mean or variance of each unit; None where the law states none, or is not one of single numbers."""
    if law.event_shape:
        return None
    try:
        value: Tensor = getattr(law, name)
    except (NotImplementedError, AttributeError):
        return None
    return value if bool(value.isfinite().all()) else None
