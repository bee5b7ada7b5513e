"""The versions that every result carries."""

import platform

import numpy
import pyro
import torch

import pyro_vi
from pyro_vi.support.packages import versions


def test_versions_are_those_of_what_is_imported():
    found = versions()
    assert found == {
        "python": platform.python_version(),
        "pyro-vi": pyro_vi.__version__,
        "pyro-ppl": pyro.__version__,
        "torch": found["torch"],
        "numpy": numpy.__version__,
    }
    assert torch.__version__.split("+")[0] == found["torch"].split("+")[0]
