"""`report` writes the page that says whether the posterior of a fit can be used, from the fit or its folder.

* `page_of` puts together all that the page shows; `measuring` calls the diagnostics.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from pyro_vi.afterwards.measuring import diagnosed, draw_of
from pyro_vi.afterwards.opened import OpenedRun
from pyro_vi.afterwards.opening import open as opened_from
from pyro_vi.comparing import Comparison
from pyro_vi.comparing.results import folders
from pyro_vi.data import Data, length_of
from pyro_vi.elbo import Facts, facts_of
from pyro_vi.errors import InputError, kind_and_line
from pyro_vi.fitting import Run, fits_in, holds_run
from pyro_vi.programs import name_of
from pyro_vi.reporting.document import to_dict
from pyro_vi.reporting.page import (
    DIAGNOSTICS,
    Failed,
    Judgement,
    Page,
    Section,
    Subject,
    comparison_section,
    fit_section,
    judged,
    pictures_section,
    rendered,
    section_of,
    training_section,
)
from pyro_vi.reporting.pictures.plotting import comparison_of
from pyro_vi.support import Whole, finite, make_folder, seed_from, versions, whole, write_through

NAME = "report.html"
ROWS = 500
"""Most data that each diagnostic looks at."""


def report(
    fitted: Run | OpenedRun | Comparison | str | Path,
    *,
    out: str | Path | None = None,
    rows: Whole = ROWS,
    seed: Whole = 0,
    trust: bool = False,
) -> Path:
    """Write one HTML page that says whether the posterior of a fit can be used, and why; return its path.

    The page needs no network and no other file. The verdict is on top; below it are the fit and how to repeat it, bound and
    evidence, the parts of the gap, k-hat and the worst data, calibration, collapse, curves and pictures. What does not apply or
    fails is named in one line, and the page is still written. The table of rules that make the verdict is in docs/trust.md.

    Args:
        fitted: a fit, or the folder of one. Of a comparison, or of its folder, all fits are listed, and the one with the
            highest ELBO is judged.
        out: the file, or a folder for ``report.html``; by default the folder of the fit or the comparison.
        rows: most data that each diagnostic looks at, evenly spaced; each number says on how many it rests. If all data share
            latents, all are used.
        seed: seed of all draws.
        trust: run the code of programs that the folder names, though the run was not made by this user.

    Raises:
        InputError: the folder holds no fit, or the page cannot be written; or ``out`` is not given for a fit without a folder.
        UsageError: ``rows`` or ``seed`` is no whole number.

    Example:
        >>> import pyro_vi, tempfile
        >>> run = pyro_vi.fit("linear_gaussian(latent_dim=2)", "exact", torch.randn(50, 3), steps=2, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     "</html>" in report(run, out=folder).read_text()
        True
    """
    return write_report(fitted, out=out, rows=rows, seed=seed, trust=trust)[0]


def write_report(
    fitted: Run | OpenedRun | Comparison | str | Path,
    *,
    out: str | Path | None = None,
    rows: Whole = ROWS,
    seed: Whole = 0,
    trust: bool = False,
) -> tuple[Path, Judgement]:
    """Write the page of `report`; return its path and the verdict."""
    rows, seed = whole("rows", rows, 1), seed_from(seed)
    document: Mapping[str, Any] | None = None
    judged_name, home = "", None
    if isinstance(fitted, Comparison):
        document, judged_name = finite(to_dict(fitted, [])), best_of_comparison(fitted)
        opened, home = OpenedRun(fitted.results[judged_name].run), fitted.out
    elif isinstance(fitted, (str, Path)) and not holds_run(Path(fitted).expanduser()):
        home = Path(fitted).expanduser()
        document, judged_name, folder = _of_folder(home)
        opened = opened_from(folder, trust=trust)
    else:
        opened = fitted if isinstance(fitted, OpenedRun) else opened_from(fitted, trust=trust)
    path = _path(out, home or opened.run.out)
    page = page_of(opened, rows=rows, seed=seed, document=document, judged_name=judged_name)
    written = write_through(path, lambda temporary: temporary.write_text(rendered(page), encoding="utf-8"))
    return written, page.judgement


def best_of_comparison(comparison: Comparison) -> str:
    """Return the name of the fit with the highest ELBO; of the first one, if none has an ELBO."""
    scored = {name: one.elbo_mean for name, one in comparison.results.items() if math.isfinite(one.elbo_mean)}
    if not comparison.results:
        raise InputError("the comparison has no fit that could be reported; see its refused guides")
    return max(scored, key=scored.__getitem__) if scored else next(iter(comparison.results))


def page_of(
    opened: OpenedRun,
    *,
    rows: int = ROWS,
    seed: int = 0,
    document: Mapping[str, Any] | None = None,
    judged_name: str = "",
) -> Page:
    """Return the page of a fit, with all numbers computed.

    Args:
        opened: the fit.
        rows: most data that each diagnostic looks at.
        seed: seed of all draws.
        document: of a comparison that it belongs to.
        judged_name: its name in that comparison.
    """
    start, run = time.perf_counter(), opened.run
    config = run.config
    model, guide = (str(config.get(kind) or name_of(getattr(run, kind))) for kind in ("model", "guide"))
    data = str(config.get("data") or run.data.spec.name)
    subject = Subject(run, comparison_of(run, model, guide, seed))
    found: dict[str, Mapping[str, xr.Dataset] | Failed] = {}
    parameters: dict[str, int] = {}
    try:
        facts = _rows_into(subject, opened, rows)
        for owner, parameter in opened.pair.owned(next(iter(subject.args.values()))).values():
            parameters[owner] = parameters.get(owner, 0) + parameter.numel()
        found = diagnosed(subject, facts, seed)
    except Exception as error:  # the page is still written
        found = dict.fromkeys(DIAGNOSTICS, Failed.by(error))
    sections = [section_of(name, found.get(name), subject, draw_of(name, subject)) for name in DIAGNOSTICS]
    training = _safely("training", "Training", lambda: training_section(subject))
    fit = _safely(
        "fit", "What was fitted, and how to repeat it", lambda: fit_section(subject, (model, guide), data, parameters)
    )
    pictures = _safely("pictures", "Pictures", lambda: pictures_section(subject))
    of_comparison = [comparison_section(document, judged_name)] if document is not None else []
    on = f", fit {judged_name}" if judged_name else ""
    used = next(iter(subject.rows_in_words.values()), "")
    known = ", ".join(f"{name} {value}" for name, value in versions().items())
    return Page(
        f"{model} with guide {guide} on {data}{on}",
        f"Numbers on {used}." if used else "",
        judged([*sections, training]),
        (*of_comparison, fit, *sections, training, pictures),
        f"Made by pyro_vi.report in {time.perf_counter() - start:.0f} s, with seed {seed}; {known}.",
    )


def _safely(anchor: str, title: str, make: Callable[[], Section]) -> Section:
    try:
        return make()
    except Exception as error:
        return Section(anchor, title, absent=f"Not written, because of an error: {kind_and_line(error)}.")


def _rows_into(subject: Subject, opened: OpenedRun, rows: int) -> Facts:
    """Choose the rows that the diagnostics see, and note their numbers; return the facts about the pair."""
    pair, data = opened.pair, opened.data
    facts = facts_of(pair, data.example(opened.plan.batch_size))
    args = opened.rows()
    held = args is data.heldout and bool(data.num_heldout)
    batches = {"held-out" if held else "training": args}
    if held:  # what is asked of both, is asked of training rows from the start of the data
        batches["training"] = data.example(min(rows, data.spec.num_data))
    chosen, numbers, counts, counted = {}, {}, {}, {}
    for name, batch in batches.items():
        count = length_of(batch)
        batch, index = pair.evenly(batch, rows)
        every, known = _numbers(data, name == "held-out")
        chosen[name], numbers[name] = batch, every[:count][index]
        counts[name] = data.spec.num_data if name == "training" else count
        counted[name] = "the data" if known else f"the {name} rows"
    subject.args, subject.numbers, subject.counts, subject.counted = chosen, numbers, counts, counted
    return facts


def _numbers(data: Data, held: bool) -> tuple[np.ndarray, bool]:
    """The number of each held-out or training row in the data as they were handed over; and if it is known."""
    if not held:
        rows = torch.arange(data.spec.num_data)
        return data.numbers(rows).cpu().numpy(), True
    if data.given is None:
        return np.arange(data.num_heldout), False
    kept = data.numbers(torch.arange(data.spec.num_data)).cpu().numpy()
    out = np.ones(data.spec.num_data + data.num_heldout, dtype=bool)
    out[kept] = False
    return np.flatnonzero(out), True


def _path(out: str | Path | None, home: Path | None) -> Path:
    if out is None and home is None:
        raise InputError("the fit has no folder to write the page to; give out=FILE")
    path = Path(out if out is not None else home or "").expanduser()
    if path.is_dir() or not path.suffix:
        return make_folder(path) / NAME
    make_folder(path.parent)
    return path


def _of_folder(path: Path) -> tuple[Mapping[str, Any] | None, str, Path]:
    """The document of the comparison in a folder, and name and folder of the fit that is judged."""
    fits = list(fits_in(path))
    file = path / "result.json"
    if not fits:
        raise InputError(f"'{path}' holds no run; give the folder of a fit or a comparison")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        listed = document.get("estimators") or document.get("guides")
        scored = {name: one["elbo"] for name, one in listed.items() if isinstance(one.get("elbo"), (int, float))}
        best = (
            max(scored, key=scored.__getitem__)
            if scored
            else next(name for name, one in listed.items() if "refused" not in one)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise InputError(
            f"'{path}' has no result.json of a finished comparison; give the folder of a fit: {fits[0]}"
        ) from None
    place = folders([*listed])[best]
    folder = next((fit for fit in fits if fit.name == place), fits[0])
    return document, best, folder
