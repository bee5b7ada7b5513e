"""One fit, from its plan to its last checkpoint.

* `svi` assembles a fit, and `starts` repeats it from other initial parameters; `plan` decides which rows are in each step, and
  `planned` looks at the fit before its first one; `settings` holds the options and their defaults, and
  `annealing` the weight of the KL over the steps; `loop` takes the steps.
* `optimizers`, `named_optimizers` and `pyro_optimizers` make the optimizer, `rate_free` has those without a rate, `averaging`
  averages its iterates, `plateau` lowers the rate when the ELBO no longer rises, `stepping` steps it, and `checkpoints` keeps
  its state; `identity` names what has changed since a run was made.
* `records` makes the records, `sites` names their columns for the terms of sites, and `callbacks` hands them to the user's
  functions; `convergence` says whether the loss has converged; `best` keeps the parameters of the best record.
* `guarded` leaves out steps whose loss or gradient is not finite, with the counts of `nonfinite`; `failures`, `causes` and
  `ending` explain them.
* `interrupt` delays SIGINT and SIGTERM; `progress` shows the progress bar; `runs` is the result.
* `folder` is the run on disk; `sealed` writes files with a checksum; `reading` reads what is intact; `calls` says how the
  run was called; `plausible` refuses what no fit writes, and `trusting` code that another user's folder names.
"""

from pyro_vi.fitting.best import Best, best_in, refuse_unscored
from pyro_vi.fitting.calls import fits_in, given, given_of, refuse_code
from pyro_vi.fitting.folder import RunFolder, checksum
from pyro_vi.fitting.identity import names_of
from pyro_vi.fitting.loop import Loop, Settings
from pyro_vi.fitting.optimizers import recipe_of
from pyro_vi.fitting.plan import Plan
from pyro_vi.fitting.planned import findings_of, refuse_options
from pyro_vi.fitting.plausible import wrong_state
from pyro_vi.fitting.reading import (
    BEST,
    CHECKPOINT,
    config_of,
    holds_run,
    load_parameters,
    newest,
    parameters_of,
    put_into,
    read_snapshot,
    read_starts,
)
from pyro_vi.fitting.records import scored
from pyro_vi.fitting.runs import Run, described, left_out, parent_of, said_of_best
from pyro_vi.fitting.settings import Options
from pyro_vi.fitting.sites import LATENT, OBSERVED
from pyro_vi.fitting.svi import fit, fit_pair, fractions, plan_of
from pyro_vi.fitting.trusting import refuse_foreign

__all__ = [
    "BEST",
    "CHECKPOINT",
    "LATENT",
    "OBSERVED",
    "Best",
    "Loop",
    "Options",
    "Plan",
    "Run",
    "RunFolder",
    "Settings",
    "best_in",
    "checksum",
    "config_of",
    "described",
    "findings_of",
    "fit",
    "fit_pair",
    "fits_in",
    "fractions",
    "given",
    "given_of",
    "holds_run",
    "left_out",
    "load_parameters",
    "names_of",
    "newest",
    "parameters_of",
    "parent_of",
    "plan_of",
    "put_into",
    "read_snapshot",
    "read_starts",
    "recipe_of",
    "refuse_code",
    "refuse_foreign",
    "refuse_options",
    "refuse_unscored",
    "said_of_best",
    "scored",
    "wrong_state",
]
