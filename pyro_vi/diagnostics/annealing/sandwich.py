"""The evidence from both sides: lower and upper bounds of log p(x) on data that are drawn from the model itself.

`sandwich_of_pair` draws the data, bounds their log p(x) by forward and reverse annealing, and says what importance sampling
misses.
"""

import math
from collections.abc import Callable

import torch
import xarray as xr

from pyro_vi.data import Batch, length_of, part
from pyro_vi.diagnostics.annealing.chains import Annealing, bounds
from pyro_vi.diagnostics.estimates import Estimate, column, of_log_weights
from pyro_vi.elbo import standard_error
from pyro_vi.programs import Pair, evaluating

NARROW, WIDE = 0.1, 1.0
"""Nats between the bounds up to which they are narrow, and from which they say little."""


def sandwich_of_pair(
    pair: Pair,
    args: Batch,
    whole: bool,
    settings: Annealing,
    most: int,
    weighed: Callable[[Batch], Estimate],
    draws: int,
) -> xr.Dataset:
    """Return lower and upper bounds of log p(x), on average, for x drawn from the model, with what ``weighed`` gives there.

    Args:
        pair: model and guide.
        args: the batch, whose observed columns are replaced by drawn ones.
        whole: true for one number of all data.
        settings: of the annealing.
        most: most data to draw, unless there is one number of all.
        weighed: the estimate by importance sampling on other data.
        draws: its draws.

    Raises:
        InputError: no data can be drawn from the model, or no chain can start at the latents that made them.
    """
    if not whole and length_of(args) > most and pair.separable(args, most):
        args = part(args, 0, most)
    lows, highs, others, accepted, lengths = [], [], [], [], []
    with evaluating(pair):
        for found in bounds(pair, args, whole, settings):
            lows.append(of_log_weights(found.lower, found.lower.shape[1]))
            highs.append(of_log_weights(-found.upper, found.upper.shape[1]))
            others.append(weighed(found.args))
            accepted.append(found.plan.accepted)
            lengths.append(found.plan.length)
    low, high, other = Estimate.joined(lows), Estimate.joined(highs), Estimate.joined(others)
    upper = -high.values
    width, error = upper - low.values, torch.hypot(low.error, high.error)
    columns = {
        "log_evidence": low.values,
        "mc_se": low.error,
        "ess": low.ess,
        "khat": low.khat,
        "lower": low.values,
        "lower_se": low.error,
        "upper": upper,
        "upper_se": high.error,
        "width": width,
        "width_se": error,
        "iw": other.values,
        "iw_se": other.error,
        "iw_ess": other.ess,
        "iw_khat": other.khat,
    }
    rows = length_of(args)
    of = rows if whole else 1
    numbers: dict[str, float] = {}
    pairs = {
        "lower": (low.values, low.error),
        "upper": (upper, high.error),
        "width": (width, error),
        "iw": (other.values, other.error),
        "missed_least": (low.values - other.values, torch.hypot(low.error, other.error)),
        "missed_most": (upper - other.values, torch.hypot(high.error, other.error)),
    }
    for name, (value, own) in pairs.items():
        numbers[name] = float(value.double().mean()) / of
        numbers[f"{name}_se"] = float(own[0]) / of if whole else standard_error(value)
    verdict, sentences = _verdict(numbers, rows, whole, settings, draws)
    return xr.Dataset(
        {name: column(value, whole) for name, value in columns.items()},
        attrs={
            "method": "sandwich",
            "particles": settings.chains,
            "draws": draws,
            "chains": settings.chains,
            "steps": settings.steps,
            "rows": rows,
            "accepted": float(torch.cat(accepted).mean()),
            "length": float(torch.cat(lengths).mean()),
            "note": f"annealed from the {settings.start}, on data drawn from the model",
            "value": numbers["lower"],
            "se": numbers["lower_se"],
            "total": float(low.values.double().sum()),
            "per": "data set" if whole else "datum",
            **numbers,
            "verdict": verdict,
            "sentences": sentences,
        },
    )


def _verdict(
    numbers: dict[str, float], rows: int, whole: bool, settings: Annealing, draws: int
) -> tuple[str, list[str]]:
    def said(name: str, digits: int = 3) -> str:
        return f"{numbers[name]:.{digits}f} ± {numbers[name + '_se']:.{digits}f}"

    what = "of one data set" if whole else "on average"
    data = f"one data set of {rows}" if whole else f"{rows} data"
    if not all(math.isfinite(numbers[name]) for name in ("lower", "upper")):
        return "none", [
            f"On {data} drawn from the model, annealing from the {settings.start} gives no finite bounds; take more steps or "
            "chains."
        ]
    width, error = numbers["width"], numbers["width_se"]
    sentences = [
        f"On {data} drawn from the model itself, log p(x) {what} is between {said('lower')} (forward annealing, which is too "
        f"low on average) and {said('upper')} nats per datum (reverse annealing, which is too high on average): the bounds are "
        f"{said('width')} nats apart.",
        f"On the same data, importance sampling with {draws} draws gives {said('iw')}: it misses at least "
        f"{said('missed_least')} and at most {said('missed_most')} nats per datum.",
        "The bounds hold for data that the model makes. Data that it would not make may be harder: nothing bounds their "
        "log p(x) from above.",
    ]
    if width < -4 * error and width < -1e-6:
        sentences.append(
            "The lower bound is above the upper one beyond the errors, which bounds cannot be: the chains are too few for "
            "their errors to be right; take more chains, or more steps."
        )
        return "fail", sentences
    if width <= NARROW:
        sentences.append("The bounds are narrow, so that the numbers can be used.")
        return "pass", sentences
    sentences.append(
        f"The bounds are further apart than {NARROW} nats: take more steps (here {settings.steps}) or chains."
    )
    return ("care" if width <= WIDE else "fail"), sentences
