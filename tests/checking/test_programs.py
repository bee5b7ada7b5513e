"""One wrong program and its cured twin for each code: one finding, and none; and the page that shows them."""

import re

import pytest
from check_document import DOCUMENT, KINDS, PROGRAMS, codes, document, findings, program

from pyro_vi import check

NAMES = sorted(path.stem for path in PROGRAMS.glob("*.py"))
COMPARED = {"mask_mismatch", "scale_mismatch", "site_order", "renyi_subsampled", "not_vectorizable", "data_in_event"}
"""Codes whose finding has two estimates and a z-score."""
SLOW = {"renyi_subsampled", "mixed_devices"}
"""These make thousands of draws, or import much of torch."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]
)
def test_the_wrong_program_gives_one_finding(name):
    (finding,) = findings(program(name))
    assert finding.code == name.replace("_", "-")
    assert "\n" not in str(finding)
    scores = re.findall(r"z = ([\d.]+|∞)", finding.message)
    assert len(scores) == (name in COMPARED)
    assert all(float(score) > 4 for score in scores)


@pytest.mark.parametrize("name", NAMES)
def test_its_cured_twin_gives_none(name):
    assert check(**program(name).RIGHT) == []


def test_each_code_has_a_program():
    stated = [code for module in KINDS for code in codes(module)]
    assert sorted(stated) == [name.replace("_", "-") for name in NAMES]


@pytest.mark.slow
def test_the_page_is_up_to_date():
    """But for the last digits of numbers, which depend on the machine."""
    written, made = (re.sub(r"-?\d+(\.\d+)?", "#", text) for text in (DOCUMENT.read_text(), document()))
    assert written == made, "run python tests/check_document.py"
