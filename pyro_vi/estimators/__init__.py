"""ELBO estimators by name: each is a `pyro.infer.ELBO`, usable as ``loss=`` of a plain `pyro.infer.SVI`.

* `table` finds an estimator by name; `bound` composes our own from bounds, `gradients` and treatments of the KL, on the draws
  of `sample`; `arguments` reads their options; `contract` states what the engine asks of any estimator, and `traits` brings
  Pyro's own under it; `objective` is the loss of a fit, with `free_bits` if they are asked for, and `accumulating` averages it
  over several batches.
"""

from pyro_vi.estimators.accumulating import Parts
from pyro_vi.estimators.analytic import Analytic
from pyro_vi.estimators.bound import Bound
from pyro_vi.estimators.contract import Estimator, Traits
from pyro_vi.estimators.dreg import DReG
from pyro_vi.estimators.free_bits import FreeBits
from pyro_vi.estimators.iwae import IWAE
from pyro_vi.estimators.objective import Objective
from pyro_vi.estimators.relaxed import Relaxed
from pyro_vi.estimators.renyi import Renyi
from pyro_vi.estimators.score import Mixed, Score
from pyro_vi.estimators.stl import STL
from pyro_vi.estimators.table import TABLE, get, named
from pyro_vi.estimators.traits import differentiable_loss, estimator_of, instead_of_paths, traits_of
from pyro_vi.estimators.vimco import VIMCO

__all__ = [
    "IWAE",
    "STL",
    "TABLE",
    "VIMCO",
    "Analytic",
    "Bound",
    "DReG",
    "Estimator",
    "FreeBits",
    "Mixed",
    "Objective",
    "Parts",
    "Relaxed",
    "Renyi",
    "Score",
    "Traits",
    "differentiable_loss",
    "estimator_of",
    "get",
    "instead_of_paths",
    "named",
    "traits_of",
]
