"""A workbench for variational inference in Pyro.

>>> import pyro_vi
>>> run = pyro_vi.fit("vae", "diag_normal", "digits", steps=5, progress=False)

The functions below are all that most people need; modules of the same name hold them with their parts. Importing this
package also registers closed forms of the KL that torch lacks (see `pyro_vi.kl`).
"""

from importlib.metadata import version

from pyro_vi import estimators
from pyro_vi.audit import audit
from pyro_vi.check import Finding, check
from pyro_vi.compare import Comparison, compare
from pyro_vi.data import Data, DataSpec, load
from pyro_vi.errors import FitError, InputError, UsageError
from pyro_vi.evidence import evidence
from pyro_vi.export import to_datatree
from pyro_vi.fit import Run, fit
from pyro_vi.terms import Terms, terms

__version__ = version("pyro-vi")

__all__ = [
    "Comparison",
    "Data",
    "DataSpec",
    "Finding",
    "FitError",
    "InputError",
    "Run",
    "Terms",
    "UsageError",
    "audit",
    "check",
    "compare",
    "estimators",
    "evidence",
    "fit",
    "load",
    "terms",
    "to_datatree",
]
