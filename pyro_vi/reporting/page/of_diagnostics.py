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
from pyro_vi.reporting.page.of_weights import evidence, moments, reliability
from pyro_vi.reporting.page.parts import Cell, Column, Section, Shown, Table, Verdict
from pyro_vi.reporting.page.subject import Subject
from pyro_vi.reporting.page.tabulating import Found, Shows, by_dimension, plain
from pyro_vi.reporting.page.terms import term_of, title_of


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
        draws: makes a figure of a dataset, with its caption and a text for those who do not see it.
    """

    title: str
    shows: Callable[[Found, Subject], tuple[list[Table], list[Shown]]]
    draws: Callable[[xr.Dataset], Figure] | None = None
    alt: str = ""


def section_of(
    name: str, found: Found | Failed | None, subject: Subject, figure: Callable[[xr.Dataset], Figure] | None = None
) -> Section:
    """Return the section of a diagnostic.

    Args:
        name: its name, a key of `DIAGNOSTICS`.
        found: its datasets by name of their rows; or why there are none.
        subject: what the page is about.
        figure: draws a dataset; a picture that fails is left out.
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
    for rows, dataset in found.items():
        if figure is None or dataset.attrs.get("verdict") == "none":
            continue
        try:
            caption = one.title if len(found) == 1 else f"{one.title}, {rows} rows"
            pictures.insert(0, drawing.shown(figure(dataset), caption, one.alt or caption))
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
    which = subject.rows_in_words.get(rows, f"{rows} data")
    return f"Rests on {which}" + (f": {', '.join(said)}." if said else ".")


def _gaps(found: Found, subject: Subject) -> tuple[list[Table], list[Shown]]:
    shows, bars = plain(found, subject), {}
    for rows, one in found.items():
        parts = {}
        for part in ("amortization", "approximation"):
            name = part if part in one.attrs or part in one else f"{part}_gap"
            value, error = _mean_of(one, name)
            if np.isfinite(value):
                parts[part] = (value, error)
        if parts:
            bars[rows] = parts
    if bars:
        said = "; ".join(
            f"{rows}: " + ", ".join(f"{part} {value:.3f}" for part, (value, _) in bar.items())
            for rows, bar in bars.items()
        )
        picture = drawing.shown(
            drawing.gap_bar(bars), "The parts of the gap, with one standard error", f"The gap: {said}"
        )
        shows[1].insert(0, picture)
    return shows


def _mean_of(found: xr.Dataset, name: str) -> tuple[float, float]:
    """A number with its error: from the attributes, or the mean over data."""
    if name in found.attrs and isinstance(found.attrs[name], (int, float)):
        return float(found.attrs[name]), float(found.attrs.get(f"{name}_se", np.nan))
    if name not in found or found[name].dims not in ((), ("datum",)):
        return float("nan"), float("nan")
    values = found[name].values.astype(float).reshape(-1)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    if found[name].dims == ():
        return float(values[0]), float(found[f"{name}_se"]) if f"{name}_se" in found else float("nan")
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


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


def _percent(value: float, error: float) -> Cell:
    if not np.isfinite(value):
        return Cell("none")
    said = f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if np.isfinite(error) else "")
    return Cell(f"{said} %", float(value))


def _probability(value: float) -> Cell:
    return Cell("none") if not np.isfinite(value) else Cell(f"{value:.2g}", value)


DIAGNOSTICS: Mapping[str, Diagnostic] = {
    "evidence": Diagnostic("Bound and evidence", evidence),
    "gaps": Diagnostic("The gap and its parts", _gaps, alt="The parts of the gap"),
    "reliability": Diagnostic("k-hat by datum", reliability),
    "calibration": Diagnostic(
        "Calibration", _calibration, alt="Distribution of the ranks with bands, and coverage of the intervals"
    ),
    "moments": Diagnostic("Moments corrected by weights", moments),
    "linear_response": Diagnostic("Linear-response standard deviations", plain),
    "collapse": Diagnostic("Collapse of latent dimensions", plain, alt="KL and activity of each latent dimension"),
    "predictive": Diagnostic("Does the model fit the data", plain, alt="Predictive checks"),
}
"""All diagnostics, in reading order."""
