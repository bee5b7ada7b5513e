"""Every module can be named: no function of a package hides a module, and no public function has the name of one."""

import importlib
import pkgutil
from types import ModuleType

import pytest

import pyro_vi

MODULES = sorted(module.name for module in pkgutil.walk_packages(pyro_vi.__path__, "pyro_vi."))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_what_its_name_gives(name):
    """As in ``import pyro_vi.a.b as m``, which takes ``b`` from the package where that has such a name."""
    found: object = importlib.import_module(name)
    reached: object = pyro_vi
    for part in name.split(".")[1:]:
        reached = getattr(reached, part)
    assert isinstance(reached, ModuleType)
    assert reached is found


def test_no_public_module_has_the_name_of_a_public_function():
    public = {part for name in MODULES for part in name.split(".")[1:] if not part.startswith("_")}
    functions = {name for name in pyro_vi.__all__ if not isinstance(getattr(pyro_vi, name), ModuleType)}
    assert not public & functions
