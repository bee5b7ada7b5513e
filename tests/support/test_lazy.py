"""Names of a package that are imported when they are first used."""

import subprocess
import sys
from pathlib import Path

import pytest

import pyro_vi

ROOT = Path(pyro_vi.__file__).parent
LAZY = [
    ".".join(path.parent.relative_to(ROOT.parent).parts)
    for path in sorted(ROOT.rglob("__init__.py"))
    if "= lazily(__name__)" in path.read_text(encoding="utf-8")
]


def test_the_packages_that_start_a_command_are_lazy():
    assert {"pyro_vi", "pyro_vi.support", "pyro_vi.overview"} <= set(LAZY)


@pytest.mark.parametrize("package", LAZY)
def test_each_name_is_found_and_listed(package):
    module = sys.modules.get(package) or __import__(package, fromlist=["x"])
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.slow
def test_import_is_of_nothing_else():
    """Before a name is used; then a name, a module and a version are there without an import of the module."""
    code = (
        "import sys, pyro_vi; assert not {'torch', 'pyro', 'numpy'} & set(sys.modules); "
        "from pyro_vi import fit, estimators; import torch; from torch.distributions.kl import _KL_REGISTRY; "
        "assert pyro_vi.elbo.kl.__name__ == 'pyro_vi.elbo.kl'; print(pyro_vi.__version__, pyro_vi.fit is fit)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "True"
