"""Supports of distributions, by their values: torch states a wrong one for some, and some state none.

torch takes the codomain of the last transform for the support: the real line for every chain that ends in an affine map,
such as a Beta on [-1, 1] or a bijection to the positive numbers, and all of (0, 1) for a chain that reaches only part of it.

* `support_of` is the support of a distribution; `inside` says which values have a density under it.
* `range_of` is the interval of each number of a draw, pushed through the transforms.
* `masked_by` is the mask of a site, wherever it comes from.
* `words_of` says in a few words what a support or a constraint is.
"""

import math
import re
from dataclasses import dataclass
from inspect import getattr_static
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Independent,
    IndependentTransform,
    SigmoidTransform,
    constraints,
)
from torch.distributions import TransformedDistribution as Transformed

from pyro_vi.support.private import Missing
from pyro_vi.support.pyro_internals import mask_of


@dataclass(frozen=True)
class Range:
    """The interval of the numbers of a draw: its ends, and whether they are reached (the ends of a closed interval)."""

    low: Tensor
    high: Tensor
    reached: bool

    def covers(self, other: "Range") -> bool:
        """True if the other interval is a part of this one, up to rounding."""
        try:
            low, high = (self.low - other.low).nan_to_num(0.0), (other.high - self.high).nan_to_num(0.0)
            size = torch.stack(
                [e.abs().max() for e in (self.low, self.high) if bool(e.isfinite().all())] or [low.new_ones(())]
            )
            return bool((torch.maximum(low, high) <= 1e-5 * size.max().clamp(min=1e-30)).all())
        except RuntimeError:  # bounds whose shapes do not fit together
            return True


def stated(fn: Any) -> constraints.Constraint | None:
    """The support that a distribution states, or None: Pyro's wrapper of zuko's flows states none."""
    try:
        support: Any = fn.support
    except (NotImplementedError, AttributeError):
        return None
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    inner = innermost(support)
    return None if not isinstance(inner, constraints.Constraint) or constraints.is_dependent(inner) else support


def innermost(support: Any) -> Any:
    """The constraint of single numbers or single events that a support consists of."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def support_of(fn: Any) -> constraints.Constraint | None:
    """The set of values on which a distribution has a density; None if it states none.

    Example:
        >>> import pyro.distributions as dist
        >>> from torch.distributions import AffineTransform
        >>> shifted = dist.TransformedDistribution(dist.Beta(2.0, 1.0), [AffineTransform(-1.0, 2.0)])
        >>> shifted.support, support_of(shifted)
        (Real(), Interval(lower_bound=-1.0, upper_bound=1.0))
    """
    said = stated(fn)
    if said is None or not _by_transforms(bare(fn)):
        return said
    bounds = range_of(fn)
    base = None if bounds is None else _constraint(bounds)
    if base is None:
        return said
    return constraints.independent(base, len(fn.event_shape)) if fn.event_shape else base


def range_of(fn: Any) -> Range | None:
    """The interval of each number of a draw, or None where there is no such interval, as on a simplex."""
    fn = bare(fn)
    if not _by_transforms(fn):
        return _interval(stated(fn))
    bounds = range_of(fn.base_dist)
    for transform in fn.transforms:
        bounds = None if bounds is None else _image(bounds, transform)
    return bounds


def inside(fn: Any, value: Any) -> Tensor | None:
    """True for each value of the batch that has a density under a distribution; None if the distribution states no support.

    torch clamps values that a chain of transforms does not reach, and gives them a density.
    """
    value = torch.as_tensor(value)
    said = stated(fn)
    good = None if said is None else torch.as_tensor(said.check(value))
    bounds = range_of(fn) if _by_transforms(bare(fn)) else None
    if bounds is None:
        return good
    slack = 1e-6 * (bounds.high - bounds.low).nan_to_num(0.0, posinf=0.0) if bounds.reached else 0.0
    between = (
        (value >= bounds.low - slack) & (value <= bounds.high + slack)
        if bounds.reached
        else (value > bounds.low) & (value < bounds.high)
    )
    if fn.event_shape:
        between = between.flatten(-len(fn.event_shape)).all(-1)
    return between if good is None else good & between


def bare(fn: Any) -> Any:
    """The distribution inside of ``to_event``, ``expand`` and ``mask``."""
    while isinstance(fn, (Independent, ExpandedDistribution, MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _by_transforms(fn: Any) -> bool:
    """True for a distribution whose support torch reads from its last transform: not for LogNormal and its like."""
    return isinstance(fn, Transformed) and getattr_static(type(fn), "support") is getattr_static(Transformed, "support")


def _interval(support: Any) -> Range | None:
    support = innermost(support)
    if support is None or support.event_dim:
        return None
    if isinstance(support, type(constraints.real)):
        low, high = -math.inf, math.inf
    elif isinstance(support, type(constraints.boolean)):
        low, high = 0.0, 1.0
    else:
        low, high = getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
        if not hasattr(support, "lower_bound") and not hasattr(support, "upper_bound"):
            return None
    first, last = (torch.as_tensor(end).detach().double() for end in (low, high))
    return Range(first, last, bool(first.isfinite().all()) and bool(last.isfinite().all()))


def _image(bounds: Range, transform: Any) -> Range | None:
    """The interval that a transform of single numbers makes of one; None for any other transform."""
    if isinstance(transform, IndependentTransform):
        return _image(bounds, transform.base_transform)
    if isinstance(transform, ComposeTransform):
        found: Range | None = bounds
        for part in transform.parts:
            found = None if found is None else _image(found, part)
        return found
    try:
        single = transform.domain.event_dim == 0 or isinstance(transform, AffineTransform)
        sign, plain = torch.as_tensor(transform.sign), transform.with_cache(0)  # the cache holds a draw's own density
    except NotImplementedError:
        return None
    if not single:
        return None
    if isinstance(transform, SigmoidTransform):  # torch clamps it, and its inverse
        low, high = bounds.low.sigmoid(), bounds.high.sigmoid()
    elif isinstance(transform.inv, SigmoidTransform):
        low, high = bounds.low.logit(), bounds.high.logit()
    else:
        with torch.no_grad():
            low, high = plain(bounds.low), plain(bounds.high)
    if bool(torch.isnan(low).any() | torch.isnan(high).any()):
        return None
    return Range(torch.where(sign > 0, low, high), torch.where(sign > 0, high, low), bounds.reached)


def _constraint(bounds: Range) -> constraints.Constraint | None:
    low, high = (end.item() if end.numel() == 1 else end for end in (bounds.low, bounds.high))
    below, above = (bool(end.isfinite().all()) for end in (bounds.low, bounds.high))
    if not (below or bool(bounds.low.isinf().all())) or not (above or bool(bounds.high.isinf().all())):
        return None
    if below and above:
        return constraints.interval(low, high)
    if below:
        return constraints.positive if bounds.low.numel() == 1 and low == 0 else constraints.greater_than(low)
    return constraints.less_than(high) if above else constraints.real


def masked_by(site: Any) -> Any:
    """The mask of a site of a trace: `pyro.poutine.mask` and ``dist.mask`` together; None if there is none."""
    mask, fn = site["mask"], site["fn"]
    while isinstance(fn, ExpandedDistribution | MaskedDistribution):
        if isinstance(fn, MaskedDistribution):
            try:
                own = mask_of(fn)
            except Missing:  # this Pyro does not show it
                own = True
            mask = own if mask is None or mask is True else own & mask if isinstance(own, Tensor) else own and mask
        fn = fn.base_dist
    return None if mask is True else mask


def words_of(support: Any) -> str:
    """Return a support, or the constraint of a parameter, in a few words.

    Example:
        >>> words_of(constraints.independent(constraints.positive, 2)), words_of(constraints.integer_interval(0, 3))
        ('positive', 'integer, 0 to 3')
    """
    base = innermost(support)
    if constraints.is_dependent(base):
        return "not stated"
    if type(base) in _WORDS:
        return _WORDS[type(base)]
    low, high = (_number(getattr(base, name, None)) for name in ("lower_bound", "upper_bound"))
    kind = "integer, " if base.is_discrete else ""
    if low and high:
        return f"{kind}{low} to {high}"
    if low and isinstance(base, type(constraints.positive)):
        return "positive" if low == "0" else f"above {low}"
    if low:
        return "nonnegative" if low == "0" and not kind else f"{kind}from {low}"
    if high:
        return f"{kind}below {high}" if isinstance(base, constraints.less_than) else f"{kind}to {high}"
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", type(base).__name__.removesuffix("Constraint"))
    return " ".join(words).lower()


def _number(bound: Any) -> str:
    """A bound in words: a number, or that each entry has its own; empty without a bound."""
    if bound is None:
        return ""
    values = torch.as_tensor(bound, dtype=torch.float64).unique()
    return f"{values.item():g}" if len(values) == 1 else "its bound"


_WORDS = {
    type(constraints.real): "real",
    type(constraints.real_vector): "real",
    type(constraints.boolean): "0 or 1",
    type(constraints.one_hot): "one-hot",
    type(constraints.simplex): "simplex",
    type(constraints.corr_cholesky): "Cholesky factor of a correlation",
    type(constraints.lower_cholesky): "Cholesky factor",
}
