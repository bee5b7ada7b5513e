"""One line out of anybody's exception."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_vi
from pyro_vi.errors import InputError, first_line, kind_and_line, of_program


@pytest.mark.parametrize(
    ("error", "says"), [(ValueError("a\nb"), "a"), (ValueError("\n \n a \nb"), "a"), (KeyError(), "KeyError")]
)
def test_the_first_line_of_an_error(error, says):
    assert first_line(error) == says


@pytest.mark.parametrize(("error", "says"), [(ValueError("\na\nb"), "ValueError: a"), (ValueError(), "ValueError")])
def test_its_kind_is_said_once(error, says):
    assert kind_and_line(error) == says


def asserting(x: torch.Tensor) -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))
    assert x.shape[0] == 40


def failing(x: torch.Tensor) -> None:
    torch.linalg.cholesky(-torch.eye(2))


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (asserting, r"^AssertionError: .* \(test_errors\.py line \d+: assert x\.shape\[0\] == 40\)$"),
        (
            failing,
            r"^_LinAlgError: linalg\.cholesky: .* \(test_errors\.py line \d+: torch\.linalg\.cholesky\(-.*\)$",
        ),
    ],
)
def test_an_error_of_a_program_has_its_type_its_text_and_its_line(program, says):
    """Also where Pyro raises it again, with the shapes of the trace in its text."""
    for run in (program, poutine.trace(program).get_trace):
        with pytest.raises(Exception) as caught:
            run(torch.zeros(3))
        assert re.match(says, of_program(caught.value))
    with pytest.raises(
        InputError, match=r"fails on .*: (AssertionError|_LinAlgError: linalg).* \(test_errors\.py line \d+: "
    ):
        pyro_vi.audit(program, lambda x: None, torch.zeros(3), draws=20)


def test_an_error_of_no_program_has_no_place():
    assert of_program(ValueError("not a number")) == "ValueError: not a number"
