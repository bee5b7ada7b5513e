"""From ranks of simulations to coverage, biases, widths, p-values and a verdict.

* `measured_calibration` computes the numbers of each quantity, and hands them over with a verdict and sentences.
* `width_and_bias` reads the width of a guide and its bias from the coverage and the mean of the PIT.
"""

import math
from typing import Any

import numpy as np
import xarray as xr
from scipy import optimize, special, stats

from pyro_vi.auditing import holm
from pyro_vi.diagnostics.ranking.ranks import Ranked
from pyro_vi.diagnostics.ranking.uniformity import p_value
from pyro_vi.diagnostics.ranking.words import sentences_of

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Probabilities of the central intervals whose coverage is computed."""
ERROR = 0.05
"""Probability that a guide which is the posterior is rejected."""
LARGE = 0.08
"""KS distance above which a quantity fails: standard deviations wrong by two fifths, or means by a fifth of one."""
LARGE_DENSITY = 0.15
"""The same for a log-density, in which the faults of all latents add up."""
SURE = 0.01
"""Adjusted p-value up to which it fails; between this and .05, the distance may be chance."""
FEWEST = 20
"""Fewest simulations of which anything is said."""


def measured_calibration(ranked: Ranked, *, seed: int, attrs: dict[str, Any], notes: list[str]) -> xr.Dataset:
    """Return the calibration of a guide from its ranks: see `pyro_vi.calibration` for the numbers.

    Args:
        ranked: the ranks.
        seed: seed of the numbers that make the PIT continuous.
        attrs: further attributes: ``rows``, ``per``, ``what`` was simulated.
        notes: sentences about what was left out.
    """
    ranks, draws = ranked.ranks, ranked.draws
    noise = np.random.default_rng([seed, 1]).random(ranks.shape)
    pit = (ranks + noise) / (draws + 1)
    present = ~np.isnan(pit)
    number = present.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # A share of none or of all has an error too: that of (k + 1) / (n + 2).
        inside = np.stack([(abs(pit - 0.5) < level / 2).sum(0) for level in LEVELS], -1)
        coverage = inside / number[:, None]
        smoothed = (inside + 1) / (number[:, None] + 2)
        coverage_se = np.sqrt(smoothed * (1 - smoothed) / number[:, None])
        mean = np.nansum(pit, 0) / number
        mean_se = np.sqrt(np.nansum((pit - mean) ** 2, 0) / number / np.maximum(number - 1, 1))
    columns: dict[str, list[float]] = {name: [] for name in ("p_value", "ks", "ks_p_value", *_SHAPE)}
    for column, quantity in enumerate(ranked.quantities):
        some = present[:, column]
        few = number[column] < FEWEST
        columns["p_value"].append(math.nan if few else p_value(ranks[some, column], draws))
        test = None if few else stats.ks_1samp(pit[some, column], stats.uniform.cdf)
        columns["ks"].append(math.nan if test is None else float(test.statistic))
        columns["ks_p_value"].append(math.nan if test is None else float(test.pvalue))
        known = not few and quantity.kind == "latent"
        shape = width_and_bias(pit[some, column]) if known else (math.nan,) * len(_SHAPE)
        for name, value in zip(_SHAPE, shape, strict=True):
            columns[name].append(value)
    adjusted = holm(np.array(columns["p_value"]))
    found = xr.Dataset(
        {
            "rank": (("simulation", "quantity"), ranks),
            "pit": (("simulation", "quantity"), pit),
            "coverage": (("quantity", "level"), coverage),
            "coverage_se": (("quantity", "level"), coverage_se),
            "mean_pit": ("quantity", mean),
            "mean_pit_se": ("quantity", mean_se),
            **{name: ("quantity", np.array(values)) for name, values in columns.items()},
            "p_adjusted": ("quantity", adjusted),
            "number": ("quantity", number),
        },
        {
            "quantity": [quantity.name for quantity in ranked.quantities],
            "level": list(LEVELS),
            "site": ("quantity", [quantity.site for quantity in ranked.quantities]),
            "kind": ("quantity", [quantity.kind for quantity in ranked.quantities]),
        },
    )
    joint = float(np.nanmin(adjusted)) if not np.isnan(adjusted).all() else math.nan
    rejected = (adjusted <= ERROR) & ~np.isnan(adjusted)
    limit = np.where(found.kind.values == "density", LARGE_DENSITY, LARGE)
    large = (adjusted <= SURE) & (found.ks.values > limit)
    verdict = "none" if math.isnan(joint) else "fail" if large.any() else "care" if rejected.any() else "pass"
    found.attrs = {
        "verdict": verdict,
        "p_value": joint,
        "simulations": len(ranks),
        "draws": draws,
        "seed": seed,
        "test": "ECDF of the ranks at 99 values, exact; adjusted by Holm",
        **attrs,
    }
    found.attrs["sentences"] = [*sentences_of(found, ERROR, FEWEST), *notes]
    return found


_SHAPE = ("width", "width_se", "bias", "bias_se")


def width_and_bias(pit: np.ndarray) -> tuple[float, float, float, float]:
    """Return the width and the bias of a guide, each with its error, from the PIT of a number of its latents.

    If posterior and guide are normal, with the guide's mean b posterior standard deviations too high, and its standard
    deviation r times that of the posterior, the mean of the PIT is Φ(−b / √(1 + r²)), and a central interval that the guide
    gives probability l covers Φ(r z − b) − Φ(−r z − b), z = Φ⁻¹((1 + l) / 2). Both are solved for r and b; the coverage is the
    mean over the levels that the bias leaves intervals for.

    Args:
        pit: the PIT of the simulations, in (0, 1).

    Returns:
        r, its standard error, b and its standard error; NaN where no r fits, or the PIT is nearly always 0 or 1.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> pit = special.ndtr((rng.normal(size=100_000) - 0.3) / 0.5)  # r = .5, b = .3
        >>> [round(value, 2) for value in width_and_bias(pit)]
        [0.5, 0.0, 0.3, 0.0]
    """
    count = len(pit)
    mean = float(pit.mean())
    score = float(special.ndtri(mean))
    levels = np.array([level for level in LEVELS if special.ndtri((1 + level) / 2) > 1.3 * abs(score)])
    if not len(levels):
        return (math.nan,) * 4
    each = (abs(pit[:, None] - 0.5) < levels / 2).mean(1)
    z = special.ndtri((1 + levels) / 2)

    def surplus(log_r: float) -> float:
        r = math.exp(log_r)
        b = -score * math.sqrt(1 + r**2)
        return float((special.ndtr(r * z - b) - special.ndtr(-r * z - b)).mean() - each.mean())

    low, high = math.log(1e-3), math.log(1e2)
    if surplus(low) >= 0 or surplus(high) <= 0:
        return (math.nan,) * 4
    root = float(optimize.brentq(surplus, low, high))
    slope = (surplus(root + 1e-4) - surplus(root - 1e-4)) / 2e-4
    r, spread = math.exp(root), math.sqrt(1 + math.exp(2 * root))
    r_se = r * float(each.std(ddof=1)) / math.sqrt(count) / slope
    density = math.exp(-(score**2) / 2) / math.sqrt(2 * math.pi)
    b_se = spread * float(pit.std(ddof=1)) / math.sqrt(count) / density
    return r, r_se, -score * spread, b_se
