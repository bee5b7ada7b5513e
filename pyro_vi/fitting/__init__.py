"""One fit, from its plan to its last checkpoint.

* `svi` assembles a fit; `plan` decides which rows are in each step; `settings` holds the options and their defaults; `loop`
  takes the steps.
* `optimizers` and `pyro_optimizers` make the optimizer, `stepping` steps it, and `checkpoints` keeps its state; `identity`
  names what has changed since a run was made.
* `records` makes the records; `failures` explains a loss that is not finite; `interrupt` delays SIGINT and SIGTERM;
  `progress` shows the progress bar.
* `folder` is the run on disk; `sealed` writes files with a checksum; `reading` reads what is intact; `calls` says how the
  run was called.
"""

from pyro_vi.fitting.calls import given, given_of
from pyro_vi.fitting.interrupt import Terminated
from pyro_vi.fitting.loop import Loop, Settings
from pyro_vi.fitting.optimizers import recipe_of
from pyro_vi.fitting.plan import Plan
from pyro_vi.fitting.reading import config_of, holds_run, load_parameters
from pyro_vi.fitting.settings import Options
from pyro_vi.fitting.svi import Run, findings_of, fit, fit_pair, names_of, plan_of

__all__ = [
    "Loop",
    "Options",
    "Plan",
    "Run",
    "Settings",
    "Terminated",
    "config_of",
    "findings_of",
    "fit",
    "fit_pair",
    "given",
    "given_of",
    "holds_run",
    "load_parameters",
    "names_of",
    "plan_of",
    "recipe_of",
]
