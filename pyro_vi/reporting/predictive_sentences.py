"""Sentences and a verdict for the numbers of `pyro_vi.reporting.predicting`."""

import math

import numpy as np
import xarray as xr

FAR, LARGE = 5, 0.5
"""Distance of an observed quantity from the replicated ones, in their standard deviations, and its size, as in ``effect``, at
which the model does not fit at all."""


def conclude(found: xr.Dataset) -> tuple[str, list[str]]:
    """Return the verdict and the sentences for a dataset of `predictive`.

    ``"fail"``: an observed quantity is far from what the model generates, and the difference is large. ``"care"``: an adjusted
    p-value is below .05, or LOO cannot be trusted at some data. Else ``"pass"``.
    """
    low = found.p_adjusted.values < 0.05
    distance = np.abs(found.observed - found.replicated).values / np.maximum(found.spread.values, 1e-300)
    sentences = [*_quantities(found, low), *_coverage(found), *_leave_one_out(found)]
    if (low & (distance > FAR) & (found.effect.values > LARGE)).any():
        return "fail", sentences
    heavy = float(np.nansum(found.share_khat.values)) > 0
    return ("care" if low.any() or heavy else "pass"), sentences


def _quantities(found: xr.Dataset, low: np.ndarray) -> list[str]:
    sentences = []
    kinds = [str(kind) for kind in found.replication.values]
    count = found.p.size
    for j, kind in enumerate(kinds):
        of = (
            f"In {found.attrs['draws']} draws of the same data from the fitted model"
            if kind == "same"
            else "In draws of new data from the model, with their latents from the prior"
        )
        rows = [int(i) for i in np.flatnonzero(low[:, j])]
        rows = sorted(rows, key=lambda i: float(found.p_adjusted.values[i, j]))[:5]
        if not rows:
            sentences.append(
                f"{of}, none of {len(low)} test quantities differs from the observed one (p-values, two-sided and adjusted for "
                f"{count} of them, are at least {float(found.p_adjusted.values[:, j].min()):.2g})."
            )
            continue
        shown = "; ".join(
            f"{found['quantity'].values[i]} is {float(found.observed.values[i, j]):.4g} in the data and "
            f"{float(found.replicated.values[i, j]):.4g} ± {float(found.spread.values[i, j]):.2g} in the draws "
            f"(p = {float(found.p.values[i, j]):.3g} ± {float(found.p_se.values[i, j]):.1g})"
            for i in rows
        )
        sentences.append(
            f"{of}, {int(low[:, j].sum())} of {len(low)} test quantities differ from the observed ones: {shown}. The model "
            "does not generate such data: do not use it for predictions that depend on these."
        )
    if kinds == ["same"] or not low[:, 0].any():
        sentences.append(
            "P-values of draws of the same data are conservative, as the latents have seen the data: small ones show a misfit, "
            "others do not show a fit."
        )
    return sentences


def _coverage(found: xr.Dataset) -> list[str]:
    sentences = []
    j = len(found.replication) - 1
    what = "new data" if str(found.replication.values[j]) == "new" else "the same data"
    for i, site in enumerate(found.site.values):
        value, error = (float(found[key].values[i, j, 2]) for key in ("coverage", "coverage_se"))
        if math.isfinite(value):
            sentences.append(
                f"Central 90 % intervals of draws of {what} hold {value:.1%} ± {error:.1%} of the observed numbers of '{site}'."
            )
    return sentences


def _leave_one_out(found: xr.Dataset) -> list[str]:
    sentences = []
    for i, site in enumerate(found.site.values):
        elpd, error = float(found.elpd_loo.values[i]), float(found.elpd_loo_se.values[i])
        if not math.isfinite(elpd):
            continue
        share, largest = float(found.share_khat.values[i]), float(found.largest_khat.values[i])
        text = (
            f"The expected log predictive density of '{site}' by leave-one-out cross-validation is {elpd:.2f} ± {error:.2f} "
            f"nats for all data, with {float(found.p_loo.values[i]):.1f} effective parameters."
        )
        text += (
            f" Its k-hat is too large at {share:.0%} of the data (up to {largest:.2f}), so that the number cannot be "
            "trusted: use a guide nearer to the posterior, or fit again without these data."
            if share > 0
            else f" Its k-hat is below ArviZ's threshold at all data (largest {largest:.2f})."
        )
        sentences.append(text)
    if not sentences:
        sentences.append(f"Leave-one-out cross-validation: {found.attrs['loo']}.")
        value, error = float(found.log_evidence), float(found.log_evidence_se)
        if math.isfinite(value):
            sentences.append(f"The mean of log p(x) over these data is {value:.3f} ± {error:.3f} nats per datum.")
    return sentences
