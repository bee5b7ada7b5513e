"""Estimators measured at fixed parameters, on common random draws.

* `captured` makes loss and gradient a flat function of parameters, draws and batch; `qmc` makes draws for it;
  `evaluator` evaluates many draws; `auditor` runs the audit with `accumulating` and `timing`; `result` lays it out;
  `advice` recommends an estimator.
"""

from pyro_vi.auditing.accumulating import holm
from pyro_vi.auditing.advice import advise
from pyro_vi.auditing.auditor import audit, audit_pair
from pyro_vi.auditing.evaluator import Evaluator
from pyro_vi.auditing.qmc import KINDS, noise

__all__ = [
    "KINDS",
    "Evaluator",
    "advise",
    "audit",
    "audit_pair",
    "holm",
    "noise",
]
