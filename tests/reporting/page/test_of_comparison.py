"""The section of a comparison, from its JSON document."""

from typing import Any

from pyro_vi.reporting.page import comparison_section

DOCUMENT: dict[str, Any] = {
    "evaluated_on": "held-out",
    "guides": {
        "flow": {
            "elbo": -1.0,
            "elbo_se": 0.25,
            "evidence": {"value": -0.5, "se": 0.25},
            "gap": 0.5,
            "parameters": {"guide": 1200},
        },
        "full": {"elbo": -2.0, "elbo_se": 0.25, "evidence": None, "gap": None, "parameters": {"guide": 12}},
        "exact": {"refused": "the model has no posterior"},
    },
    "conclusion": ["flow is ahead."],
}


def test_all_fits_are_listed_and_those_that_were_refused_are_named() -> None:
    section = comparison_section(DOCUMENT, "flow")
    (table,) = section.tables
    assert [column.title for column in table.columns] == ["guide", "ELBO", "evidence", "gap", "parameters of the guide"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["flow (judged on this page)", "-1.00 ± 0.25", "-0.50 ± 0.25", "0.5", "1,200"],
        ["full", "-2.00 ± 0.25", "none", "none", "12"],
    ]
    assert section.sentences == ("flow is ahead.", "exact has no numbers: the model has no posterior.")
