"""Sections of diagnostics, from made-up datasets in the form that the diagnostics give."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from page_checks import checked

import pyro_vi
from pyro_vi.errors import InputError
from pyro_vi.reporting.page import DIAGNOSTICS, Failed, Page, Section, Subject, judged, rendered, section_of
from pyro_vi.reporting.pictures.plotting import comparison_of

SAID: dict[str, Any] = {
    "verdict": "care",
    "sentences": ["First, 0.5 ± 0.1.", "Second."],
    "rows": 4,
    "draws": 99,
    "seed": 3,
}


@pytest.fixture(scope="module")
def subject() -> Subject:
    run = pyro_vi.fit(
        "linear_gaussian(latent_dim=1)", "exact", torch.arange(30.0).reshape(10, 3), steps=1, progress=False
    )
    rows = (torch.arange(12.0).reshape(4, 3),)
    return Subject(run, comparison_of(run), {"held-out": rows}, {"held-out": np.array([2, 3, 5, 7])}, {"held-out": 4})


def reliability() -> xr.Dataset:
    columns = {"khat": ("datum", [0.1, 0.9, np.nan, 0.8]), "khat_se": ("datum", [0.1, 0.2, np.nan, 0.1])}
    return xr.Dataset({**columns, "ess": ("datum", [50.0, 2.0, 99.0, 3.0])}, {"datum": [0, 1, 2, 3]}, SAID)


def calibration() -> xr.Dataset:
    coverage = [[0.2641, 0.6729], [0.5, 0.95]]
    return xr.Dataset(
        {
            "rank": (("simulation", "quantity"), np.zeros((7, 2), dtype=int)),
            "coverage": (("quantity", "level"), coverage),
            "coverage_se": (("quantity", "level"), np.full((2, 2), 0.01)),
            "p_adjusted": ("quantity", [1e-9, 0.4]),
            "width": ("quantity", [0.5, 1.0]),
            "width_se": ("quantity", [0.02, 0.02]),
        },
        {"quantity": ["z[0]", "log p(x | z)"], "level": [0.5, 0.95]},
        {**SAID, "verdict": "fail", "simulations": 7},
    )


def moments() -> xr.Dataset:
    shift, ratio = np.array([[0.3, 0.0], [-0.4, 0.0]]), np.array([[2.0, 1.0], [2.0, 1.0]])
    both = ("datum", "number")
    return xr.Dataset({"shift": (both, shift), "ratio": (both, ratio)}, {"number": ["z[0]", "z[1]"]}, SAID)


MADE_UP = {
    "evidence": xr.Dataset(
        {
            "log_evidence": ("datum", np.zeros(4)),
            "mc_se": ("datum", np.full(4, 0.5)),
            "ess": ("datum", np.full(4, 3.0)),
        },
        attrs={**SAID, "method": "ais", "value": -1.5, "se": 0.25},
    ),
    "gaps": xr.Dataset(
        {
            **{f"mean_{name}": ((), value) for name, value in (("gap", 2.2), ("amortization", 0.2))},
            **{f"mean_{name}_se": ((), 0.05) for name in ("gap", "amortization")},
            "mean_approximation": ("family", [2.0, 1.5]),
            "mean_approximation_se": ("family", [0.1, 0.1]),
            "gap": ("datum", [1.1, 3.3]),
        },
        {"family": ["diag_normal", "flow"], "datum": [0, 1]},
        {**SAID, "verdict": "fail", "own": "diag_normal"},
    ),
    "reliability": reliability(),
    "calibration": calibration(),
    "moments": moments(),
    "linear_response": xr.Dataset({"sd": ("number", [1.0]), "sd_se": ("number", [0.1])}, {"number": ["w"]}, SAID),
    "collapse": xr.Dataset(
        {"kl": ("unit", [0.5, 0.0]), "active": ("unit", [True, False])}, {"unit": ["z[0]", "z[1]"]}, SAID
    ),
    "predictive": xr.Dataset({"loo": ((), -3.0), "loo_se": ((), 0.5)}, attrs=SAID),
}


def texts(section: Section) -> list[list[str]]:
    return [[cell.text for cell in row] for table in section.tables for row in table.rows]


def test_each_diagnostic_has_a_section_with_its_sentences_as_they_are(subject: Subject) -> None:
    made = [
        section_of(name, {"held-out": one}, subject, lambda _: {"a figure": Figure(figsize=(2, 1))})
        for name, one in MADE_UP.items()
    ]
    assert [section.anchor for section in made] == list(DIAGNOSTICS)
    assert all(section.sentences == ("First, 0.5 ± 0.1.", "Second.") and not section.absent for section in made)
    assert all(section.tables and section.pictures for section in made)
    assert judged(made).level == "fail"
    checked(rendered(Page("a", "b", judged(made), tuple(made))))


def test_a_diagnostic_that_fails_is_named_in_a_line(subject: Subject) -> None:
    refused = section_of("gaps", Failed.by(InputError("the guide is a point estimate; use another")), subject)
    assert (refused.verdict, refused.absent) == ("none", "Not applicable: the guide is a point estimate; use another.")
    broken = section_of("gaps", Failed.by(ZeroDivisionError("by zero")), subject)
    assert broken.absent == "Not computed, because of an error: ZeroDivisionError: by zero."
    assert section_of("gaps", None, subject).absent == "Not computed."


def test_a_table_that_fails_leaves_the_sentences(subject: Subject) -> None:
    wrong = xr.Dataset({"khat": ("datum", ["a", "b"])}, attrs=SAID)
    section = section_of("reliability", {"held-out": wrong}, subject)
    assert section.sentences and section.verdict == "care" and "ValueError" in section.absent


def test_the_worst_data_come_first_with_the_users_row_numbers_and_their_values(subject: Subject) -> None:
    section = section_of("reliability", {"held-out": reliability()}, subject)
    assert texts(section) == [
        ["3", "0.90 ± 0.20", "2"],
        ["7", "0.80 ± 0.10", "3"],
        ["2", "0.10 ± 0.10", "50"],
        ["3", "3", "4", "5"],
        ["7", "9", "10", "11"],
        ["2", "0", "1", "2"],
    ]
    assert "2 are above 0.7, the largest is 0.90, the median 0.80" in section.pictures[0].alt


def test_coverage_is_shown_in_percent_with_its_error(subject: Subject) -> None:
    section = section_of("calibration", {"simulated": calibration()}, subject)
    assert texts(section)[:2] == [
        ["z[0]", "26.4 ± 1.0 %", "67.3 ± 1.0 %", "1e-09"],
        ["log p(x | z)", "50.0 ± 1.0 %", "95.0 ± 1.0 %", "0.4"],
    ]


def test_moments_of_data_are_summed_up_without_cancelling(subject: Subject) -> None:
    (first, second) = texts(section_of("moments", {"held-out": moments()}, subject))
    assert first == ["z[0]", "0.3536", "0.4", "2"]  # √((.3² + .4²) / 2), and the geometric mean of 2 and 2
    assert second == ["z[1]", "0", "0", "1"]


def test_the_parts_of_the_gap_are_drawn_for_training_and_held_out_apart(subject: Subject) -> None:
    section = section_of("gaps", {"training": MADE_UP["gaps"], "held-out": MADE_UP["gaps"]}, subject)
    parts = "amortization 0.200 ± 0.050, approximation 2.000 ± 0.100"
    assert f"training: {parts}. held-out: {parts}" in section.pictures[0].alt
    assert section.sentences[0] == "On training rows: First, 0.5 ± 0.1."
