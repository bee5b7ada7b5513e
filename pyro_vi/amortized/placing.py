"""From a distribution of a row's vector to the distribution of a site: units, plates, and the bijection to its support.

* `placed` keeps a family that has KL divergences in closed form (Normal, LogNormal, MultivariateNormal, …) where it can.
* `OfVectors` serves every other case: any distribution of vectors, along any plates and on any support.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import ReshapeTransform

from pyro_vi.amortized.shapes import Shape
from pyro_vi.programs import Latent, innermost

_POSITIVE = (type(constraints.positive), type(constraints.nonnegative))


def placed(vectors: Any, site: Latent, shape: Shape, start: Tensor, spread: Tensor) -> Any:
    """Return the distribution of a site from that of its vectors v, with u = start + spread · v on the unconstrained scale.

    Args:
        vectors: a distribution with batch shape (*particles, *rows): of vectors, event shape (D,), or of D independent
            numbers in the last batch dimension.
        site: the site as it is on this batch.
        shape: its shape.
        start: (D,).
        spread: (D,).
    """
    if not vectors.event_shape:
        return _independent(vectors, site, shape, start, spread)
    if shape.along_plates == 1:
        family = _FAMILIES.get(type(vectors))
        if family is not None:
            return _mapped(family(vectors, shape, start, spread), site, shape)
    return OfVectors(vectors, shape, start, spread, site)


def _independent(vectors: Any, site: Latent, shape: Shape, start: Tensor, spread: Tensor) -> Any:
    numbers = {name: getattr(vectors, name) for name in type(vectors).arg_constraints if name not in ("loc", "scale")}
    moved = {name: shape.to_site(value) for name, value in numbers.items()}
    loc, scale = shape.to_site(start + spread * vectors.loc), shape.to_site(spread * vectors.scale)
    base = innermost(site.support)
    if (
        type(vectors) is dist.Normal
        and type(base) in _POSITIVE
        and isinstance(base.lower_bound, int | float)
        and base.lower_bound == 0
    ):
        return dist.LogNormal(loc, scale).to_event(len(shape.event))
    made = type(vectors)(loc=loc, scale=scale, **moved).to_event(len(shape.event))
    # Compared by type, because a copied guide has copies of its constraints, and a subclass may have its own bijection.
    if type(base) is type(constraints.real):
        return made
    return dist.TransformedDistribution(made, [site.bijection_on(loc.device)])


def _multivariate_normal(vectors: Any, shape: Shape, start: Tensor, spread: Tensor) -> Any:
    loc, tril = start + spread * vectors.loc, spread.unsqueeze(-1) * vectors.scale_tril
    if not shape.event:
        return dist.Normal(shape.place(loc, 1)[..., 0], shape.place(tril, 2)[..., 0, 0])
    return dist.MultivariateNormal(shape.place(loc, 1), scale_tril=shape.place(tril, 2))


def _low_rank(vectors: Any, shape: Shape, start: Tensor, spread: Tensor) -> Any:
    loc = shape.place(start + spread * vectors.loc, 1)
    factor = shape.place(spread.unsqueeze(-1) * vectors.cov_factor, 2)
    diag = shape.place(spread.square() * vectors.cov_diag, 1)
    if not shape.event:
        return dist.Normal(loc[..., 0], (factor.square().sum(-1) + diag).sqrt()[..., 0])
    return dist.LowRankMultivariateNormal(loc, factor, diag)


_FAMILIES: dict[Any, Any] = {dist.MultivariateNormal: _multivariate_normal, dist.LowRankMultivariateNormal: _low_rank}


def _mapped(made: Any, site: Latent, shape: Shape) -> Any:
    steps: list[Any] = []
    if len(shape.event) > 1:
        steps.append(ReshapeTransform(torch.Size((shape.numel,)), torch.Size(shape.event)))
    base = innermost(site.support)
    if type(base) is not type(constraints.real):
        if not steps and type(made) is dist.Normal and type(base) in _POSITIVE and site.bounds == []:
            return dist.LogNormal(made.loc, made.scale)
        steps.append(site.bijection_on(made.mean.device))
    return dist.TransformedDistribution(made, steps) if steps else made


class OfVectors(dist.TorchDistribution):
    """Distribution of a site from one of vectors: value = bijection(start + spread · v), v ~ vectors.

    Along plates of the site that hold no rows of their own, the vector runs over the plate, and its density belongs to all
    elements together: each element gets an equal share of log q, and only sums over the plate have a meaning.

    Args:
        vectors: distribution with batch shape (*particles, *rows) and event shape (D,).
        shape: the shape of the site.
        start: (D,).
        spread: (D,).
        site: the site as it is on this batch.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        vectors: Any,
        shape: Shape,
        start: Tensor,
        spread: Tensor,
        site: Latent,
        batch_shape: torch.Size | None = None,
    ) -> None:
        self.vectors, self.layout, self.start, self.spread, self.site = vectors, shape, start, spread, site
        own = shape.batch_of(vectors.batch_shape)
        self._own = len(own)
        self._bijection = site.bijection_on(start.device)
        constrained = self._bijection.forward_shape(torch.Size((*own, *shape.event)))
        event = constrained[len(own) :]
        batch = torch.Size(own) if batch_shape is None else batch_shape
        self._left = batch[: len(batch) - len(own)]
        self._last: tuple[Tensor, Tensor] | None = None
        super().__init__(batch, event, validate_args=False)

    @property
    def described(self) -> str:
        """The name in messages: that of the vectors' distribution."""
        return getattr(self.vectors, "described", type(self.vectors).__name__)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """True if the vectors can be drawn with a pathwise gradient."""
        return bool(self.vectors.has_rsample)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """The support of the site."""
        return self.site.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "OfVectors":
        """Return the distribution with further dimensions on the left."""
        wide = torch.Size(batch_shape)
        if wide == self.batch_shape:
            return self
        return OfVectors(self.vectors, self.layout, self.start, self.spread, self.site, wide)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values of the site."""
        lead = self._lead((*sample_shape, *self._left))
        v = self.vectors.rsample(lead) if self.has_rsample else self.vectors.sample(lead)
        u = self.layout.to_site(self.start + self.spread * v)
        event = u.shape[u.dim() - len(self.layout.event) :]
        value: Tensor = self._bijection(u.reshape((*sample_shape, *self.batch_shape, *event)))
        # The bijection loses digits at the ends of the support, and the inverse of a flow may take many passes.
        self._last = value, v
        return value

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values of the site without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def vector(self, value: Tensor) -> Tensor:
        """Return the vectors of values of the site, (*particles, *rows, D)."""
        if self._last is not None and self._last[0] is value:
            return self._last[1]
        left = value.shape[: value.dim() - len(self.event_shape) - self._own]
        u = self._bijection.inv(value)
        spaced = u.reshape((*self._lead(left), *self._padding, *u.shape[len(left) :]))
        return (self.layout.to_vector(spaced) - self.start) / self.spread

    @property
    def _padding(self) -> tuple[int, ...]:
        """Ones for the dimensions of plates to the left of the site's own."""
        return (1,) * max(0, self.layout.nesting - self._own)

    def _lead(self, left: Sequence[int]) -> tuple[int, ...]:
        """The dimensions of particles among those to the left of the site's own: without the ones where it has no plate."""
        ones = self._padding
        if len(left) < len(ones):
            return () if all(n == 1 for n in left) else tuple(left)
        particles = len(left) - len(ones)
        return tuple(left[:particles] if tuple(left[particles:]) == ones else left)

    def log_prob(self, value: Tensor) -> Tensor:
        """log q = log p(v) − Σ log spread − log |∂ value / ∂ u|, with batch shape."""
        v = self.vector(value)
        joint = self.vectors.log_prob(v) - self.spread.log().sum()
        share: Tensor = self.layout.place(joint) / self.layout.along_plates
        batch = value.shape[: value.dim() - len(self.event_shape)]
        u = self.layout.to_site(self.start + self.spread * v)
        u = u.reshape((*batch, *u.shape[u.dim() - len(self.layout.event) :]))
        jacobian = self._bijection.log_abs_det_jacobian(u, value)
        dims = jacobian.dim() - len(batch)
        if dims:
            jacobian = jacobian.flatten(-dims).sum(-1)
        own = share.shape[share.dim() - self._own :]
        return share.reshape((*batch[: len(batch) - self._own], *own)) - jacobian
