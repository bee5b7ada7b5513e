"""Tables of comparisons and audits, and the conclusions that the numbers of a comparison support.

Those of several guides are in `pyro_vi.reporting.guides`.
"""

import math
from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
import xarray as xr
from rich.table import Table
from torch import Tensor

from pyro_vi.auditing import advise
from pyro_vi.comparing import Comparison, Result, Spread, spread_of, standings
from pyro_vi.elbo import ELBO
from pyro_vi.reporting import cells
from pyro_vi.reporting.guides import conclude_guides, guide_table
from pyro_vi.reporting.sentences import ranked, remarks

CERTAIN = 2.0
"""Number of standard errors beyond which a difference is reported."""


def table(comparison: Comparison) -> Table:
    """Return the table of a comparison, with values in nats per datum: one row per quantity and one column per estimator; or
    one row per guide and one column per quantity."""
    if comparison.across == "guides":
        return guide_table(comparison)
    results, on, data = comparison.results, comparison.on, comparison.data
    seeds = (
        f"seed {comparison.seed}" if not comparison.repeats else f"seeds {comparison.seed} to {comparison.seeds[-1]}"
    )
    shown = Table(
        title=f"{comparison.model} with guide {comparison.guide} on {data.spec.name} "
        f"({data.spec.num_data} training data, {len(data.heldout[0])} held out, {seeds})",
        caption=_caption(comparison),
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("")
    for name in results:
        shown.add_column(name, justify="right")

    def row(
        label: str, cell: Callable[[str, Result], str], read: Callable[[Result], float | None] | None = None
    ) -> None:
        if comparison.repeats and read is not None:
            shown.add_row(label, *(cells.over_seeds(spread_of(comparison, name, read)) for name in results))
        else:
            shown.add_row(label, *(cell(name, result) for name, result in results.items()))

    row("Pyro class", lambda name, result: result.cls)
    row("KL", lambda name, result: _sources(result))
    shown.add_section()
    points = any(result.objective != ELBO for result in results.values())
    if points:
        row(
            f"{on} log p(x, z) (MAP)",
            lambda name, result: cells.mean(result.evaluation.log_joint),
            lambda result: _number(result.evaluation.log_joint),
        )
    if not all(result.objective != ELBO for result in results.values()):
        row(
            f"{on} ELBO",
            lambda name, result: cells.mean(result.evaluation.elbo_per_datum),
            lambda result: result.elbo_mean,
        )
        if not all(result.evaluation.kl.isnan().all() for result in results.values()):
            row(
                "  reconstruction",
                lambda name, result: cells.mean(result.evaluation.reconstruction, error=False),
                lambda result: _number(result.evaluation.reconstruction),
            )
            row(
                "  KL",
                lambda name, result: cells.mean(result.evaluation.kl, error=False),
                lambda result: _number(result.evaluation.kl),
            )
    if any(result.lpd is not None for result in results.values()):
        row(
            "held-out log predictive density",
            lambda name, result: cells.mean(result.lpd),
            lambda result: _number(result.lpd),
        )
    row(f"evidence{_method(results)}", lambda name, result: cells.evidence(result), _evidence_value)
    row(
        "gap (evidence - ELBO)",
        lambda name, result: "-" if result.gap is None else f"{result.gap:.2f}",
        lambda result: result.gap,
    )
    if comparison.audits:
        shown.add_section()
        for part in ("guide", "model"):
            for when, which in (("start", 0), ("end", -1)):
                found = (_variance(comparison, part, which, name) for name in results)
                shown.add_row(f"gradient variance, {part}, {when}", *found)
    shown.add_section()
    row("ms per step", lambda name, result: f"{_milliseconds(result):.2f}", _milliseconds)
    return shown


def conclude(comparison: Comparison) -> list[str]:
    """Return the conclusions that the numbers support, as sentences; a difference within its error is reported as none."""
    if comparison.across == "guides":
        return conclude_guides(comparison)
    sentences = _heldout(comparison) if len(comparison.results) > 1 else []
    if comparison.audits and len(comparison.results) > 1:
        sentences.append(_gradients(comparison))
        first, *_, last = (*comparison.audits, *comparison.audits)
        for stage, step in (("early", first), ("at the end", last)):
            sentences += [advice.text for advice in advise(comparison.audits[step], stage=stage)]
    return sentences + remarks(comparison)


def audit_table(audit: xr.Dataset, title: str) -> Table:
    """Return the table of an audit: one row per estimator; gradients of the bound per datum, at equal parameters and draws."""
    shown = Table(
        title=f"{title}: {audit.attrs['draws']} draws, batch of {audit.attrs['batch_size']}",
        caption="Gradients of the bound per datum; ± one standard error. Work: variance × milliseconds. "
        "Bias: smallest adjusted p-value against the first unbiased estimator of the bound.",
        title_justify="left",
        caption_justify="left",
    )
    for column in ("estimator", "bound", "value", "sd", "gradient variance", "SNR", "work", "ms", "MB", "bias"):
        shown.add_column(column, justify="left" if column in ("estimator", "bound") else "right")
    for part in ("guide", "model"):
        if part not in audit.owner.values:
            continue
        shown.add_row(f"[bold]{part} parameters[/bold]")
        for name in audit.elbo.values:
            one = audit.sel(elbo=name)
            here = one.sel(part=part)
            shown.add_row(
                f"  {name}",
                str(one.target.values),
                f"{float(one.value_mean):.2f}",
                f"{float(one.value_sd):.2g}",
                f"{float(here.part_grad_var):.3g} ± {float(here.part_grad_var_se):.1g}",
                f"{float(here.part_grad_snr):.2g}",
                f"{1000 * float(here.part_work_var):.2g}",
                f"{1000 * float(one.seconds):.2f}",
                f"{float(one.peak_bytes) / 2**20:.2g}",
                _bias(one.bias_p.values[one.owner.values == part]),
            )
        shown.add_section()
    for site in audit.site.values:
        sources = {str(source) for source in audit.kl_source.sel(site=site).values}
        for source in sorted(sources):
            names = [str(n) for n in audit.elbo.values if str(audit.kl_source.sel(site=site, elbo=n).values) == source]
            shown.caption = f"{shown.caption}\nKL of {site}: {source} under {', '.join(names)}."
    if audit.sizes["site"] > 1:
        for name in audit.elbo.values:
            shares = _shares(audit.sel(elbo=name, part="guide"))
            line = f"Share of the guide's gradient variance due to each site's draws, {name}: {shares}."
            shown.caption = f"{shown.caption}\n{line}"
    return shown


def _caption(comparison: Comparison) -> str:
    if comparison.repeats:
        return f"Nats per datum, ± one standard error over {len(comparison.seeds)} seeds."
    rows = int(next(iter(comparison.results.values())).evaluation.kl.numel())
    what = "the held-out data" if comparison.on == "held-out" else "training data"
    if rows < 2:
        return f"Values: nats per datum of {what}."
    count = "" if comparison.on == "held-out" else f"{rows} "
    return f"{comparison.on.capitalize()} rows: nats per datum, ± one standard error over {count or ''}{what}."


def _number(values: Tensor | None) -> float | None:
    return None if values is None else float(values.mean())


def _evidence_value(result: Result) -> float | None:
    return None if result.evidence is None else float(result.evidence.attrs["value"])


def _milliseconds(result: Result) -> float:
    return 1000 * result.run.seconds / result.run.steps


def _sources(result: Result) -> str:
    kinds = {source.split(" ")[0] for source in result.kl_source.values()}
    if len(kinds) == 1:
        return kinds.pop()
    return ", ".join(f"{site}: {source.split(' ')[0]}" for site, source in result.kl_source.items())


def _method(results: Mapping[str, Result]) -> str:
    for result in results.values():
        if result.evidence is not None:
            attrs = result.evidence.attrs
            return " (exact)" if attrs["method"] != "iw" else f" (importance, K = {attrs['particles']})"
    return ""


def _variance(comparison: Comparison, part: str, which: int, name: str) -> str:
    """The gradient variance at the first or the last audit, with its error: over draws, or over seeds."""

    def read(one: Comparison, key: str) -> float:
        return float(one.audits[list(one.audits)[which]][key].sel(elbo=name, part=part))

    value, error = read(comparison, "part_grad_var"), read(comparison, "part_grad_var_se")
    if comparison.repeats:
        spread = Spread.of([read(one, "part_grad_var") for one in comparison.every if one.audits])
        value, error = spread.mean, spread.se
    return f"{value:.3g} ± {error:.1g}"


def _heldout(comparison: Comparison) -> list[str]:
    kinds = {"elbo": "ELBO", "lpd": "log predictive density", "evidence": "evidence"}
    found, bounds = standings(comparison, kinds), {result.target for result in comparison.results.values()}
    sentences = []
    for key, what in kinds.items():
        # A fit of another bound does not maximise the ELBO, so such fits are compared by their evidence too.
        if key not in found or (key == "evidence" and len(bounds) == 1):
            continue
        if any(not math.isnan(difference.se) for difference in found[key].differences.values()):
            on = "held-out" if key == "lpd" else ""
            sentences += ranked(found[key], what, comparison, on=on, caveat=key == "elbo")
    return sentences


def _gradients(comparison: Comparison) -> str:
    first, *_, last = (*comparison.audits, *comparison.audits)
    low, high = _extremes(comparison.audits[first], _of_one_bound(comparison))
    parts = []
    for part in ("guide", "model"):
        start, end = (_ratio(comparison.audits[step], part, high, low) for step in (first, last))
        parts.append(f"the {part}'s gradient variance under {high} is {start} at the start and {end} at the end")
    return f"Against {low}, " + ", ".join(parts) + "."


def _of_one_bound(comparison: Comparison) -> list[str]:
    """Estimators of the bound that most of them share; gradients of different bounds are not comparable."""
    targets = [result.target for result in comparison.results.values()]
    most = max(targets, key=targets.count)
    names = [name for name, result in comparison.results.items() if result.target == most]
    return names if len(names) > 1 else list(comparison.results)


def _extremes(audit: xr.Dataset, names: list[str]) -> tuple[str, str]:
    """The two estimators whose guide gradients differ most."""

    def variance(name: str) -> float:
        return float(audit.part_grad_var.sel(elbo=name, part="guide"))

    def spread(pair: tuple[str, str]) -> float:
        return abs(math.log(max(variance(pair[0]), 1e-300) / max(variance(pair[1]), 1e-300)))

    one, other = max(combinations(names, 2), key=spread)
    return (one, other) if variance(one) <= variance(other) else (other, one)


def _ratio(audit: xr.Dataset, part: str, above: str, below: str) -> str:
    (a, b), (da, db) = (
        [float(audit[key].sel(elbo=name, part=part)) for name in (above, below)]
        for key in ("part_grad_var", "part_grad_var_se")
    )
    if a == b:
        return "the same"
    if min(a, b) <= 0:
        return f"{a:.3g} (against {b:.3g})"
    error = math.hypot(da / a, db / b)
    if abs(math.log(a / b)) <= CERTAIN * error:
        return f"equal within error ({a / b:.2f} ± {a / b * error:.2f} times)"
    return f"{a / b:.3g} ± {a / b * error:.1g} times as large"


def _shares(one: xr.Dataset) -> str:
    whole = float(one.part_grad_var)
    parts = {str(site): float(one.site_var.sel(site=site)) for site in one.site.values}
    if not whole > 0 or any(math.isnan(part) for part in parts.values()):
        return "unknown, because the draws of the sites cannot be separated" if whole > 0 else "none"
    return ", ".join(f"{site} {100 * part / whole:.0f} %" for site, part in parts.items())


def _bias(p: np.ndarray) -> str:
    known = p[~np.isnan(p)]
    return "" if not len(known) else f"p = {known.min():.2g}" if known.min() < 0.05 else "none"
