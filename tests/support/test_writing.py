"""Files are written whole or not at all, and JSON holds no number that it cannot."""

import json
import math

import pytest

from pyro_vi.errors import InputError
from pyro_vi.support.writing import finite, make_folder, write_json, write_through


def names(path):
    return sorted(file.name for file in path.iterdir())


@pytest.mark.parametrize("path", ["file", "file/below", "file/far/below"])
def test_a_folder_that_cannot_be_made(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        make_folder(tmp_path / path)
    assert names(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = write_through(tmp_path / "it", lambda temporary: temporary.write_text("old"))

    def fails(temporary):
        temporary.write_text("ne")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_through(path, fails)
    assert path.read_text() == "old"


def test_json_has_no_numbers_that_are_not_finite(tmp_path):
    value = {"a": [1.0, math.nan, (math.inf, -math.inf)], "b": {"c": 2, "d": True, "e": None, "f": "NaN"}}
    expected = {"a": [1.0, None, [None, None]], "b": {"c": 2, "d": True, "e": None, "f": "NaN"}}
    assert finite(value) == expected
    write_json(tmp_path / "it.json", value)
    assert json.loads((tmp_path / "it.json").read_text(), parse_constant=pytest.fail) == expected
