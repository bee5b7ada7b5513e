"""Sentences on fits: which differences are beyond error, and what a number of a fit is worth.

* `ranked` says how far fits are behind the best one, and which the data cannot tell apart; `remarks` says which KLs are
  sampled, why there is no evidence, and where it is not to be trusted.
"""

import math

import numpy as np
import xarray as xr

from pyro_vi.comparing import Comparison, Difference, Result, Standing
from pyro_vi.diagnostics import UNRELIABLE
from pyro_vi.elbo import ELBO
from pyro_vi.reporting.cells import decimals, figure, listed

MOST = 5
"""Most fits that a sentence lists; the table has all."""


def ranked(
    standing: Standing, what: str, comparison: Comparison, *, highest: bool = True, on: str = "", caveat: bool = True
) -> list[str]:
    """Return sentences on the differences to the best fit, of one number.

    Args:
        standing: the ranking.
        what: name of the number.
        comparison: the comparison.
        highest: the best number is the highest one.
        on: name of the data; by default those of the comparison.
        caveat: say that the differences are those of one seed, if there is one.
    """
    best, seeds, on = standing.best, comparison.seeds, on or comparison.on
    apart = {name: d for name, d in standing.differences.items() if d.apart}
    equal = {name: d for name, d in standing.differences.items() if not d.beyond_error}
    noisy = {name: d for name, d in standing.differences.items() if d.beyond_error and not d.beyond_seeds}
    # If all data share latents, the error of a number is that of its draws.
    drawn = on == comparison.on and any(result.shared for result in comparison.results.values())
    whose = "draws" if drawn else f"{on} data"
    over = f"over {len(seeds)} seeds, " if len(seeds) > 1 else ""
    top = f"{'highest' if highest else 'smallest'}{' mean' if over else ''} {what}"
    kind = "fits" if comparison.across == "estimators" else "guides"
    sentences = []
    if apart:
        start = f"{over}on {on} data".capitalize()
        sentences.append(
            f"{start}, {_fit(best, comparison)} has the {top} of {len(standing.means)} {kind}: beyond error, "
            f"{_behind(apart, highest)} ({_how(apart, whose, len(standing.means))})."
        )
    if equal:
        start = f"{over}the {whose}".capitalize()
        names, said = listed([best, *_few(equal)]), _behind(equal, highest, p=True)
        sentences.append(f"{start} cannot tell {names} apart by their {what}: {said}.")
    if noisy:
        start, said = f"{over}on {on} data".capitalize(), _behind(noisy, highest, p=True)
        sentences.append(
            f"{start}, the distance to the {what} of {best} is beyond error but within the spread over seeds: {said}."
        )
    if caveat and len(seeds) == 1 and apart:
        sentences[0] = sentences[0][:-1] + "; this is one seed, and another may differ by as much."
    return sentences


def remarks(comparison: Comparison) -> list[str]:
    """Return sentences on single fits, of the first seed."""
    return [line for name, result in comparison.results.items() for line in _of(name, result, comparison)]


def _of(name: str, result: Result, comparison: Comparison) -> list[str]:
    sentences = [
        f"Under {name} the KL of site '{site}' is {source}."
        for site, source in result.kl_source.items()
        if "(" in source and (result.objective == ELBO or comparison.across == "estimators")
    ]
    if result.objective != ELBO:
        sentences.append(f"{name}: {result.note}.")
    elif result.note:
        sentences.append(f"No evidence for {name}: {result.note}.")
    elif result.evidence is not None and unsure(result.evidence):
        sentences.append(
            f"Under {name} the evidence is probably too low: {_half(result.evidence, comparison)} fewer than 10 "
            "effective draws; use more particles."
        )
    elif result.evidence is not None and _heavy(result.evidence):
        sentences.append(
            f"Under {name} the error of the evidence is not to be trusted: k-hat of its weights is "
            f"{float(np.nanmedian(result.evidence.khat)):.2f} (median), above {UNRELIABLE}; use a guide with heavier tails."
        )
    return sentences


def untrusted(evidence: xr.Dataset | None) -> bool:
    """True if an evidence is probably too low, or its error too small."""
    return evidence is not None and (unsure(evidence) or _heavy(evidence))


def unsure(evidence: xr.Dataset) -> bool:
    """True if few draws carry the weight of an evidence."""
    return evidence.attrs["method"] == "iw" and float(evidence.ess.median()) < 10


def _fit(name: str, comparison: Comparison) -> str:
    return f"the fit under {name}" if comparison.across == "estimators" else name


def _few(differences: dict[str, Difference]) -> list[str]:
    names = list(differences)
    return names if len(names) <= MOST else [*names[: MOST - 1], f"{len(names) - MOST + 1} more"]


def _behind(differences: dict[str, Difference], highest: bool, *, p: bool = False) -> str:
    """Say how far fits are from the best: with the error of the data, or over seeds."""
    parts: list[str] = []
    for name, one in list(differences.items())[: MOST if len(differences) <= MOST else MOST - 1]:
        error = one.se if one.seeds is None else one.seeds.se
        way = "behind" if highest else "above"
        verb, unit = (f"is {way} by", " nats per datum") if not parts else ("by", "")
        known = one.p if one.seeds is None else max(one.p, one.seeds.p)
        said = f" (p = {known:.2g})" if p and not math.isnan(known) else ""
        parts.append(f"{name} {verb} {figure(one.value, error)}{unit}{said}")
    left = len(differences) - len(parts)
    return listed([*parts, f"{left} more"] if left else parts)


def _how(differences: dict[str, Difference], whose: str, fits: int) -> str:
    """Say of what the errors are, and for how many pairs the p-values are adjusted."""
    one = next(iter(differences.values()))
    pairs = fits * (fits - 1) // 2
    adjusted = f"; p-values adjusted for {pairs} pairs" if pairs > 1 else ""
    if one.seeds is not None:
        spread = f"{one.seeds.sd:.{decimals(one.seeds.sd)}f} for {next(iter(differences))}"
        return f"± standard error over seeds; standard deviation {spread}{adjusted}"
    if not one.count:
        return f"with their Monte Carlo errors{adjusted}"
    return f"paired over {one.count} {whose}{adjusted}"


def _half(evidence: xr.Dataset, comparison: Comparison) -> str:
    if evidence.attrs.get("per") == "data set":
        return "it rests on"
    return f"for half of the {comparison.on} data it rests on"


def _heavy(evidence: xr.Dataset) -> bool:
    values = evidence.khat.values[~np.isnan(evidence.khat.values)] if "khat" in evidence else np.zeros(0)
    return bool(values.size) and float(np.median(values)) > UNRELIABLE
