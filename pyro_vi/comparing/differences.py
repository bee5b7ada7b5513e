"""Differences between numbers of several fits, with their errors.

Fits are compared on the same data (or draws, or seeds), so that a difference is a mean of paired differences, whose error is
much smaller than that of each number. p-values are adjusted for the number of pairs of fits (Holm 1979): all pairs, and not
those with the best alone, because the best one is found from the same numbers.

* `Sample` is a number of one fit, with the values of which it is the mean; `compared` ranks several of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import special
from torch import Tensor

from pyro_vi.auditing import holm

CERTAIN = 0.05
"""Adjusted p-value below which two fits differ."""

EQUAL = 1e-6
"""Differences up to this, relative to the numbers, are rounding."""


@dataclass(frozen=True)
class Sample:
    """A number of one fit.

    Attributes:
        mean: the number.
        values: values whose mean it is, each paired with that of the other fits: of data, of draws or of seeds; None if there
            are none.
        se: its standard error, where there are no values; 0 for an exact number.
    """

    mean: float
    values: Tensor | None = None
    se: float = math.nan


@dataclass(frozen=True)
class Spread:
    """Mean of a number over seeds, and its spread.

    Attributes:
        mean: the mean.
        sd: standard deviation over seeds.
        se: standard error of the mean.
        values: the number under each seed.
        p: adjusted p-value for a mean of 0, if the number is a difference; else NaN.

    Example:
        >>> Spread.of([1.0, 2.0, 3.0]).se == 1 / 3**0.5
        True
    """

    mean: float
    sd: float
    se: float
    values: tuple[float, ...]
    p: float = math.nan

    @classmethod
    def of(cls, values: "list[float]", p: float = math.nan) -> "Spread":
        """The spread of given values."""
        n = len(values)
        sd = float(np.std(values, ddof=1)) if n > 1 else math.nan
        return cls(float(np.mean(values)), sd, sd / math.sqrt(n), tuple(values), p)


@dataclass(frozen=True)
class Difference:
    """The distance of a fit behind another one, in the unit of the numbers; negative if it is ahead.

    Attributes:
        value: the difference.
        se: its standard error: over paired data or draws.
        low, high: its 95 % interval, not adjusted.
        p: p-value for no difference, adjusted for the number of pairs.
        count: number of paired values; 0 if it is a difference of two numbers with independent errors.
        seeds: the difference under each seed, if there are several.
    """

    value: float
    se: float
    low: float
    high: float
    p: float
    count: int
    seeds: Spread | None = None

    @property
    def beyond_error(self) -> bool:
        """True if the data (or draws) tell both fits apart."""
        return self.p < CERTAIN

    @property
    def beyond_seeds(self) -> bool:
        """True if the difference is beyond its error over seeds, or if there is one seed."""
        return self.seeds is None or self.seeds.p < CERTAIN

    @property
    def apart(self) -> bool:
        """True if the difference is beyond both errors: over data (or draws), and over seeds."""
        return self.beyond_error and self.beyond_seeds


@dataclass(frozen=True)
class Standing:
    """Fits, ranked by one of their numbers.

    Attributes:
        means: the number of each fit, over seeds if there are several; the best first.
        differences: how far each fit but the best is behind the best.
        ranks: 1 + the number of fits that are better beyond their error.
    """

    means: Mapping[str, float]
    differences: Mapping[str, Difference]
    ranks: Mapping[str, int]

    @property
    def best(self) -> str:
        """The fit with the best number."""
        return next(iter(self.means))


def compared(seeds: "list[dict[str, Sample]]", *, higher: bool) -> Standing:
    """Rank fits by a number.

    Args:
        seeds: the numbers by fit, under each seed.
        higher: True if a higher number is better.

    Example:
        >>> import torch
        >>> x = torch.linspace(0.0, 1.0, 50)
        >>> found = compared([{"a": Sample(0.5, x), "b": Sample(0.7, x + 0.2), "c": Sample(0.7, x.flip(0) + 0.2)}], higher=True)
        >>> found.ranks
        {'b': 1, 'c': 1, 'a': 3}
    """
    sign = 1.0 if higher else -1.0
    names = list(dict.fromkeys(name for samples in seeds for name in samples))
    means = {n: float(np.mean([samples[n].mean for samples in seeds if n in samples])) for n in names}
    order = sorted(names, key=lambda name: -sign * means[name])
    pairs = list(combinations(order, 2))  # the better one first
    found = [_over_seeds(ahead, behind, seeds, sign) for ahead, behind in pairs]
    p = holm(np.array([difference.p for difference in found]))
    p_seeds = holm(np.array([math.nan if d.seeds is None else d.seeds.p for d in found]))
    differences = {
        pair: replace(d, p=float(p[k]), seeds=None if d.seeds is None else replace(d.seeds, p=float(p_seeds[k])))
        for k, (pair, d) in enumerate(zip(pairs, found, strict=True))
    }
    ranks = {name: 1 + sum(differences[a, b].apart for a, b in pairs if b == name) for name in order}
    return Standing(
        {name: means[name] for name in order}, {name: differences[order[0], name] for name in order[1:]}, ranks
    )


def _over_seeds(ahead: str, behind: str, seeds: "list[dict[str, Sample]]", sign: float) -> Difference:
    """Return the mean difference over the seeds under which there are both; its error is that over the same data."""
    both = [(samples[ahead], samples[behind]) for samples in seeds if ahead in samples and behind in samples]
    if not both:
        return Difference(*(math.nan,) * 5, 0)
    single = [_difference(one, other, sign) for one, other in both]
    if len(single) == 1:
        return single[0]
    values = [difference.value for difference in single]
    # The data may be the same under each seed, so that the error does not become smaller with their number.
    se = math.sqrt(float(np.mean([difference.se**2 for difference in single])))
    count = single[0].count
    scale = max(abs(sample.mean) for pair in both for sample in pair)
    spread = Spread.of(values)
    p = _p_value(spread.mean, spread.se, len(values), scale)
    return replace(_interval(spread.mean, se, count, scale), seeds=Spread.of(values, p))


def _difference(ahead: Sample, behind: Sample, sign: float) -> Difference:
    scale = max(abs(ahead.mean), abs(behind.mean))
    if ahead.values is None or behind.values is None or ahead.values.shape != behind.values.shape:
        return _interval(sign * (ahead.mean - behind.mean), math.hypot(ahead.se, behind.se), 0, scale)
    paired = sign * (ahead.values.double() - behind.values.double())
    count = len(paired)
    se = float(paired.std() / math.sqrt(count)) if count > 1 else math.nan
    return _interval(float(paired.mean()), se, count, scale)


def _interval(value: float, se: float, count: int, scale: float) -> Difference:
    width = se * float(special.stdtrit(count - 1, 0.975) if count > 1 else special.ndtri(0.975))
    return Difference(value, se, value - width, value + width, _p_value(value, se, count, scale), count)


def _p_value(value: float, se: float, count: int, scale: float) -> float:
    """Two-sided p-value, by Student's t of paired values, or by the normal without them."""
    if math.isnan(se) or math.isnan(value):
        return math.nan
    if abs(value) <= EQUAL * max(scale, 1e-300):
        return 1.0
    if se == 0:
        return 0.0
    z = -abs(value) / se
    return float(2 * (special.stdtr(count - 1, z) if count > 1 else special.ndtr(z)))
