"""One line out of anybody's exception."""

import pytest

from pyro_vi.errors import first_line, kind_and_line


@pytest.mark.parametrize(
    ("error", "says"), [(ValueError("a\nb"), "a"), (ValueError("\n \n a \nb"), "a"), (KeyError(), "KeyError")]
)
def test_the_first_line_of_an_error(error, says):
    assert first_line(error) == says


@pytest.mark.parametrize(("error", "says"), [(ValueError("\na\nb"), "ValueError: a"), (ValueError(), "ValueError")])
def test_its_kind_is_said_once(error, says):
    assert kind_and_line(error) == says
