"""A section for each diagnostic, from its dataset; or one that says in a line why there is none.

* `DIAGNOSTICS` has all of them, in reading order, and `section_of` makes one.

Each section shows the verdict and the sentences of its dataset as they are, and its numbers as tables with their errors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pyro_vi.errors import InputError, kind_and_line
from pyro_vi.reporting.page import drawing
from pyro_vi.reporting.page.glossary import term_of, title_of
from pyro_vi.reporting.page.of_weights import evidence, moments, reliability
from pyro_vi.reporting.page.parts import Cell, Column, Section, Shown, Table, Verdict
from pyro_vi.reporting.page.subject import Subject
from pyro_vi.reporting.page.tabulating import Found, Shows, by_dimension, plain
from pyro_vi.reporting.plots_of_calibration import plot_calibration
from pyro_vi.reporting.plots_of_collapse import plot_collapse

Draw = Callable[[Found], Mapping[str, Figure]]
"""Draws figures of a diagnostic's datasets, by their captions."""


@dataclass(frozen=True)
class Failed:
    """Why a diagnostic has no numbers.

    Example:
        >>> Failed.by(InputError("the guide is a point estimate")).line, Failed.by(ZeroDivisionError("0")).line
        ('Not applicable: the guide is a point estimate.', 'Not computed, because of an error: ZeroDivisionError: 0.')
    """

    line: str

    @classmethod
    def by(cls, error: Exception) -> "Failed":
        """The reason that an exception gives."""
        said = str(error).strip() if isinstance(error, InputError) else kind_and_line(error)
        start = "Not applicable" if isinstance(error, InputError) else "Not computed, because of an error"
        return cls(f"{start}: {said.rstrip('.')}.")


@dataclass(frozen=True)
class Diagnostic:
    """A diagnostic as the page shows it.

    Attributes:
        title: the heading.
        shows: makes tables and pictures from the datasets by name of their rows, such as ``"held-out"``.
        draws: makes figures of the datasets, by their captions; None if there are none.
        alt: what they show, in words; their numbers follow, if there are any.
    """

    title: str
    shows: Callable[[Found, Subject], tuple[list[Table], list[Shown]]]
    draws: Draw | None = None
    alt: str = ""


def section_of(name: str, found: Found | Failed | None, subject: Subject, draw: Draw | None = None) -> Section:
    """Return the section of a diagnostic.

    Args:
        name: its name, a key of `DIAGNOSTICS`.
        found: its datasets by name of their rows; or why there are none.
        subject: what the page is about.
        draw: makes figures of the datasets by their captions, in the place of the diagnostic's own; if it fails, there is none.
    """
    one = DIAGNOSTICS[name]
    if found is None or not found:
        found = Failed("Not computed.")
    if isinstance(found, Failed):
        return Section(name, one.title, "none", absent=found.line)
    try:
        tables, pictures = one.shows(found, subject)
        absent = ""
    except Exception as error:  # a table is never a reason to lose the page
        tables, pictures, absent = [], [], f"The tables could not be made: {kind_and_line(error)}."
    draw = draw or one.draws
    if draw is not None and any(dataset.attrs.get("verdict") != "none" for dataset in found.values()):
        try:
            alt = _alt(one, found)
            drawn = [drawing.shown(figure, said, f"{said}. {alt}") for said, figure in draw(found).items()]
            pictures[:0] = drawn
        except Exception as error:
            absent = absent or f"The picture could not be drawn: {kind_and_line(error)}."
    verdicts = [str(dataset.attrs.get("verdict", "none")) for dataset in found.values()]
    sentences = []
    for rows, dataset in found.items():
        said = dataset.attrs.get("sentences", [])
        begin = f"On {rows} rows: " if len(found) > 1 else ""
        sentences += [begin + str(line) for line in ([said] if isinstance(said, str) else said)]
    return Section(
        name,
        one.title,
        _worst(verdicts),
        tuple(dict.fromkeys(sentences)),
        tuple(tables),
        tuple(pictures),
        notes=tuple(dict.fromkeys(_rests(rows, dataset, subject) for rows, dataset in found.items())),
        absent=absent,
    )


def _worst(verdicts: list[str]) -> Verdict:
    grave: dict[str, Verdict] = {"fail": "fail", "care": "care", "pass": "pass"}
    return next((grave[verdict] for verdict in grave if verdict in verdicts), "none")


def _rests(rows: str, found: xr.Dataset, subject: Subject) -> str:
    """On what the numbers rest: rows, draws, simulations, the seed and the time."""
    words = {
        "draws": "draws for each",
        "particles": "draws for each",
        "simulations": "simulations",
        "starts": "starts",
    }
    parts: dict[str, str] = {}
    for key, word in words.items():
        count = found.attrs.get(key)
        if isinstance(count, (int, np.integer)) and int(count) > 0:
            parts.setdefault(word, f"{int(count):,} {word}")
    said = [*parts.values()]
    if "seed" in found.attrs:
        said.append(f"seed {found.attrs['seed']}")
    if "seconds" in found.attrs:
        said.append(f"{float(found.attrs['seconds']):.1f} s")
    which = found.attrs.get("rests_on") or subject.rows_in_words.get(rows, f"{rows} data")
    own = subject.numbers.get(rows)
    counted = own is not None and ("rests_on" in found.attrs or not np.array_equal(own, np.arange(len(own))))
    within = " Sentences count rows within these, from 0; tables give the numbers in the data." if counted else ""
    return f"Rests on {which}" + (f": {', '.join(said)}." if said else ".") + within


def _gap_parts(found: Found) -> dict[str, dict[str, tuple[float, float]]]:
    """The parts of the gap of the guide's own family, each with its error, by name of the rows."""
    bars = {}
    for rows, one in found.items():
        parts = {"amortization": _mean(one, "amortization"), "approximation": _mean(one, "approximation")}
        if all(np.isfinite(value) for value, _ in parts.values()):
            bars[rows] = parts
    return bars


def _mean(found: xr.Dataset, name: str) -> tuple[float, float]:
    """A mean over the data with its error; of several families, that of the guide's own."""
    if f"mean_{name}" not in found:
        return float("nan"), float("nan")
    pair = found[f"mean_{name}"], found[f"mean_{name}_se"]
    if "family" in pair[0].dims:
        if found.attrs.get("own") not in found["family"].values:
            return float("nan"), float("nan")
        pair = pair[0].sel(family=found.attrs["own"]), pair[1].sel(family=found.attrs["own"])
    return float(pair[0]), float(pair[1])


def _gap_figure(found: Found) -> dict[str, Figure]:
    parts = _gap_parts(found) or {rows: {"gap": _mean(one, "gap")} for rows, one in found.items()}
    return {"The mean gap of the guide in its parts, each with one standard error": drawing.gap_bar(parts)}


def _alt(one: Diagnostic, found: Found) -> str:
    said = [
        f"{rows}: " + ", ".join(f"{part} {value:.3f} ± {error:.3f}" for part, (value, error) in bar.items())
        for rows, bar in _gap_parts(found).items()
    ]
    return ". ".join([one.alt or one.title, *said])


def _calibration(found: Found, subject: Subject) -> tuple[list[Table], list[Shown]]:
    shows = Shows()
    for one in found.values():
        if "coverage" in one and set(one.coverage.dims) == {"quantity", "level"}:
            names, levels = one["quantity"].values, one["level"].values
            coverage = one.coverage.transpose("quantity", "level").values
            errors = (
                one.coverage_se.transpose("quantity", "level").values
                if "coverage_se" in one
                else np.full_like(coverage, np.nan)
            )
            columns = [Column("quantity", numeric=False)]
            columns += [Column(f"{float(level) * 100:g} %", "coverage") for level in levels]
            tests = [name for name in ("p_value", "p_adjusted") if name in one]
            columns += [Column(title_of(name), term_of(name)) for name in tests]
            rows = []
            for i, name in enumerate(names):
                cells = [Cell(str(name))]
                cells += [_percent(coverage[i, j], errors[i, j]) for j in range(len(levels))]
                cells += [_probability(float(one[test].values[i])) for test in tests]
                rows.append(tuple(cells))
            caption = (
                "How often central intervals hold the true value, by their nominal probability; and tests of the ranks"
            )
            shows.add(Table(caption, tuple(columns), tuple(rows[:60])))
            others = [
                n
                for n, v in one.data_vars.items()
                if v.dims == ("quantity",) and n not in tests and not str(n).endswith("_se")
            ]
            kept = [str(name) for name in others if str(name) in ("width", "bias", "mean_pit", "ks", "number")]
            shows.add(
                by_dimension(one, "quantity", "Width and bias of the guide by quantity", columns=kept) if kept else None
            )
        else:
            shows.tables += plain({"": one}, subject)[0]
    return shows.both()


def _calibration_figure(found: Found) -> dict[str, Figure]:
    said = (
        "Distribution functions of the ranks minus that of uniform ones, with their band, and coverage of the intervals"
    )
    return {said: plot_calibration(next(one for one in found.values() if "rank" in one))}


def _collapse_figure(found: Found) -> dict[str, Figure]:
    said = "KL of each latent dimension from its prior, with two standard errors; the colour is the cause of a collapse"
    return {said: plot_collapse(next(iter(found.values())))}


def _percent(value: float, error: float) -> Cell:
    if not np.isfinite(value):
        return Cell("none")
    said = f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if np.isfinite(error) else "")
    return Cell(f"{said} %", float(value))


def _probability(value: float) -> Cell:
    return Cell("none") if not np.isfinite(value) else Cell(f"{value:.2g}", value)


DIAGNOSTICS: Mapping[str, Diagnostic] = {
    "evidence": Diagnostic("Bound and evidence", evidence),
    "gaps": Diagnostic(
        "The gap and its parts",
        plain,
        _gap_figure,
        "The parts of the gap",
    ),
    "reliability": Diagnostic("k-hat by datum", reliability),
    "calibration": Diagnostic(
        "Calibration",
        _calibration,
        _calibration_figure,
        "Distribution of the ranks with bands, and coverage of the intervals",
    ),
    "moments": Diagnostic("Moments corrected by weights", moments),
    "linear_response": Diagnostic("Linear-response standard deviations", plain),
    "collapse": Diagnostic(
        "Collapse of latent dimensions",
        plain,
        _collapse_figure,
        "KL and activity of each latent dimension",
    ),
    "predictive": Diagnostic("Does the model fit the data", plain, alt="Predictive checks"),
}
"""All diagnostics, in reading order."""
