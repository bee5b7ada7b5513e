"""All diagnostics at once: each in its group, with the numbers that it has by itself, or the reason why there are none."""

import numpy as np
import pytest
from catalogue import columns, exact_pair

from pyro_vi import UsageError, diagnose
from pyro_vi.diagnostics import reliability
from pyro_vi.diagnostics.diagnosing import PARTS, chosen


@pytest.mark.slow
def test_each_diagnostic_has_a_group_with_a_verdict_and_its_own_numbers():
    model, guide = exact_pair()
    x = columns(40)
    tree = diagnose(model, guide, x)
    assert list(tree.children) == list(PARTS)
    assert {name: part.attrs["verdict"] for name, part in tree.children.items() if name != "collapse"} == {
        "reliability": "pass",
        "moments": "pass",
        "linear_response": "none",
        "calibration": "pass",
    }
    assert all(isinstance(said, str) and said for part in tree.children.values() for said in part.attrs["sentences"])
    alone = reliability(model, guide, x)
    np.testing.assert_array_equal(tree["reliability"]["ess"], alone["ess"])


def test_one_that_does_not_apply_says_why_and_the_others_are_there():
    model, guide = exact_pair()
    tree = diagnose(model, guide, columns(5), only=["linear_response", "reliability"])
    assert list(tree.children) == ["reliability", "linear_response"]
    assert tree["linear_response"].attrs["verdict"] == "none"
    (said,) = tree["linear_response"].attrs["sentences"]
    assert said.startswith("Not computed: there is no linear response: it is of latents that all data share")


def test_an_unknown_name_is_refused_before_anything_is_computed():
    with pytest.raises(UsageError, match="no diagnostic 'khat'; choose among reliability, moments"):
        diagnose(*exact_pair(), "no batch", only="khat")
    assert chosen(()) == list(PARTS)
