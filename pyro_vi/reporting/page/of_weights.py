"""Tables and pictures of what rests on importance weights: evidence, k-hat and corrected moments.

* `evidence`, `reliability` and `moments` take the datasets by name of their rows, as those of `of_diagnostics` do.
"""

from typing import Any

import numpy as np
import xarray as xr

from pyro_vi.diagnostics import UNRELIABLE
from pyro_vi.reporting.page import drawing
from pyro_vi.reporting.page.parts import Shown, Table
from pyro_vi.reporting.page.subject import Subject
from pyro_vi.reporting.page.tabulating import WORST, Found, Shows, by_dimension, of_numbers, plain, scalars

FEATURES = 8
"""Most numbers of a datum in a table."""


def evidence(found: Found, subject: Subject) -> tuple[list[Table], list[Shown]]:
    """Bound, evidence and their difference, and what the draws are worth."""
    shows = Shows()
    for rows, one in found.items():
        per = "for the whole data set, divided by the number of data" if one.attrs.get("per") == "data set" else "mean"
        numbers: dict[str, tuple[str, float, float]] = {}
        bound = subject.bounds.get(rows)
        if bound is not None:
            numbers |= {
                "elbo": ("ELBO", bound.elbo_mean, bound.elbo_se),
                "reconstruction": ("  reconstruction", float(bound.reconstruction.mean()), np.nan),
                "kl": ("  KL", float(bound.kl.mean()), np.nan),
            }
        value, error = float(one.attrs.get("value", np.nan)), float(one.attrs.get("se", np.nan))
        numbers["log_evidence"] = (f"evidence, log p(x): {per}", value, error)
        if bound is not None:
            numbers["gap"] = ("gap (evidence − ELBO)", value - bound.elbo_mean, _paired(one, bound))
        numbers = {name: row for name, row in numbers.items() if np.isfinite(row[1])}
        method = {"exact": "exact", "enum": "exact, by enumeration", "iw": "importance sampling"}
        how = method.get(str(one.attrs.get("method")), str(one.attrs.get("method", "")))
        shows.add(of_numbers(numbers, f"Bound and evidence of the {rows} rows; evidence: {how}"))
        if "ess" in one and np.isfinite(one.ess.values).any():
            least = one.ess.values.reshape(-1)
            draws = {"ess": ("effective draws, median", float(np.nanmedian(least)), np.nan)}
            draws["ess_least"] = ("effective draws, fewest", float(np.nanmin(least)), np.nan)
            if "mc_se" in one:
                draws["mc_se"] = ("Monte Carlo error of a datum, largest", float(np.nanmax(one.mc_se.values)), np.nan)
            shows.add(of_numbers(draws, f"Importance draws of the {rows} rows", unit="value"))
        others = {
            name: row for name, row in scalars(one).items() if name not in ("log_evidence", "mc_se", "ess", "khat")
        }
        if others:
            shows.add(of_numbers(others, f"Further numbers of the {rows} rows", unit="value"))
    return shows.both()


def _paired(found: xr.Dataset, bound: Any) -> float:
    """Standard error of the mean gap: its two parts are of the same data, so that their differences are taken first."""
    elbo = bound.elbo_per_datum.double().cpu().numpy()
    values = found.log_evidence.values
    if values.shape != elbo.shape or len(elbo) < 2:
        return float("nan")
    return float((values - elbo).std(ddof=1) / len(elbo) ** 0.5)


def reliability(found: Found, subject: Subject) -> tuple[list[Table], list[Shown]]:
    """k-hat of each datum, and the data with the largest ones."""
    shows = Shows()
    for rows, one in found.items():
        rest = scalars(one)
        shows.add(of_numbers(rest, "Latents that all data share", unit="value") if rest else None)
        for dimension in ("site", "shared_site"):
            shows.add(by_dimension(one, dimension, "k-hat by site") if dimension in one.dims else None)
        if "khat" not in one or one.khat.dims != ("datum",):
            continue
        khat = one.khat.values.astype(float)
        error = one["khat_se"].values.astype(float) if "khat_se" in one else None
        known = np.isfinite(khat)
        caption = (
            f"k-hat of {int(known.sum())} {rows} data, the largest first; broken line: {UNRELIABLE}, dotted line: 0.5"
        )
        above = int((khat[known] > UNRELIABLE).sum())
        alt = f"k-hat of {int(known.sum())} data in falling order; {above} are above {UNRELIABLE}"
        if known.any():
            alt += f", the largest is {khat[known].max():.2f}, the median {np.median(khat[known]):.2f}"
            shows.pictures.append(drawing.shown(drawing.khat_by_datum(khat, error), caption, alt))
        order = np.argsort(-np.where(np.isnan(khat), -np.inf, khat))
        order = order[: int(known.sum())]
        places = one["datum"].values if "datum" in one.coords else np.arange(len(khat))
        labels = subject.numbers_of(rows, places)
        names = list(dict.fromkeys(name for name in ("khat", "ess", *map(str, one.data_vars)) if name in one))
        table = by_dimension(
            one,
            "datum",
            f"The {rows} data with the largest k-hat, by their numbers in {subject.counted.get(rows, rows)}",
            order=order.tolist(),
            labels=labels,
            most=WORST,
            columns=names,
        )
        shows.add(table)
        worst = order[:WORST]
        texts = [f"row {labels[place]}: {khat[place]:.2f}" for place in worst]
        picture, rows_table = subject.data_shown(
            rows, places[worst], [labels[place] for place in worst], texts, FEATURES
        )
        shows.pictures += [picture] if picture is not None else []
        shows.add(rows_table)
    return shows.both()


def moments(found: Found, subject: Subject) -> tuple[list[Table], list[Shown]]:
    """The guide's moments beside the corrected ones: of shared latents each, of those of the data how far they are off."""
    shows = Shows()
    for rows, one in found.items():
        for prefix in ("", "shared_"):
            dimension = f"{prefix}number"
            if dimension not in one.dims:
                continue
            inner = {str(n): v for n, v in one.data_vars.items() if str(n).startswith(prefix) and dimension in v.dims}
            flat = one[list(inner)]
            if "datum" in flat.dims:  # a root mean square over data says how far the guide is off; a mean would cancel
                known = one.get("trusted")
                flat = _typical(flat if known is None else flat.where(known))
            caption = "The guide's moments beside those corrected by importance weights"
            shows.add(by_dimension(flat, dimension, caption + (f", {rows} data" if not prefix else ", shared latents")))
    if not shows.tables:
        return plain(found, subject)
    return shows.both()


def _typical(found: xr.Dataset) -> xr.Dataset:
    """Shift and ratio over data: the root mean square of the shift, and the geometric mean of the ratio."""
    columns = {}
    if "shift" in found:
        shift = np.abs(found["shift"].transpose("datum", ...).values)
        columns["typical_shift_in_sd"] = np.sqrt(np.nanmean(shift**2, 0))
        columns["largest_shift_in_sd"] = np.nanmax(shift, 0)
    if "ratio" in found:
        ratio = found["ratio"].transpose("datum", ...).values
        columns["sd_corrected_by_sd_of_guide"] = np.exp(np.nanmean(np.log(ratio), 0))
    rest = [dim for dim in found.dims if dim != "datum"]
    return xr.Dataset({name: (rest, values) for name, values in columns.items()}, {dim: found[dim] for dim in rest})
