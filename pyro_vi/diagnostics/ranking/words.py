"""Sentences for the calibration of a guide.

`sentences_of` says what was found, names the worst numbers with their errors, and says what to do.
"""

import math
from typing import Any

import numpy as np
import xarray as xr

from pyro_vi.diagnostics.ranking.ranks import JOINT, LIKELIHOOD

NAMED = 3
"""Most latent numbers that sentences name."""


def sentences_of(found: xr.Dataset, error: float, fewest: int) -> list[str]:
    """Return the sentences about a calibration, the most important first.

    Args:
        found: the numbers, of `calibrated`, with the attributes ``verdict``, ``p_value``, ``simulations``
            and ``per``.
        error: p-value up to which a quantity is rejected.
        fewest: fewest simulations of which anything is said.
    """
    attrs = found.attrs
    count, sets = attrs["simulations"], "data sets" if attrs["per"] == "data set" else "data"
    if attrs["verdict"] == "none":
        return [
            f"Of {count} simulated {sets} nothing can be said about calibration; take at least {fewest} simulations."
        ]
    rejected = found.isel(quantity=np.flatnonzero(found.p_adjusted.values <= error))
    tested = int(found.p_adjusted.notnull().sum())
    tail = f"smallest p-value {_p(attrs['p_value'])}, adjusted for {_counted(tested, 'quantity', 'quantities')}"
    where = f"{count} {sets} simulated from the model"
    if not rejected.sizes["quantity"]:
        return [f"No fault of the guide's intervals is found on {where} ({tail}).", *_held(found), *_blind(found)]
    often = {"fail": "is not calibrated", "care": "is slightly off"}[attrs["verdict"]]
    latent = rejected.isel(quantity=np.flatnonzero(rejected.kind.values != "density"))
    return [
        f"The guide {often}: on {where}, the ranks of {rejected.sizes['quantity']} of {tested} quantities among its draws are "
        f"not uniform, as they are under the posterior ({tail}).",
        *_latents(latent),
        *_densities(found, rejected, not latent.sizes["quantity"]),
        _advice(attrs["verdict"], rejected, latent),
    ]


def _held(found: xr.Dataset) -> list[str]:
    """The coverage of the latents of a guide that passes."""
    latent = found.isel(quantity=np.flatnonzero((found.kind.values != "density") & found.p_adjusted.notnull().values))
    if not latent.sizes["quantity"]:
        return []
    share, se = latent.coverage.sel(level=0.9).values * 100, latent.coverage_se.sel(level=0.9).values * 100
    if len(share) == 1:
        return [
            f"The 90 % interval of {latent.quantity.values[0]} holds {share[0]:.1f} ± {se[0]:.1f} % of the true values."
        ]
    return [
        f"The 90 % intervals of {len(share)} latent numbers hold {share.min():.1f} to {share.max():.1f} % of the true values, "
        f"each ± {se.mean():.1f} %."
    ]


def _blind(found: xr.Dataset) -> list[str]:
    """How large a fault may be and not be seen."""
    # A normal test at 5 %, adjusted, finds an effect of this many standard errors four times in five.
    tested = int(found.p_adjusted.notnull().sum())
    needed = 1.96 + 0.84 + math.sqrt(2 * math.log(max(tested, 1))) / 2
    widths = (found.width_se / found.width).values
    if np.isnan(widths).all():
        return []
    small = 100 * needed * float(np.nanmedian(widths))
    bias = needed * float(np.nanmedian(found.bias_se.values))
    return [
        f"With so many simulations, standard deviations that are wrong by less than about {small:.0f} %, or means by less than "
        f"{bias:.2f} posterior standard deviations, may pass."
    ]


def _latents(latent: xr.Dataset) -> list[str]:
    order = np.argsort(-latent.ks.values)
    said = [_latent(latent.isel(quantity=int(i))) for i in order[:NAMED]]
    left = len(order) - len(said)
    return [*said, f"{_counted(left, 'further latent number')} fail in the same test."] if left > 0 else said


def _latent(one: xr.Dataset) -> str:
    """The fault of one latent number."""
    name, share, se = str(one.quantity.values), 100 * float(one.coverage.sel(level=0.9)), 100 * _at(one.coverage_se)
    covers = f"the 90 % interval holds {share:.1f} ± {se:.1f} % of the true values"
    width, width_se = float(one.width), float(one.width_se)
    bias, bias_se = float(one.bias), float(one.bias_se)
    odd = f"(p = {_p(float(one.p_adjusted))})"
    mean = f"{_share(one)} % of the draws lie below the true value on average"
    if str(one.kind.values) == "discrete":
        return f"Draws of {name} are off: {mean}, counting half of the equal ones, where 50 % is right {odd}."
    if math.isnan(width):
        return f"Draws of {name} are off: {covers}, and {mean} {odd}."
    parts = []
    if abs(width - 1) > 2 * width_se:
        kind = "narrow" if width < 1 else "wide"
        parts.append(
            f"Intervals for {name} are too {kind}: {covers}, as if the guide's standard deviation were {width:.2f} ± "
            f"{width_se:.2f} of the right one"
        )
    if abs(bias) > 2 * bias_se:
        kind = "low" if bias < 0 else "high"
        text = f"too {kind} by about {abs(bias):.2f} ± {bias_se:.2f} posterior standard deviations"
        parts.append(f"its values are {text}" if parts else f"Values of {name} are {text}: {covers}")
    if not parts:
        parts.append(f"The shape of the guide for {name} is wrong, with about the right mean and width: {covers}")
    return f"{'; '.join(parts)} {odd}."


def _densities(found: xr.Dataset, rejected: xr.Dataset, alone: bool) -> list[str]:
    names = list(rejected.quantity.values)
    said = []
    if LIKELIHOOD in names:
        one = rejected.sel(quantity=LIKELIHOOD)
        share, se = 100 * float(one.mean_pit), 100 * float(one.mean_pit_se)
        if abs(share - 50) < 2 * se:
            why = "their spread is wrong, though not their mean"
        elif share > 50:
            why = "the draws explain the data worse than the true latents do: the guide takes too little from the data"
        else:
            why = (
                "the draws explain the data better than the true latents do: the guide lies too close to their best fit"
            )
        said.append(
            f"{LIKELIHOOD} of the true latents lies above that of {_share(one)} % of the draws on average, where 50 % is "
            f"right; {why} (p = {_p(float(one.p_adjusted))})."
        )
    elif JOINT in names:
        one = rejected.sel(quantity=JOINT)
        said.append(
            f"{JOINT} of the true latents lies above that of {_share(one)} % of the draws on average, where 50 % is right "
            f"(p = {_p(float(one.p_adjusted))})."
        )
    if said and alone:
        said.append(
            "Each latent by itself is calibrated, as it is also for the prior: what is wrong is how the guide depends on the "
            "data, or how its latents depend on each other."
        )
    return said


def _advice(verdict: str, rejected: xr.Dataset, latent: xr.Dataset) -> str:
    if verdict == "care":
        return "The fault is small: use the intervals if errors of this size do not matter, or fit for longer."
    narrow = bool(latent.sizes["quantity"]) and float(latent.width.min()) < 0.9
    why = " A mean-field guide is too narrow where latents depend on each other." if narrow else ""
    return (
        f"Do not use the guide's intervals as they are: fit for longer, take a richer family (full_normal, flow), or weight "
        f"its draws by importance where k-hat allows it.{why}"
    )


def _share(one: xr.Dataset) -> str:
    return f"{100 * float(one.mean_pit):.1f} ± {100 * float(one.mean_pit_se):.1f}"


def _at(values: Any) -> float:
    return float(values.sel(level=0.9))


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}" if value > 0 else "below 1e-300"
