"""Whole optimisation steps as machine code; see README.md beside this file.

* `losses` captures loss and gradients as a flat graph, and proves it. `held` has the tensors that a step changes.
* `captured` holds the captured steps of a fit: `simplify` makes the graph smaller, and `replay` carries it out on fixed memory.
* `step` writes a whole step, with the optimizer, as a pure function.
* `inductor` compiles a graph, with the faster operations of `decompositions` and `products`.
* `steps` holds the compiled steps of a fit, and proves that they do what the eager steps do; `proof` compares numbers.
* `background` compiles a step in another process, `worker`, to which `written` hands its graph, while captured steps go on.
* `cost` estimates the time that compiling takes and saves, and `choice` decides what steps are taken.
"""

from pyro_vi.compiling.captured import CapturedSteps
from pyro_vi.compiling.choice import (
    Choice,
    Chosen,
    Compile,
    Ways,
    check_mode,
    choose,
    lengths_to_come,
    refuse_without_compiler,
)
from pyro_vi.compiling.cost import Estimate, eager_because, estimate_step, measure, to_compile
from pyro_vi.compiling.held import Held
from pyro_vi.compiling.inductor import Compiled, compile_graph, why_not
from pyro_vi.compiling.losses import Losses
from pyro_vi.compiling.proof import agree
from pyro_vi.compiling.step import MANY, Optimizer, WholeStep
from pyro_vi.compiling.steps import CompiledSteps, Raised

__all__ = [
    "MANY",
    "CapturedSteps",
    "Choice",
    "Chosen",
    "Compile",
    "Compiled",
    "CompiledSteps",
    "Estimate",
    "Held",
    "Losses",
    "Optimizer",
    "Raised",
    "Ways",
    "WholeStep",
    "agree",
    "check_mode",
    "choose",
    "compile_graph",
    "eager_because",
    "estimate_step",
    "lengths_to_come",
    "measure",
    "refuse_without_compiler",
    "to_compile",
    "why_not",
]
