"""Estimates of the evidence, laid out as datasets with their verdict in plain sentences.

* `Estimate` holds the numbers of each row; `estimate_of` makes it of sums of weights, `of_log_weights` of log-weights.
* `laid_out` makes the dataset; `verdict_of` says whether the numbers can be used, and why.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_vi.diagnostics.tails import UNRELIABLE, Tail, khat
from pyro_vi.elbo import standard_error

FEW = 10
"""Effective draws below which the standard error of a mean weight says little."""
ENOUGH = 100
"""Draws from which on k-hat counts by itself: of 32, its tail has 6."""
RARE, COMMON = 0.05, 0.2
"""Share of the data that cannot be trusted up to which a verdict is "pass", and up to which it is "care"."""

BLIND = (
    "Neither k-hat nor the errors show a part of the posterior that no draw has reached, such as another mode: compare with "
    "start='prior' (method 'ais'), or with method='sandwich'."
)
NAMES = {
    "iw": "importance sampling from the guide",
    "prior": "importance sampling from the prior",
    "ais": "annealed importance sampling",
    "exact": "in closed form",
    "enum": "by summing all latents out",
}


@dataclass(frozen=True)
class Estimate:
    """log p(x) of each row in nats, its Monte Carlo error, effective draws and k-hat: (rows,) each; NaN without draws."""

    values: Tensor
    error: Tensor
    ess: Tensor
    khat: Tensor

    @classmethod
    def exact(cls, values: Tensor) -> "Estimate":
        """Values without an error."""
        nothing = torch.full_like(values, math.nan)
        return cls(values, torch.zeros_like(values), nothing, nothing)

    @classmethod
    def joined(cls, parts: list["Estimate"]) -> "Estimate":
        """The rows of several estimates, one after the other."""
        columns = ((one.values, one.error, one.ess, one.khat) for one in parts)
        return cls(*(torch.cat(column) for column in zip(*columns, strict=True)))


def estimate_of(first: Tensor, second: Tensor, top: Tensor, draws: int, most: int) -> Estimate:
    """The estimate from log Σ w and log Σ w² over the draws, (rows,), and the largest log-weights, (size, rows).

    Args:
        first: log Σ w.
        second: log Σ w².
        top: of a `pyro_vi.diagnostics.tails.Tail`.
        draws: K.
        most: most rows with a k-hat.
    """
    ess = (2 * first - second).exp()
    # Var(w) / (K mean(w)²) = 1/ESS − 1/K: the squared relative error of the mean weight.
    error = (1 / ess - 1 / draws).clamp(min=0).sqrt()
    return Estimate(first - math.log(draws), error, ess, khat(top, draws, most))


def of_log_weights(log_weight: Tensor, most: int) -> Estimate:
    """The estimate from log-weights, (K, rows)."""
    tail = Tail(len(log_weight))
    tail.add(log_weight)
    return estimate_of(log_weight.logsumexp(0), (2 * log_weight).logsumexp(0), tail.top(), len(log_weight), most)


def laid_out(
    found: Estimate,
    *,
    method: str,
    draws: int,
    note: str,
    rows: int,
    whole: bool,
    how: str = "",
    from_prior: bool = False,
) -> xr.Dataset:
    """Lay out an estimate, with its verdict.

    Args:
        found: the estimate.
        method: its name.
        draws: K, or 0 without draws.
        note: what the attribute says.
        rows: number of data.
        whole: there is one number of all of them.
        how: the method in words, if it is more than its name.
        from_prior: the draws start from the prior, so that none of the posterior is out of reach.
    """
    heavy, count = int(heavy_tails(found, draws).sum()), int((~found.khat.isnan()).sum())
    if heavy:
        where = "" if whole else f" for {heavy} of {count} data"
        note += (
            f"; k-hat is above {UNRELIABLE}{where}: the weights have a heavy tail, and mc_se is too small to be trusted"
        )
    mean, se = float(found.values.mean()), standard_error(found.values)
    if whole:
        mean, se = mean / rows, float(found.error[0]) / rows
    verdict, sentences = verdict_of(
        found, method=method, draws=draws, rows=rows, whole=whole, how=how, from_prior=from_prior
    )
    columns = {"log_evidence": found.values, "mc_se": found.error, "ess": found.ess, "khat": found.khat}
    return xr.Dataset(
        {name: column(value, whole) for name, value in columns.items()},
        attrs={
            "method": method,
            "particles": draws,
            "draws": draws,
            "rows": rows,
            "note": note,
            "value": mean,
            "se": se,
            "total": float(found.values.sum()),
            "per": "data set" if whole else "datum",
            "verdict": verdict,
            "sentences": sentences,
        },
    )


def column(values: Tensor, whole: bool) -> tuple[tuple[str, ...], np.ndarray]:
    """A variable over the data, or one number."""
    numbers = values.detach().cpu().double().numpy()
    return ((), numbers.reshape(())) if whole else (("datum",), numbers)


def verdict_of(
    found: Estimate, *, method: str, draws: int, rows: int, whole: bool, how: str = "", from_prior: bool = False
) -> tuple[str, list[str]]:
    """Return the verdict on an estimate, and sentences with the numbers that it rests on; see `laid_out`."""
    how = how or NAMES[method]
    values, error = found.values.double(), found.error.double()
    if bool(values.isnan().any()):
        return "none", [f"log p(x) is not a number for {int(values.isnan().sum())} of {len(values)} rows ({how})."]
    if draws == 0:
        what = f"of the whole data set of {rows}" if whole else "per datum"
        spread = "" if len(values) == 1 else f" ± {standard_error(values):.3f} (standard error over {len(values)} data)"
        said = f"The evidence log p(x) is {float(values.mean()):.3f}{spread} nats {what}, {how}: it has no Monte Carlo error."
        return "pass", [said]
    if whole:
        sentences = [
            f"The evidence log p(x_1..N) of the whole data set of {rows} is {float(values[0]):.3f} ± {float(error[0]):.3f} "
            f"nats ({how}, {draws} draws)."
        ]
    elif len(values) == 1:
        sentences = [
            f"The evidence log p(x) of the one datum is {float(values[0]):.3f} ± {float(error[0]):.3f} nats ({how}, "
            f"{draws} draws)."
        ]
    else:
        sentences = [
            f"The evidence log p(x) is {float(values.mean()):.3f} ± {standard_error(values):.3f} nats per datum (standard "
            f"error over {len(values)} data; {how}, {draws} draws for each). The draws themselves add an error of "
            f"{float(error.square().mean().sqrt()):.2g} nats to a datum, and of {_mean_error(error):.2g} to the mean."
        ]
    few = min(FEW, 0.9 * draws)
    bad = heavy_tails(found, draws) | (found.ess < few) | ~found.values.isfinite()
    low = _low(error)
    carry = f"at least {_text(found.ess, min, 0)} draws carry the weight"
    tail = f"the largest k-hat is {_text(found.khat, max)}, and {carry}"
    good = tail if draws >= ENOUGH else f"{carry} (k-hat of so few draws is too rough to be used here)"
    if not bool(bad.any()) and len(values) == 1 and bool(uncertain_error(found, draws)[0]):
        said = (
            f"k-hat is {float(found.khat[0]):.2f}, above {ROUGH}: a few draws carry much of the weight. So ± is too small, and "
            f"the number may be too low by several times that. {_remedy(method)}"
        )
        return "care", [*sentences, said]
    if not bool(bad.any()):
        kind, are = ("it can", "it is") if whole else ("the numbers can", "they are")
        said = f"Of {draws} draws, {good}: {kind} be used. By the spread of the weights {are} about {low:.1g} nats too low."
        return "pass", [*sentences, said, *([] if from_prior else [BLIND])]
    remedy = _remedy(method)
    if whole:
        sentences.append(
            f"It cannot be trusted: {_reason(found, few)}. It is too low on average, by an amount that ± does not show. "
            f"{remedy}"
        )
        return "fail", sentences
    share = float(bad.double().mean())
    se = (share * (1 - share) / len(bad)) ** 0.5
    worst = [str(i) for i in _worst(found, bad)]
    rest = ". They are few, and the mean can be used" if share <= RARE else ", and so is the mean"
    sentences.append(
        f"For {int(bad.sum())} of {len(bad)} data ({100 * share:.1f} ± {100 * se:.1f} %) it cannot be trusted: k-hat is above "
        f"{UNRELIABLE}, or fewer than {few:.0f} draws carry the weight (worst: data {', '.join(worst)}). Their log p(x) is too "
        f"low on average, by an amount that the errors do not show{rest}. {remedy}"
    )
    return ("pass" if share <= RARE else "care" if share <= COMMON else "fail"), sentences


ROUGH = 0.5
"""k-hat above which weights have no finite variance."""


def uncertain_error(found: Estimate, draws: int) -> Tensor:
    """True for rows whose error is itself uncertain: k-hat says that it is not finite, and few draws carry the weight.

    Of nearly equal weights, k-hat sees a tail that does not matter to the estimate.
    """
    return (found.khat > ROUGH) & (found.ess < draws / 2) & torch.tensor(draws >= ENOUGH)


def heavy_tails(found: Estimate, draws: int) -> Tensor:
    """True for rows whose weights have too heavy a tail; k-hat of few draws is rough, and counts if few carry the weight."""
    return (found.khat > UNRELIABLE) & ((found.ess < draws / 2) | (draws >= ENOUGH))


def _worst(found: Estimate, bad: Tensor) -> list[int]:
    order = torch.where(bad, found.ess.double(), math.inf).argsort()
    return [int(i) for i in order[: min(3, int(bad.sum()))]]


def _reason(found: Estimate, few: float) -> str:
    """Why the one number of a data set cannot be trusted."""
    if not bool(found.values[0].isfinite()):
        return "no draw has a positive weight"
    parts = []
    if float(found.khat[0]) > UNRELIABLE:
        parts.append(f"k-hat is {float(found.khat[0]):.2f}, above {UNRELIABLE}")
    if float(found.ess[0]) < few:
        parts.append(f"only {float(found.ess[0]):.1f} draws carry the weight")
    return ", and ".join(parts)


def _remedy(method: str) -> str:
    if method == "ais":
        return "Take more steps, or more chains."
    return "Take method='ais', which moves the draws towards the posterior, or improve the guide."


def _mean_error(error: Tensor) -> float:
    return float(error.square().sum().sqrt() / len(error))


def _low(error: Tensor) -> float:
    """How much log of a mean is below the log of its expectation, to second order: half the squared relative error."""
    return float(0.5 * error.square().mean())


def _text(values: Tensor, choose: Any, digits: int = 2) -> str:
    known = values[~values.isnan()]
    if not len(known):
        return "not known (the weights are equal)" if digits else "not known"
    return f"{choose(known.tolist()):.{digits}f}"
