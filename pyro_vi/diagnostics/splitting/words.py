"""What the gaps of a pair mean, in sentences, with a verdict.

* `verdict_of` compares the gap with the number of latents; `sentences_of` says what was found and what to do.
"""

import math
from collections.abc import Mapping
from typing import Any

from pyro_vi.diagnostics.splitting.own_family import WORDS
from pyro_vi.diagnostics.tails import UNRELIABLE

GOOD, POOR = 0.02, 0.125
"""A gap in nats for each number of z. The KL of a normal from one that is shifted by b standard deviations is b² / 2: .02 is a
shift by a fifth of a standard deviation, or .8 of its width, and .125 a shift by a half, or .66 of its width."""


def verdict_of(gap: float, error: float, size: int, unreliable: bool) -> str:
    """Return ``"pass"``, ``"care"``, ``"fail"`` or ``"none"`` for a mean gap over ``size`` latent numbers.

    Example:
        >>> verdict_of(0.01, 0.001, 1, False), verdict_of(0.125, 0.2, 1, False), verdict_of(0.5, 0.01, 1, False)
        ('pass', 'care', 'fail')
    """
    if not math.isfinite(gap):
        return "none"
    each = max(size, 1)
    if (gap - 2 * error) / each > POOR:
        return "fail"
    if (gap + 2 * error) / each <= GOOD and not unreliable:
        return "pass"
    return "care"


def sentences_of(numbers: Mapping[str, Any]) -> list[str]:
    """Return the sentences about the gaps.

    Args:
        numbers: ``rows``; ``whole``; ``size`` (latent numbers); ``own`` (the family's name or ""); pairs of mean and error
            under ``gap``, ``amortization``, ``approximation``; ``families``, the pair of each family's approximation; ``worst``
            (the datum and its gap); ``heavy`` (data with a k-hat above the limit, and all data); ``below`` (data whose evidence
            is below an ELBO); ``exact``; ``note``.
    """
    rows, gap = numbers["rows"], numbers["gap"]
    whole, size = numbers["whole"], max(numbers["size"], 1)
    over = "of the whole data set" if whole else f"on average over {rows} data"
    found = [
        f"The gap log p(x) − ELBO is {_shown(gap)} nats {over}, which is the KL divergence of the guide from the posterior"
        f" ({_each(gap[0], size)})."
    ]
    if not math.isfinite(gap[0]):
        return [
            f"There is no gap: log p(x) or the ELBO is infinite or not a number{'' if whole else ' for some data'}; run "
            "pyro_vi.check on the pair."
        ]
    own = numbers["own"]
    if own:
        amortization, approximation = numbers["amortization"], numbers["approximation"]
        what = "the fit has left" if whole else "the encoder loses against a search for each datum alone (amortization)"
        found.append(
            f"Of it, {_shown(amortization)} nats are what {what}, and {_shown(approximation)} nats are what {WORDS[own]} "
            "cannot reach (approximation)."
        )
        found.append(_advice(amortization, approximation, numbers, whole, size))
    others = {name: value for name, value in numbers["families"].items() if name != own}
    if others:
        listed = ", ".join(f"{_shown(value)} with {WORDS[name]}" for name, value in others.items())
        found.append(f"The approximation gap of other families is {listed}.")
    if numbers["worst"] is not None:
        datum, value, error = numbers["worst"]
        found.append(f"Datum {datum} (counted from 0) has the largest gap, {_shown((value, error))} nats.")
    heavy, count = numbers["heavy"]
    of = "" if whole else " of {} of " + f"{count} data"
    too_low = "it is too low, and so are the gap and its approximation part; amortization does not depend on it."
    if numbers["below"]:
        found.append(
            f"The estimated evidence{of.format(numbers['below'])} is below the best ELBO that was found: {too_low}"
        )
    if heavy:
        tail = f"rests on weights with a heavy tail (k-hat above {UNRELIABLE})"
        found.append(f"The evidence{of.format(heavy)} {tail}: probably {too_low}")
    elif not numbers["exact"] and not numbers["below"]:
        found.append(
            "The evidence is an estimate by importance sampling, which is too low where the draws miss a mode of the posterior."
        )
    if numbers["note"]:
        found.append(numbers["note"][0].upper() + numbers["note"][1:] + ".")
    return found


def _shown(value: tuple[float, float]) -> str:
    mean, error = value
    if abs(mean) < 1e-6 and error < 1e-6:
        return "0"
    return f"{mean:.3g} ± {error:.1g}" if error > 1e-6 * abs(mean) else f"{mean:.3g}"


def _each(gap: float, size: int) -> str:
    each = max(gap, 0.0) / size
    shift = (2 * each) ** 0.5
    what = "the latent number" if size == 1 else f"each of the {size} latent numbers"
    return f"as much as a shift of {what} by {shift:.2g} posterior standard deviations"


def _advice(
    amortization: tuple[float, float], approximation: tuple[float, float], numbers: Any, whole: bool, size: int
) -> str:
    total = max(amortization[0], 0) + max(approximation[0], 0)
    if total <= GOOD * size:
        return (
            "Both are small: the guide may be used in place of the posterior, as far as its normals or flows can show."
        )
    if amortization[0] > approximation[0]:
        if whole:
            return "The larger part is the fit: take more steps, or a smaller learning rate at the end."
        return (
            "The larger part is the encoder: train it longer or on more data, make it wider, or refine its output for each "
            "datum (guide 'semi_amortized')."
        )
    gains = {name: approximation[0] - value[0] for name, value in numbers["families"].items() if name != numbers["own"]}
    best = max(gains, key=lambda name: gains[name], default=None)
    if best is not None and gains[best] > 0.2 * approximation[0]:
        return (
            f"The larger part is the family: {WORDS[best]} would reach {gains[best]:.3g} nats more (guide '{best}'); a longer "
            "fit of this guide cannot."
        )
    return "The larger part is the family, and neither a full normal nor a flow would reach much more of it."
