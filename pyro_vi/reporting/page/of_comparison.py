"""The section of a comparison, from its document: the numbers of all fits side by side, and the conclusion."""

import math
from collections.abc import Mapping
from typing import Any

from pyro_vi.reporting.page.parts import Cell, Column, Section, Table, number


def comparison_section(document: Mapping[str, Any], judged: str) -> Section:
    """Return the section of a comparison.

    Args:
        document: its JSON document, as in ``result.json``.
        judged: name of the fit that the rest of the page is about.
    """
    every: Mapping[str, Any] = document.get("estimators") or document.get("guides") or {}
    fits = {name: one for name, one in every.items() if "refused" not in one}
    kind = "estimator" if "estimators" in document else "guide"
    on = document.get("evaluated_on", "")
    columns = (
        Column(kind, numeric=False),
        Column("ELBO", "elbo"),
        Column("held-out log predictive density", "heldout_lpd"),
        Column("evidence", "log_evidence"),
        Column("gap", "gap"),
        Column("parameters of the guide", "parameters"),
        Column("seconds"),
    )
    rows = []
    for name, one in fits.items():
        evidence = one.get("evidence") or {}
        cells = [
            Cell(f"{name} (judged on this page)" if name == judged else str(name)),
            _cell(one.get("elbo"), one.get("elbo_se")),
            _cell(_mean(one.get("heldout_lpd")), _se(one.get("heldout_lpd"))),
            _cell(evidence.get("value"), evidence.get("se")),
            _cell(one.get("gap")),
            _cell((one.get("parameters") or {}).get("guide")),
            _cell(one.get("train_seconds")),
        ]
        rows.append(tuple(cells))
    kept = [i for i in range(len(columns)) if not i or any(row[i].text != "none" for row in rows)]
    table = Table(
        f"All fits of the comparison, on {on} data, in nats per datum",
        tuple(columns[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
    )
    sentences = [str(line) for line in document.get("conclusion", ())]
    refused = [f"{name} has no numbers: {one['refused']}." for name, one in every.items() if "refused" in one]
    return Section("comparison", "The comparison", sentences=(*sentences, *refused), tables=(table,))


def _cell(value: Any, error: Any = None) -> Cell:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number(float(value) if known else math.nan, float(error) if isinstance(error, (int, float)) else math.nan)


def _mean(value: Any) -> Any:
    return value.get("mean", value.get("value")) if isinstance(value, Mapping) else value


def _se(value: Any) -> Any:
    return value.get("se") if isinstance(value, Mapping) else None
