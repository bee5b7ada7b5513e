"""What the page says of a fit itself: the sections of the fit, its records and its pictures.

* `fit_section`: what was fitted, and how to repeat it. `training_section`: whether it had converged, and its curves.
* `pictures_section`: the pictures that model and data have.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pyro_vi.errors import kind_and_line
from pyro_vi.fitting import left_out, said_of_best
from pyro_vi.reporting.page import drawing
from pyro_vi.reporting.page.glossary import term_of, title_of
from pyro_vi.reporting.page.parts import Cell, Column, Section, Shown, Table, Verdict, number
from pyro_vi.reporting.page.recalled import commands_of
from pyro_vi.reporting.page.subject import Subject
from pyro_vi.reporting.page.tabulating import of_numbers
from pyro_vi.reporting.pictures.plotting import PICTURES, chosen

CURVES = ("training_curves", "terms_by_site")
"""Pictures of the records, which belong to the section of the training."""

RECORDS = (
    "step",
    "elbo",
    "heldout_elbo",
    "heldout_lpd",
    "log_joint",
    "reconstruction",
    "kl",
    "loss",
    "lr",
    "grad_norm",
)


def fit_section(subject: Subject, names: tuple[str, str], data: str, parameters: Mapping[str, int]) -> Section:
    """Return the section that says what was fitted, and how to repeat it.

    Args:
        subject: the fit.
        names: of model and guide.
        data: name of the data.
        parameters: number of parameters by owner.
    """
    run, config = subject.run, subject.run.config
    held = f"{run.data.num_heldout:,} held out" if run.data.num_heldout else "none held out"
    shape = " × ".join(map(str, run.data.spec.event_shape)) or "1"
    facts: dict[str, str] = {
        "model": names[0],
        "guide": names[1],
        "data": f"{data}: {run.data.spec.num_data:,} training rows, {held}; shape of a datum {shape}, {run.data.spec.support}",
        "source of the data": run.data.spec.source,
        "estimator": run.elbo,
        "KL": ", ".join(f"{site}: {source}" for site, source in run.kl_source.items()),
        "parameters": ", ".join(f"{count:,} of the {owner}" for owner, count in parameters.items()),
        "steps": f"{run.steps:,} in {run.seconds:.1f} s, in batches of {config.get('batch_size', 'all')} rows",
        "optimizer": f"{config.get('optimizer')}, learning rate {config.get('lr')}, schedule {config.get('schedule')}",
        "left out": left_out(run),
        "seed": str(config.get("seed", "")),
        "started from": str((config.get("parent") or {}).get("folder", "")),
        "versions": ", ".join(f"{name} {value}" for name, value in (config.get("versions") or {}).items()),
        "folder": "" if run.out is None else str(run.out),
    }
    rows = tuple((Cell(name), Cell(text)) for name, text in facts.items() if text and "None" not in text.split(",")[0])
    terms = tuple("parameters" if row[0].text == "parameters" else "" for row in rows)
    table = Table("The fit", (Column("what", numeric=False), Column("value", numeric=False)), rows, terms)
    return Section("fit", "What was fitted, and how to repeat it", tables=(table,), commands=tuple(commands_of(config)))


def training_section(subject: Subject) -> Section:
    """Return the section of the records: whether the fit had converged, and its curves."""
    run = subject.run
    verdict: Verdict = {True: "pass", False: "care", None: "none"}[run.converged]  # type: ignore[assignment]
    said = {
        True: "The loss had converged.",
        False: "The loss had not converged.",
        None: "Whether the loss had converged cannot be told.",
    }
    sentences = [said[run.converged]]
    sentences += [f"Measured: {run.evidence.rstrip('.')}."] if run.evidence else []
    if not run.history:
        return Section(
            "training", "Training", "none", absent="There are no records: the pair has no parameters to fit."
        )
    best = said_of_best(run)
    sentences += [f"{best[:1].upper()}{best[1:]}."] if best else []
    if run.skipped or run.restored:
        sentences.append(f"Left out: {left_out(run)}.")
        verdict = "care" if verdict == "pass" else verdict
    last = run.record
    numbers = {n: (title_of(n), float(last[n]), math.nan) for n in RECORDS[1:] if _finite(last.get(n))}
    tables = (
        [
            of_numbers(
                numbers,
                f"The record of step {last.get('step')}, which is the result; ELBO and loss in nats per datum",
                unit="value",
            )
        ]
        if numbers
        else []
    )
    tables += [_records(run.history)] if len(run.history) > 1 else []
    pictures, notes = _pictures(subject, CURVES)
    figure = drawing.rates(run.history)
    if figure is not None:
        caption = "What drives the optimizer, by step"
        pictures.append(drawing.shown(figure, caption, "Learning rate and gradient norm against the step"))
    return Section(
        "training", "Training", verdict, tuple(sentences), tuple(tables), tuple(pictures), notes=tuple(notes)
    )


def pictures_section(subject: Subject) -> Section:
    """Return the section of the pictures that model and data have."""
    names = [one.name for one in PICTURES if one.name not in CURVES]
    pictures, notes = _pictures(subject, names)
    absent = "" if pictures else "No picture applies to this model and these data."
    return Section("pictures", "Pictures", pictures=tuple(pictures), notes=tuple(notes), absent=absent)


def _pictures(subject: Subject, names: Sequence[str]) -> tuple[list[Shown], list[str]]:
    """Draw pictures by name; those that fail are left out, with a line."""
    found, notes = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        applying = chosen(subject.comparison)
        for picture in applying:
            if picture.name not in names:
                continue
            try:
                said = " ".join((picture.draw.__doc__ or "").split("\n\n")[0].split())
                title = picture.name.replace("_", " ").capitalize()
                found.append(drawing.shown(picture.draw(subject.comparison), f"{title}. {said}".strip(), said or title))
            except Exception as error:  # a picture is never a reason to lose the page
                if not picture.may_refuse:
                    notes.append(f"No picture '{picture.name}': {kind_and_line(error)}.")
    return found, notes


def _records(history: Sequence[Mapping[str, Any]], rows: int = 12) -> Table:
    last = len(history) - 1
    some = sorted({round(i * last / (rows - 1)) for i in range(rows)})
    names = [name for name in RECORDS if any(_finite(record.get(name)) for record in history)]
    columns = tuple(Column(title_of(name), term_of(name)) for name in names)
    cells = tuple(tuple(number(float(history[i].get(name, math.nan))) for name in names) for i in some)
    return Table(f"{len(some)} of {len(history)} records; ELBO and loss in nats per datum", columns, cells)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
