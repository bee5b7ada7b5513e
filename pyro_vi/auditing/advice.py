"""A recommendation from an audit: the estimator whose gradient is least uncertain for the time that it takes.

Work-normalised variance, variance × seconds, is what is left of the variance after a second of averaging. Estimators are
ranked by that of the guide's gradient, among those of one bound that show no bias; where the intervals do not separate them
there is no advice.
"""

import math
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import xarray as xr
from scipy import special

BIASED = 0.01
"""Adjusted p-value below which an estimator counts as biased."""


@dataclass(frozen=True)
class Advice:
    """One recommendation, or the reason why there is none.

    Attributes:
        elbo: the recommended estimator: the best of those that the audit cannot tell apart; None if it supports none.
        ratio: how many times more work-normalised variance the next best has that does differ, with its 95 % interval ``low``,
            ``high``.
        text: the recommendation in a sentence.
    """

    elbo: str | None
    ratio: float
    low: float
    high: float
    text: str


def advise(audit: xr.Dataset, *, part: str = "guide", stage: str = "") -> list[Advice]:
    """Recommend an estimator for each bound that several estimators of the audit share.

    Args:
        audit: a dataset of `pyro_vi.audit`.
        part: the gradient to compare: of the ``"guide"`` or of the ``"model"``.
        stage: name of this point of the fit in the sentence, such as ``"early"`` or ``"at the end"``.

    Example:
        >>> import torch, pyro_vi
        >>> from pyro_vi.programs import build_pair
        >>> digits = pyro_vi.load("digits")
        >>> pair = build_pair("vae", "diag_normal", digits)
        >>> found = pyro_vi.audit(pair.model, pair.guide, digits.example(64), draws=200)
        >>> advise(found)[0].elbo
        'mean_field'
    """
    result = []
    for target in dict.fromkeys(audit.target.values.tolist()):
        names = [str(name) for name in audit.elbo.values[audit.target.values == target]]
        if len(names) > 1:
            where = "" if target == "elbo" else f" for the {target} bound"
            result.append(_among(audit, names, part, f"{stage}{where}: ".lstrip() if stage or where else ""))
    return result


def _among(audit: xr.Dataset, names: list[str], part: str, prefix: str) -> Advice:
    biased = [name for name in names if bool((audit.bias_p.sel(elbo=name).values < BIASED).any())]
    chosen = audit.sel(elbo=[name for name in names if name not in biased], part=part)
    tail = f"; {', '.join(biased)} left out as biased." if biased else "."
    if chosen.sizes["elbo"] < 2:
        return Advice(None, math.nan, math.nan, math.nan, f"{prefix}no recommendation: too few to choose from{tail}")
    best, *others = (chosen.isel(elbo=int(i)) for i in np.argsort(chosen.part_work_var.values))
    ratios = {_name(other): _ratio(other, best) for other in others}
    clear = [name for name, (_, low, _) in ratios.items() if low > 1]
    tied = list(takewhile(lambda name: name not in clear, ratios))  # none that ranks after one that does differ
    if not clear:
        ratio, low, high = ratios[tied[0]]
        text = (
            f"{prefix}no recommendation: {', '.join([_name(best), *tied])} do not differ in work-normalised variance in the "
            f"{part} (ratio {ratio:.3g}, 95 % interval {low:.3g} to {high:.3g}){tail}"
        )
        return Advice(None, ratio, low, high, text)
    ratio, low, high = ratios[clear[0]]
    if math.isinf(ratio):
        text = (
            f"{prefix}{' or '.join([_name(best), *tied])}: the {part} gradient does not vary here, that of others does"
        )
        return Advice(_name(best), ratio, low, high, text + tail)
    text = (
        f"{prefix}{' or '.join([_name(best), *tied])}: {ratio:.3g} times less work-normalised variance in the {part} than "
        f"{clear[0]}, the next best (95 % interval {low:.3g} to {high:.3g})"
    )
    if "trace" in clear[1:]:
        text += f", {ratios['trace'][0]:.3g} times less than trace"
    return Advice(_name(best), ratio, low, high, text + tail)


def _name(one: xr.Dataset) -> str:
    return str(one.elbo.values)


def _ratio(one: xr.Dataset, best: xr.Dataset) -> tuple[float, float, float]:
    """Return the work-normalised variance of an estimator divided by that of the best, with its 95 % interval."""
    if float(one.part_work_var) == 0:  # then that of the best is too
        return 1.0, 0.0, math.inf
    # A variance of the size of rounding, next to one that is not, is none.
    if float(best.part_grad_var) <= 1e-12 * float(one.part_grad_var):
        return math.inf, math.inf, math.inf
    ratio = float(one.part_work_var) / float(best.part_work_var)
    error = math.hypot(_relative(one), _relative(best))  # on the log scale
    width = math.exp(float(special.ndtri(0.975)) * error)
    return ratio, ratio / width, ratio * width


def _relative(one: xr.Dataset) -> float:
    variance = float(one.part_grad_var_se) / float(one.part_grad_var)
    return math.hypot(variance, float(one.seconds_se) / float(one.seconds))
