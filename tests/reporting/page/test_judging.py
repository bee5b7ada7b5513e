"""The rules that make one verdict from those of the sections."""

import re
from pathlib import Path

import pytest

from pyro_vi.reporting.page import DIAGNOSTICS, RULES, Section, judged


def sections(**verdicts: str) -> list[Section]:
    return [Section(name, name, verdict, (f"{name} says {verdict}.",)) for name, verdict in verdicts.items()]


@pytest.mark.parametrize(
    ("found", "level"),
    [
        ({"reliability": "pass", "calibration": "pass"}, "pass"),
        ({"reliability": "pass"}, "pass"),
        ({"calibration": "pass"}, "pass"),
        ({"reliability": "care", "calibration": "pass"}, "care"),
        ({"reliability": "fail"}, "fail"),
        ({"reliability": "fail", "calibration": "none"}, "fail"),
        # The marginals are right where the joint density is not.
        ({"reliability": "fail", "calibration": "pass"}, "care"),
        ({"reliability": "pass", "calibration": "fail"}, "fail"),
        ({"reliability": "pass", "training": "care"}, "care"),
        ({"reliability": "pass", "gaps": "fail"}, "care"),
        ({"reliability": "pass", "evidence": "fail"}, "care"),
        ({"reliability": "pass", "collapse": "care"}, "pass"),
        ({"reliability": "pass", "collapse": "fail"}, "care"),
        ({"reliability": "pass", "predictive": "fail"}, "care"),
        # Nothing else shows that a guide is near its posterior.
        ({"evidence": "pass", "gaps": "pass", "training": "pass"}, "none"),
        ({"reliability": "none", "calibration": "none", "training": "care"}, "none"),
        ({}, "none"),
    ],
)
def test_the_verdict_follows_from_those_of_the_sections(found: dict[str, str], level: str) -> None:
    assert judged(sections(**found)).level == level


def test_reasons_are_listed_from_the_gravest_with_what_to_do() -> None:
    found = judged(sections(training="care", collapse="care", gaps="care", calibration="fail", reliability="care"))
    assert [reason.anchor for reason in found.reasons] == ["calibration", "reliability", "gaps", "training"]
    assert [note.anchor for note in found.notes] == ["collapse"]
    assert len(found.do) == 4 and all(reason.means for reason in found.reasons)
    assert found.reasons[0].sentence == "calibration says fail."


def test_each_rule_is_about_a_section_and_in_the_document() -> None:
    text = " ".join((Path(__file__).parents[3] / "docs" / "trust.md").read_text(encoding="utf-8").split())
    for rule in RULES:
        assert rule.section in {*DIAGNOSTICS, "training"}
        assert re.search(rf"\| `{rule.section}` \| [^|]*\b{rule.found[-1]} \| {rule.level}\b", text), rule.section
