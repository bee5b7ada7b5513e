"""One wrong program and its cured twin for each code: one finding, and none."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pyro
import pytest

import pyro_vi.checking
from pyro_vi import check
from pyro_vi.support import kept_generators, seed_generators

FOLDER = Path(__file__).parent / "programs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
COMPARED = {
    *("mask_mismatch", "scale_mismatch", "site_order", "renyi_subsampled", "not_vectorizable", "data_in_event"),
}
"""Codes whose finding has two estimates and a z-score."""


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with kept_generators():
        seed_generators(0)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_the_wrong_program_gives_one_finding(name):
    found = program(name)
    with pyro.get_param_store().scope(), kept_generators():
        getattr(found, "BEFORE", lambda: None)()
        (finding,) = check(**found.WRONG)
    assert finding.code == name.replace("_", "-")
    assert "\n" not in str(finding)
    scores = re.findall(r"z = ([\d.]+|∞)", finding.message)
    assert len(scores) == (name in COMPARED)
    assert all(float(score) > 4 for score in scores)


@pytest.mark.parametrize("name", NAMES)
def test_its_cured_twin_gives_none(name):
    assert check(**program(name).RIGHT) == []


def test_each_code_has_a_program():
    sources = Path(pyro_vi.checking.__file__).parent.glob("*.py")
    codes = {
        code
        for path in sources
        for code in re.findall(r'Finding\(\s*"([a-z-]+)", "(?:error|warning|note)"', path.read_text())
    }
    assert codes | {"mixed-dtypes", "mixed-devices", "plate-size"} == {name.replace("_", "-") for name in NAMES}
