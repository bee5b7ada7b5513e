"""Figures of measurements: training curves of the fits, the terms of their sites, and moments from the audits.

Each function takes a comparison and returns a figure.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pyro_vi.comparing import Comparison, Result
from pyro_vi.fitting import LATENT, OBSERVED
from pyro_vi.reporting.look import LOOK, heading, legend, looks

PARTS = ("model", "guide")
RANGES = "vertical ranges: 1 to 99 % of the values after the first quarter of the steps"


@matplotlib.rc_context(LOOK)
def training_curves(comparison: Comparison) -> Figure:
    """ELBO of each fit, on training and on held-out data, and its two parts, against the step.

    Where latents are shared by all data, the held-out curve is the log predictive density of held-out data. Where the guide is
    a point estimate, the first panel shows log p(x, z), as there is no ELBO.

    A pair without parameters, which is not fitted, is a level line, if it is near the curves; the legend has its number.

    The vertical ranges are those of the steps after the first quarter: with the first steps, all later ones would look flat.
    """
    records = [record for result in comparison.results.values() for record in result.run.history]
    predictive = any("heldout_lpd" in record for record in records)
    fitted = [result for result in comparison.results.values() if result.run.history]
    # Next to guides that have an ELBO, a point estimate has no curve.
    only_points = bool(fitted) and all("log_joint" in result.run.history[0] for result in fitted)
    objective = ("log_joint", "heldout_log_joint") if only_points else ("elbo", "heldout_elbo")
    panels = {
        "log p(x, z) (MAP: no ELBO)" if objective[0] == "log_joint" else "ELBO": (*objective, "heldout_lpd"),
        "reconstruction": ("reconstruction",),
        "KL": ("kl",),
    }
    styles = looks(comparison.results)
    figure, drawn = Figure(figsize=(10.5, 3.9), layout="constrained"), set[str]()
    for axes, (title, keys) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        late: list[np.ndarray] = []
        levels = []
        for name, result in comparison.results.items():
            level = _level(result, keys[0])
            if level is not None:
                line = "--" if comparison.on == "held-out" and len(keys) > 1 else "-"
                axes.axhline(
                    level, color=styles[name].colour, linestyle=line, linewidth=1.0, label=f"{name}, {keys[0]}"
                )
                levels.append(level)
                drawn.add(name)
            for key in keys:
                steps, values = _series(result.run.history, key)
                if not len(steps):
                    continue
                heldout, width = key.startswith("heldout"), styles[name].width
                axes.plot(
                    steps,
                    values,
                    color=styles[name].colour,
                    linestyle="--" if heldout else "-",
                    linewidth=max(1.4, width) if heldout else max(0.9, 0.6 * width),
                    alpha=0.55 if len(keys) > 1 and not heldout else 0.9,  # the training ELBO is noisier
                    marker=styles[name].marker if len(steps) < 25 else "",
                    markersize=3.5,
                    zorder=3 if heldout else 2,
                    label=f"{name}, {key}",
                )
                late.append(values[steps >= steps.max() / 4])
                drawn.add(name)
        if late or levels:
            values = np.concatenate(late) if late else np.array(levels)
            low, high = np.quantile(values, (0.01, 0.99))
            near = [level for level in levels if abs(level - (low + high) / 2) <= 1.5 * (high - low)]
            _limit(axes, np.concatenate([values, np.repeat(near, len(values))]))
        else:
            reason = (
                "a point estimate has no KL" if objective[0] == "log_joint" else "does not split: sites are summed out"
            )
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", fontsize=8, color="0.3")
        axes.set(title=title, xlabel="step", ylabel="nats per datum")
    fixed = {name: _level(result, "elbo") for name, result in comparison.results.items()}
    entries = {
        name if fixed[name] is None else f"{name} ({fixed[name]:.2f}, not fitted)": Line2D(
            [], [], color=look.colour, linewidth=2
        )
        for name, look in styles.items()
        if name in drawn
    }
    entries |= {
        text: Line2D([], [], color="0.3", linestyle=line)
        for text, line in (
            ("training", "-"),
            ("log predictive density, held out" if predictive else "held out", "--"),
        )
        if line == "-" or comparison.data.num_heldout
    }
    legend(figure, entries)
    heading(figure, comparison, f"Training ({RANGES})", drawn)
    return figure


@matplotlib.rc_context(LOOK)
def terms_by_site(comparison: Comparison) -> Figure:
    """Terms of the training ELBO by site, against the step: E_q log p of observed sites, and the KL of latent ones.

    Each fit has two panels. Their vertical ranges are those of the steps after the first quarter.
    """
    fits = {name: result.run.history for name, result in comparison.results.items() if sites_in(result.run.history)}
    figure = Figure(figsize=(10.5, 1.2 + 2.7 * len(fits)), layout="constrained")
    rows = figure.subplots(len(fits), 2, squeeze=False)
    columns = list(dict.fromkeys(key for history in fits.values() for key in sites_in(history)))
    colours = {
        key: matplotlib.colormaps["tab10" if len(columns) <= 10 else "tab20"](i % 20) for i, key in enumerate(columns)
    }
    for (name, history), pair in zip(fits.items(), rows, strict=True):
        for axes, start, what in zip(pair, (OBSERVED, LATENT), ("E log p of observed sites", "KL"), strict=True):
            late: list[np.ndarray] = [np.zeros(0)]
            for key in (key for key in sites_in(history) if key.startswith(start)):
                steps, values = _series(history, key)
                if len(steps):
                    axes.plot(steps, values, color=colours[key], linewidth=1.2, label=key)
                    late.append(values[steps >= steps.max() / 4])
            _limit(axes, np.concatenate(late))
            axes.set(xlabel="step", ylabel="nats per datum")
            axes.set_title(f"{name}: {what}", parse_math=False)
    legend(figure)
    heading(figure, comparison, f"Terms of the training ELBO by site ({RANGES})", fits)
    return figure


def sites_in(history: Sequence[dict[str, Any]]) -> list[str]:
    """Return the columns of sites in the records of a fit, in their order."""
    return list(dict.fromkeys(key for record in history for key in record if key.startswith((OBSERVED, LATENT))))


def has_several_sites(comparison: Comparison) -> bool:
    """True if a fit has more than one observed site, or more than one latent site."""
    found = [sites_in(result.run.history) for result in comparison.results.values()]
    return any(sum(key.startswith(start) for key in keys) > 1 for keys in found for start in (OBSERVED, LATENT))


@matplotlib.rc_context(LOOK)
def gradient_variance(comparison: Comparison) -> Figure:
    """Gradient variance at each audit, by estimator and owner of the parameters, with ±2 standard errors, logarithmic.

    All estimators are audited at the same parameters. Points of one step are side by side, so that equal ones are visible.
    """
    steps, names = list(comparison.audits), _audited(comparison)
    styles = looks(names)
    figure = Figure(figsize=(8.2, 4.1), layout="constrained")
    for axes, part in zip(figure.subplots(1, 2), PARTS, strict=True):
        zero = []
        for i, name in enumerate(names):
            variance = _moment(comparison, "part_grad_var", name, part)
            error = _moment(comparison, "part_grad_var_se", name, part)
            shown = np.where(variance > 0, variance, np.nan)  # a logarithmic axis cannot show 0: a note says so
            place = np.arange(len(steps)) + 0.09 * (i - (len(names) - 1) / 2)
            look = styles[name]
            axes.errorbar(
                place,
                shown,
                yerr=2 * error,
                color=look.colour,
                marker=look.marker,
                capsize=2,
                linewidth=0.8,
                label=name,
            )
            if not (variance > 0).all():
                zero.append(name)
        _logarithmic(axes, zero, len(names), y=True)
        # Audits are equally spaced, because their steps may be much closer together at the start than later.
        axes.set_xticks(range(len(steps)), [str(step) for step in steps])
        axes.set_xlim(-0.5, len(steps) - 0.5)
        axes.set(title=f"{part} parameters", xlabel="step of the audit")
        axes.set_ylabel(
            "gradient variance, summed over parameters\n(of the ELBO in nats per datum)" if part == PARTS[0] else ""
        )
    legend(figure)
    heading(figure, comparison, "Gradient variance at the same parameters (bars: ±2 standard errors)")
    return figure


@matplotlib.rc_context(LOOK)
def value_against_gradient(comparison: Comparison) -> Figure:
    """Standard deviation of the ELBO's value against that of its gradient, one point per estimator and audit.

    A small standard deviation of the value does not imply a small one of the gradient.
    """
    steps, names = list(comparison.audits), _audited(comparison)
    styles = looks(names)
    figure = Figure(figsize=(8.2, 4.3), layout="constrained")
    for axes, part in zip(figure.subplots(1, 2, sharex=True), PARTS, strict=True):
        zero = []
        for name in names:
            value = _moment(comparison, "value_sd", name)
            gradient = np.sqrt(_moment(comparison, "part_grad_var", name, part))
            kept = (value > 0) & (gradient > 0)
            look = styles[name]
            x, y = np.where(kept, value, np.nan), np.where(kept, gradient, np.nan)
            axes.plot(x, y, color=look.colour, marker=look.marker, linewidth=0.8, label=name)
            # Of two close points the upper one is labelled above and the lower one below, so that labels do not overlap.
            logs = np.log([x, y])
            apart = np.abs(logs[:, :, None] - logs[:, None]).sum(0) + np.diag(np.full(len(x), np.inf))
            nearest = y[np.nan_to_num(apart, nan=np.inf).argmin(1)]
            # With many estimators only the first and the last audit are labelled, which shows the direction.
            labelled = range(len(steps)) if len(names) <= 3 else {0, len(steps) - 1}
            for k in (k for k in labelled if kept[k]):
                place = (5, 4 if y[k] >= nearest[k] else -11)
                axes.annotate(
                    str(steps[k]), (x[k], y[k]), place, textcoords="offset points", fontsize=8, color=look.colour
                )
            if not kept.all():
                zero.append(name)
        axes.margins(0.12)
        _logarithmic(axes, zero, len(names), x=True, y=True)
        axes.set(title=f"{part} parameters", xlabel="sd of the value (nats per datum)")
        axes.set_ylabel(
            "sd of the gradient: √ of the summed variance\n(of the ELBO in nats per datum)" if part == PARTS[0] else ""
        )
    legend(figure)
    heading(figure, comparison, "Spread of the value against spread of the gradient (numbers: step of the audit)")
    return figure


def _level(result: Result, key: str) -> float | None:
    """The value of a pair that was not fitted; None for others, or if it has none."""
    evaluation = result.evaluation
    parts = {"elbo": evaluation.elbo_per_datum, "reconstruction": evaluation.reconstruction, "kl": evaluation.kl}
    if result.run.steps or key not in parts or bool(parts[key].isnan().any()):
        return None
    return float(parts[key].mean())


def _series(history: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records in which ``key`` has a finite value."""
    found = [(r["step"], r[key]) for r in history if r.get(key) is not None and np.isfinite(r[key])]
    steps, values = np.array(found, dtype=float).reshape(-1, 2).T
    return steps, values


def _limit(axes: Axes, values: np.ndarray) -> None:
    if len(values):
        low, high = np.quantile(values, (0.01, 0.99))
        margin = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)


def _audited(comparison: Comparison) -> list[str]:
    # Fitted estimators come first, so that colours are the same in every figure.
    found = dict.fromkeys(str(name) for audit in comparison.audits.values() for name in audit.elbo.values)
    return [*(n for n in comparison.results if n in found), *(n for n in found if n not in comparison.results)]


def _moment(comparison: Comparison, variable: str, name: str, part: str | None = None) -> np.ndarray:
    """Values of a variable for one estimator, one for each audit."""
    where = {"elbo": name} if part is None else {"elbo": name, "part": part}
    return np.array([float(audit[variable].sel(where)) for audit in comparison.audits.values()])


def _logarithmic(axes: Axes, zero: Sequence[str], names: int, x: bool = False, y: bool = False) -> None:
    """Make axes logarithmic, with readable labels also within a decade; note the estimators whose value is 0."""
    if zero:
        text = "0 for all estimators" if len(zero) == names else f"0 at a step, not shown: {', '.join(zero)}"
        axes.text(
            0.5,
            0.5 if len(zero) == names else 0.02,
            text,
            transform=axes.transAxes,
            ha="center",
            fontsize=8,
            color="0.3",
            parse_math=False,
        )
    if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        axes.set_yticks([])
        return
    for wanted, name in ((x, "x"), (y, "y")):
        if not wanted:
            continue
        axes.set(**{f"{name}scale": "log"})
        axis: Axis = getattr(axes, f"{name}axis")
        low, high = axis.get_view_interval()
        if high / low < 100:  # powers of ten alone would leave one label or none
            axis.set_major_locator(
                LogLocator(subs=(1, 2, 5)) if high / low > 4 else MaxNLocator(5, steps=[1, 2, 5, 10])
            )
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
