"""Values that count as numbers, and the error for others."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from pyro_vi.errors import UsageError
from pyro_vi.support.numbers import flag, real, seed_from, shown, whole, word

THREES = [3, 3.0, np.int64(3), np.uint8(3), np.float32(3), np.array(3), torch.tensor(3), torch.tensor(3.0), Fraction(3)]
NONE = [
    None,
    True,
    np.bool_(True),
    torch.tensor(True),
    "3",
    b"3",
    [3],
    np.array([3]),
    torch.ones(1),
    3j,
    Decimal("nan"),
]


@pytest.mark.parametrize("value", THREES, ids=lambda value: f"{type(value).__name__} {value!r}")
def test_whole_numbers_of_all_kinds(value):
    found, as_float = whole("n", value, 3, 3), real("n", value, least=3)
    assert (type(found), found, type(as_float), as_float) == (int, 3, float, 3.0)


@pytest.mark.parametrize("value", NONE, ids=repr)
def test_what_is_no_number(value):
    for check in (whole, real):
        with pytest.raises(UsageError, match=r"^n must be a (whole )?number") as caught:
            check("n", value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: whole("steps", math.nan, 1), "steps must be a whole number of at least 1, not nan"),
        (lambda: whole("steps", 1.5), "steps must be a whole number, not 1.5"),
        (lambda: whole("steps", 9, most=8), "steps must be a whole number of at most 8, not 9"),
        (lambda: real("lr", math.inf, above=0), "lr must be a number above 0, not inf"),
        (lambda: real("lr", 0, above=0), "lr must be a number above 0, not 0"),
        (lambda: real("share", 1, least=0, below=1), "share must be a number of at least 0 and below 1, not 1"),
        (lambda: real("alpha", math.nan), "alpha must be a number that is finite, not nan"),
        (
            lambda: seed_from(2**63),
            "seed must be a whole number from 0 to 9223372036854775807, not 9223372036854775808",
        ),
        (lambda: word("kl", "analytc", ("analytic", "sampled")), "not 'analytc'; did you mean 'analytic'?"),
        (lambda: word("kl", None, ("analytic", "sampled")), "kl must be one of analytic, sampled, not None"),
        (lambda: flag("check", "yes"), "check must be True or False, not 'yes'"),
        (lambda: flag("check", torch.zeros(2, 2)), "check must be True or False, not a Tensor"),
    ],
)
def test_what_is_said(call, text):
    with pytest.raises(UsageError) as caught:
        call()
    assert text in str(caught.value)


def test_words_and_flags():
    assert word("kl", "sampled", ("analytic", "sampled")) == "sampled"
    assert flag("check", np.bool_(True)) is True and flag("check", False) is False
    assert shown("x" * 99) == "a str"
