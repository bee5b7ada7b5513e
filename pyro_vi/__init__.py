"""A workbench for variational inference in Pyro.

>>> import pyro_vi
>>> run = pyro_vi.fit("vae", "diag_normal", "digits", steps=5, progress=False)

The functions below are all that most people need; the folders of this package hold their parts. Each is imported when it is
first used. Importing `pyro_vi.elbo` registers closed forms of the KL that torch lacks (see `pyro_vi.elbo.kl`); whatever fits or
measures a pair imports it.
"""

from typing import TYPE_CHECKING

from pyro_vi.support.lazy import lazily

if TYPE_CHECKING:
    from pyro_vi import estimators
    from pyro_vi.afterwards import OpenedRun, compare, open, refitted_calibration, report, resume, writers
    from pyro_vi.auditing import audit
    from pyro_vi.checking import Finding, check
    from pyro_vi.comparing import Comparison
    from pyro_vi.data import Data, DataSpec, load
    from pyro_vi.diagnostics import (
        calibration,
        collapse,
        diagnose,
        evidence,
        gaps,
        linear_response,
        moments,
        reliability,
    )
    from pyro_vi.elbo import Terms, terms
    from pyro_vi.errors import FitError, InputError, UsageError
    from pyro_vi.fitting import Run, fit
    from pyro_vi.overview import Layout, show
    from pyro_vi.reporting.datatree import to_datatree
    from pyro_vi.reporting.pictures.plotting import plot
    from pyro_vi.reporting.plots_of_calibration import plot_calibration
    from pyro_vi.reporting.predicting import predictive
    from pyro_vi.support.packages import VERSION as __version__  # noqa: F401
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "Comparison",
    "Data",
    "DataSpec",
    "Finding",
    "FitError",
    "InputError",
    "Layout",
    "OpenedRun",
    "Run",
    "Terms",
    "UsageError",
    "audit",
    "calibration",
    "check",
    "collapse",
    "compare",
    "diagnose",
    "estimators",
    "evidence",
    "fit",
    "gaps",
    "linear_response",
    "load",
    "moments",
    "open",
    "plot",
    "plot_calibration",
    "predictive",
    "refitted_calibration",
    "reliability",
    "report",
    "resume",
    "show",
    "terms",
    "to_datatree",
    "writers",
]
