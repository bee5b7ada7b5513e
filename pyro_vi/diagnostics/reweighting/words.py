"""Sentences and a verdict for k-hat.

* `Kept` is k-hat of some rows, with its error, the effective draws, and where there is none.
* `of_data` judges the data by the share above the threshold; `of_whole` what all data share; `of_sites` names sites.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vi.diagnostics.reweighting.drawing import Asked
from pyro_vi.diagnostics.tails import threshold
from pyro_vi.elbo import Facts, quoted

GOOD = 0.5
"""k-hat up to which the variance of the weights is finite, and the guide's own moments are near those of the posterior."""
HALF = 0.5
"""Share of the draws that must count, as effective draws, where the guide passes: a guide that is too wide has a low k-hat."""
SAME = 0.99
"""Share of the draws that must count where all weights are called equal, and not the largest alone."""
FEW, MANY = 0.05, 0.5
"""Shares of the data above the threshold: up to the first a guide passes, from the second it fails."""
LISTED = 20
"""Most rows that are listed."""
NOISY = 1.0
"""Standard deviation of a log-weight, by the inner draws alone, above which its tail says nothing of the guide."""


@dataclass(frozen=True)
class Kept:
    """k-hat of some rows.

    Attributes:
        k: k-hat, (rows,); NaN where the largest weights are equal, or are no numbers.
        se: its standard error.
        ess: effective draws.
        broken: rows with a weight that is no finite number.
    """

    k: Tensor
    se: Tensor
    ess: Tensor
    broken: Tensor

    @staticmethod
    def joined(parts: Sequence["Kept | None"]) -> "Kept | None":
        """Return the rows of several blocks; None if a block has none."""
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        columns = ([getattr(part, name) for part in found] for name in ("k", "se", "ess", "broken"))
        return Kept(*(torch.cat(column) for column in columns))

    def above(self, limit: float) -> Tensor:
        """The rows whose k-hat is above a limit, or whose weights are no numbers."""
        return (self.k > limit) | self.broken


def worst_of(kept: Kept, index: np.ndarray, limit: float) -> list[int]:
    """Numbers of the rows above the limit, the worst first, at most 20; rows without finite weights come first."""
    size = torch.where(kept.broken, torch.inf, kept.k.nan_to_num(nan=-torch.inf))
    order = size.argsort(descending=True, stable=True)[: min(LISTED, int(kept.above(limit).sum()))]
    return [int(index[i]) for i in order]


def of_data(kept: Kept, asking: Asked, draws: int, *, given: bool) -> tuple[str, list[str], dict[str, Any]]:
    """Return the verdict over the data, its sentences, and the share above the threshold with its binomial error."""
    limit, count = threshold(draws), len(kept.k)
    above = kept.above(limit)
    x = int(above.sum())
    share, equal = x / count, int((kept.k.isnan() & ~kept.broken).sum())
    se = math.sqrt(share * (1 - share) / count)
    facts = {"share": share, "share_se": se}
    used = float(kept.ess.nanmedian()) / draws
    if equal == count:
        verdict, sentence = _of_equal(f"of each of the {count} data" if count > 1 else "of the datum", used)
        return verdict, [sentence], facts
    middle = float(kept.k.nanquantile(0.5)) if equal + int(kept.broken.sum()) < count else math.nan
    error = float(kept.se.nanmean())
    which = "" if count == asking.length else f" ({count} of {asking.length}, evenly spaced)"
    whose = ", given one draw of the latents that all data share" if given else ""
    middle_text = f"; the median is {middle:.2f}" if math.isfinite(middle) else ""
    error_text = f", and each has a standard error of about {error:.2f}" if math.isfinite(error) else ""
    said = [
        f"PSIS k-hat of the guide, one for each datum{whose}{which}, is above {limit:.2f} for {x} of {count} data: "
        f"{percent(x, count)}{middle_text}{error_text} ({draws} draws)."
    ]
    if bool(kept.broken.any()):
        said.append(
            f"The weights of {int(kept.broken.sum())} data are no finite numbers: the density of the model or the guide is "
            "infinite or NaN at some draws; run pyro_vi.check on the pair."
        )
    if share > FEW:
        said.append(
            "For these data draws of the guide say too little about the posterior: it is too narrow, or lies elsewhere. Do not "
            "use their means, intervals or draws, nor an estimate from them; fit longer, or take a wider family of guides."
        )
    elif math.isfinite(middle) and middle > GOOD:
        said.append(
            f"For most data k-hat is between {GOOD} and {limit:.2f}: the guide's own means and intervals are off; use moments "
            "with Pareto-smoothed weights in their place."
        )
    elif used < HALF:
        said.append(
            f"Draws of the guide cover the posteriors, but only {100 * used:.0f} % of them count (median): the guide is too "
            "wide, or lies elsewhere; use moments with Pareto-smoothed weights in place of its own."
        )
    else:
        others = "the other data" if x else "each datum"
        said.append(
            f"Draws of the guide cover the posterior of {others}, and {100 * used:.0f} % of them count (median). "
            "A mode that no draw reaches stays unseen, and a guide that is a little too wide passes: compare the moments."
        )
    worst = worst_of(kept, asking.index, limit)
    if worst:
        rows = ", ".join(map(str, worst))
        are = "is row" if x == 1 else "are rows"
        said.append(f"The worst {are} {rows}{' and others' if x > len(worst) else ''}.")
    careful = share > FEW or middle > GOOD or used < HALF or bool(kept.broken.any())
    verdict = "fail" if share >= MANY else "care" if careful else "pass"
    return verdict, said, facts


def _of_equal(whose: str, used: float) -> tuple[str, str]:
    """Return the verdict and the sentence where the largest weights are equal, of which this share of the draws counts."""
    said = f"The largest weights {whose} are equal, so that there is no k-hat"
    if used > SAME:
        return "pass", (
            f"The weights {whose} are equal, as those of an exact posterior are: the draws cannot tell the guide from the "
            "posterior."
        )
    if used < HALF:
        return "care", (
            f"{said}, but only {100 * used:.0f} % of the draws count: the guide is too wide, or lies elsewhere; use moments "
            "with Pareto-smoothed weights in place of its own."
        )
    return "pass", (
        f"{said}, and {100 * used:.0f} % of the draws count. A mode that no draw reaches stays unseen, and a guide that is a "
        "little too wide passes: compare the moments."
    )


def percent(x: int, count: int) -> str:
    """A share in per cent with its binomial error; where all or none of the data have it, with a bound at 95 %.

    Example:
        >>> percent(5, 100), percent(0, 100)
        ('5.0 % ± 2.2 %', '0 % (below 3.0 % with 95 % confidence, for data like these)')
    """
    if 0 < x < count:
        share = x / count
        return f"{100 * share:.1f} % ± {100 * math.sqrt(share * (1 - share) / count):.1f} %"
    bound = 100 * (1 - 0.05 ** (1 / count))
    text = f"below {bound:.1f} %" if x == 0 else f"above {100 - bound:.1f} %"
    return f"{0 if x == 0 else 100} % ({text} with 95 % confidence, for data like these)"


def of_whole(kept: Kept, draws: int, noise: float, facts: Facts) -> tuple[str, list[str]]:
    """Return the verdict over the latents that all data share, and its sentences."""
    limit, k, se, ess = threshold(draws), float(kept.k[0]), float(kept.se[0]), float(kept.ess[0])
    whose = f"of the latents that all data share ({quoted(facts.shared)})"
    if bool(kept.broken[0]):
        return "fail", [
            f"The weights {whose} are no finite numbers: the density of the model or the guide is infinite or NaN at some "
            "draws; run pyro_vi.check on the pair."
        ]
    if math.isnan(k):
        verdict, sentence = _of_equal(whose, ess / draws)
        return verdict, [sentence]
    number = f"PSIS k-hat {whose} is {k:.2f} ± {se:.2f} ({draws} draws, {ess:.0f} effective; the limit is {limit:.2f})"
    if noise > NOISY and k > GOOD:
        return "none", [
            f"{number}, but averaging over the latents of each datum adds noise with standard deviation {noise:.1f} to the "
            "log-weights, which may be all of it: nothing can be said; take more draws inside (inner)."
        ]
    if k - se > limit:
        return "fail", [
            f"{number}: draws of the guide say too little about the posterior. Do not use its means, intervals or draws; fit "
            "longer, or take a guide with correlations ('full_normal') or a wider family."
        ]
    if k > limit:
        return "care", [f"{number}: within its error of the limit; take more draws to tell."]
    if k > GOOD:
        return "care", [
            f"{number}: the guide's own means and intervals are off; use moments with Pareto-smoothed weights in their place."
        ]
    if ess < HALF * draws:
        return "care", [
            f"{number}: draws of the guide cover the posterior, but few of them count: the guide is too wide, or lies "
            "elsewhere; use moments with Pareto-smoothed weights in place of its own."
        ]
    return "pass", [
        f"{number}: draws of the guide cover the posterior. A mode that no draw reaches stays unseen, and a guide that is a "
        "little too wide passes: compare the moments."
    ]


def of_sites(kept: Mapping[str, Kept | None], joint: Kept | None, limit: float) -> list[str]:
    """Return sentences on the sites one by one, given the others."""
    said = []
    without = [name for name, found in kept.items() if found is None]
    shares = {name: float(found.above(limit).double().mean()) for name, found in kept.items() if found is not None}
    bad = {name: share for name, share in shares.items() if share > FEW}
    for name, share in bad.items():
        found = kept[name]
        assert found is not None
        many = len(found.k) > 1
        number = (
            f"above {limit:.2f} for {percent(round(share * len(found.k)), len(found.k))} of the data" if many else ""
        )
        number = number or f"{float(found.k[0]):.2f} ± {float(found.se[0]):.2f}"
        said.append(
            f"Site '{name}' by itself, given the other latents, has a k-hat {number}: its own form does not fit."
        )
    if shares and not bad and not without and joint is not None and float(joint.above(limit).double().mean()) > FEW:
        said.append(
            f"Each of the sites {quoted(shares)} fits given the others, and all together do not: the guide lacks the "
            "dependence between them; take a guide with correlations between sites, such as 'full_normal' or 'flow'."
        )
    if without:
        said.append(
            f"There is no k-hat of {quoted(without)} given the others, as the guide draws other sites given it; the joint one "
            "covers it."
        )
    return said
