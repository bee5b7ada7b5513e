"""Sentences and a verdict for the numbers of `pyro_vi.diagnostics.collapsing.collapsed`."""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr


def conclude(found: xr.Dataset) -> tuple[str, list[str]]:
    """Return the verdict and the sentences for a dataset of `collapse`.

    ``"fail"``: the guide leaves units at their prior whose posterior is another one. ``"care"``: the likelihood is known to
    have a better maximum, a cause is unclear, or no unit is active. Else ``"pass"``: where the decoder ignores a unit, the
    prior is its posterior.
    """
    sentences = [_active(found), *_information(found), *_linear(found), *_causes(found)]
    causes = set(found.cause.values.tolist())
    if "guide" in causes:
        return "fail", sentences
    return ("care" if causes & {"optimiser", "unclear"} or found.attrs["active"] == 0 else "pass"), sentences


def _active(found: xr.Dataset) -> str:
    active, units, prior = found.attrs["active"], found.attrs["units"], int(found.prior.sum())
    limits = found.attrs["thresholds"]
    text = (
        f"{active} of {_count(units, 'unit')} of the latents {_is(active)} active: over the {found.attrs['rows']} data, "
        f"E[z | x] varies by more than {limits['variance']:g} of the prior's variance."
    )
    total, error = float(found.total_kl), float(found.total_kl_se)
    if math.isfinite(total):
        text += f" All latents of a datum together have a KL of {total:.3f} ± {error:.3f} nats from the prior."
    if prior:
        share = f"{_count(prior, 'unit')} ({prior / units:.0%}) {_is(prior)}"
        text += f" {share} at the prior, with a KL below {limits['kl']:g} nats."
    unknown = np.isnan(found.kl.values)
    if unknown.any():
        sites = _names(list(dict.fromkeys(found.site.values[unknown])))
        text += f" The KL of single units of {sites} is not known, as the prior or the guide does not split into them."
    return text


def _information(found: xr.Dataset) -> list[str]:
    shown = {
        name: f"{float(found[name]):.2f} ± {float(found[f'{name}_se']):.2f}"
        for name in (f"{what}_{side}" for what in ("total_information", "marginal_kl") for side in ("lower", "upper"))
        if math.isfinite(float(found[name]))
    }
    if len(shown) < 4:
        return []
    text = (
        f"The mutual information of a datum and its latents is between {shown['total_information_lower']} and "
        f"{shown['total_information_upper']} nats. The rest of the KL, between {shown['marginal_kl_lower']} and "
        f"{shown['marginal_kl_upper']} nats, is that from the mean of q(z | x) over the data to the prior."
    )
    ceiling = found.attrs["ceiling"]
    if float(found.total_information_lower) > ceiling - 0.5:
        text += f" The lower bound of the information cannot exceed {ceiling:.2f}, the logarithm of the number of data."
    return [text]


def _linear(found: xr.Dataset) -> list[str]:
    if "usable" not in found.attrs:
        return []
    usable, used, noise = found.attrs["usable"], found.attrs["used"], found.attrs["noise"]
    several = math.isnan(noise)
    values = [f"{value * (1.0 if several else noise):.3g}" for value in found.eigenvalue.values]
    listed = ", ".join([*values[:usable][:8], *(["…"] if usable > 8 else [])]) or "none"
    after = f" (the next is {values[usable]})" if usable < len(values) else ""
    of = "normal noise" if several else f"normal noise of variance {noise:.3g}"
    where = "in units of the noise above 1" if several else "above the noise"
    short = max(0.0, found.attrs["best_log_evidence"] - found.attrs["log_evidence"])
    return [
        f"The decoder is linear with {of}. At this noise the likelihood is largest if {_count(usable, 'direction')} "
        f"{_is(usable)} used, those in which the covariance of the data has an eigenvalue {where}: {listed}{after}. The "
        f"decoder uses {used}. Its log p(x) is {found.attrs['log_evidence']:.4f} nats per datum, {short:.4f} below the maximum."
    ]


def _causes(found: xr.Dataset) -> list[str]:
    sentences = []
    for cause, say in (("guide", _guide), ("optimiser", _optimiser), ("model", _model), ("unclear", _unclear)):
        chosen = found.cause.values == cause
        if chosen.any():
            sentences.append(say(found, found.unit.values[chosen], chosen))
    moved = found.collapsed.values & (found.kl.values > found.attrs["thresholds"]["kl"])
    if moved.any():
        names = found.unit.values[moved]
        sentences.append(
            f"{_names(names)} {_has(len(names))} a KL from the prior, but no information about the datum: the guide gives all "
            "data nearly the same distribution, which is not the prior."
        )
    return sentences or ["No unit has collapsed."]


def _guide(found: xr.Dataset, units: np.ndarray, chosen: np.ndarray) -> str:
    gain, error = found.gain.values[chosen], found.gain_se.values[chosen]
    k = int(gain.argmax())
    return (
        f"The guide has collapsed at {_names(units)}: q(z | x) says nothing about the datum there, although the posterior "
        f"does. If q changed at {units[k]} alone, the ELBO would rise by at least {gain[k]:.3g} ± {error[k]:.2g} nats per "
        "datum. Do not use these latents as they are: fit the guide again with the model fixed, or give it a larger encoder."
    )


def _optimiser(found: xr.Dataset, units: np.ndarray, chosen: np.ndarray) -> str:
    short = found.attrs["best_log_evidence"] - found.attrs["log_evidence"]
    return (
        f"The optimiser has left {_names(units)} unused: the decoder ignores {_them(len(units))}, but would not at the "
        f"maximum. The fit lacks {short:.3g} nats per datum. Fit for longer, at another learning rate, or from another start."
    )


def _model(found: xr.Dataset, units: np.ndarray, chosen: np.ndarray) -> str:
    use = found.use.values[chosen]
    size = "" if np.isnan(use).all() else f", from which it differs by at most {max(1e-4, np.nanmax(use)):.2g} nats"
    text = (
        f"The decoder ignores {_names(units)}. The posterior there is what the guide has{size}, so that the collapse does "
        "no harm to the posterior."
    )
    if "usable" in found.attrs:
        return (
            text
            + " At this noise every maximum of the likelihood ignores as many; with less noise, more would be used."
        )
    return (
        text
        + " One fit cannot tell if another decoder would use more: compare with a warm-up, free bits or other seeds."
    )


def _unclear(found: xr.Dataset, units: np.ndarray, chosen: np.ndarray) -> str:
    use = found.use.values[chosen]
    if np.isnan(use).all():
        return (
            f"{_names(units)} {_has(len(units))} collapsed, by the model or by the guide: this cannot be told, as the guide "
            "has no density of the unit by itself, or as others were looked at in its place."
        )
    return (
        f"{_names(units)} {_has(len(units))} collapsed, and the decoder uses {_them(len(units))}: given the other latents, the "
        f"posterior differs from the guide by up to {np.nanmax(use):.2g} nats. But no change of q at one unit alone is seen to "
        "raise the ELBO, so that the guide need not be at fault. Compare with a guide whose latents depend on each other."
    )


def _names(units: Sequence[str] | np.ndarray) -> str:
    listed = [str(unit) for unit in units]
    some = listed if len(listed) <= 8 else [*listed[:7], f"{len(listed) - 7} more"]
    return some[0] if len(some) == 1 else f"{', '.join(some[:-1])} and {some[-1]}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _has(number: int) -> str:
    return "has" if number == 1 else "have"


def _them(number: int) -> str:
    return "it" if number == 1 else "them"
