"""Discrete sites with finitely many values: an amortized Bernoulli, Categorical or OneHotCategorical, marked for enumeration.

The mark has an effect under the estimator ``enum`` only, which then sums over the states of q; all others draw them.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vi.amortized.blocks import Part
from pyro_vi.amortized.shapes import Shape
from pyro_vi.data import Batch
from pyro_vi.errors import InputError
from pyro_vi.programs import Latent, innermost, prototype

ENUMERATED = {"enumerate": "parallel"}


def refuse_states(site: Latent, guide: str) -> None:
    """Raise InputError for a discrete site that has no amortized distribution."""
    if site.states is None:
        raise InputError(
            f"guide '{guide}' cannot serve site '{site.name}': {site.distribution} is discrete with infinitely many values, or "
            "with values that differ between rows; sum it out in the model, or write a guide for this site"
        )
    if _binary(site) or one_hot(site):
        return
    states = site.states.flatten()
    if not torch.equal(states.long(), torch.arange(len(states), device=states.device)):
        raise InputError(
            f"guide '{guide}' cannot serve site '{site.name}': the values of {site.distribution} are not 0, 1, 2, …; number "
            "them from 0 in the model"
        )


def refuse_discrete(model: Any, batch: Batch, guide: str) -> None:
    """Raise InputError if a latent site is discrete, for a guide that needs derivatives of log p(x, z)."""
    for name, site in prototype(model, batch).latents.items():
        if site.support.is_discrete:
            raise InputError(
                f"guide '{guide}' needs derivatives of log p(x, z), and site '{name}' ({site.distribution}) is discrete; sum "
                "it out in the model, or use guide 'diag_normal'"
            )


def one_hot(site: Latent) -> bool:
    """True for a site whose values are one-hot vectors."""
    return isinstance(innermost(site.support), type(constraints.one_hot))


def parts_of(site: Latent, dim: int) -> dict[str, Part]:
    """The numbers of a discrete site: the log-odds of each element, or a log-weight for each of its states."""
    assert site.states is not None
    return {"logits": Part(torch.zeros(dim) if _binary(site) else torch.zeros(dim, len(site.states)))}


def distribution_of(site: Latent, shape: Shape, logits: Tensor) -> Any:
    """Return q of a site from its log-odds, (*rows, D), or its log-weights, (*rows, D, states)."""
    event_dim = len(shape.event)
    if _binary(site):
        return dist.Bernoulli(logits=shape.to_site(logits)).to_event(event_dim)
    placed = torch.stack([shape.to_site(part) for part in logits.unbind(-1)], -1)
    assert site.states is not None
    family = (
        dist.OneHotCategorical if one_hot(site) else Counts if site.states.is_floating_point() else dist.Categorical
    )
    return family(logits=placed).to_event(event_dim)


class Counts(dist.Categorical):
    """A Categorical whose values have a floating dtype, as those of a Binomial: a model may multiply them by a matrix."""

    described = "Categorical"

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw numbers of states."""
        value: Tensor = super().sample(torch.Size(sample_shape))
        return value.to(self.logits.dtype)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All numbers of states, the first dimension over them."""
        states: Tensor = super().enumerate_support(expand)
        return states.to(self.logits.dtype)


def infer_of(shape: Shape) -> dict[str, Any]:
    """The mark for enumeration; vectors of discrete numbers cannot be enumerated."""
    return {} if shape.event else dict(ENUMERATED)


def _binary(site: Latent) -> bool:
    return isinstance(innermost(site.support), type(constraints.boolean))
