"""Whole optimisation steps as machine code; see README.md beside this file.

* `step` writes one step as a pure function.
* `inductor` compiles a graph, with the faster operations of `decompositions` and `products`.
* `steps` holds the compiled steps of a fit, and proves that they do what the eager steps do.
* `cost` estimates the time that compiling takes and saves, and `choice` decides whether to compile.
"""

from pyro_vi.compiling.choice import (
    Choice,
    Compile,
    check_mode,
    choose,
    lengths_to_come,
    refuse_without_compiler,
)
from pyro_vi.compiling.cost import Estimate, eager_because, estimate_step, measure, to_compile
from pyro_vi.compiling.inductor import Compiled, compile_graph, why_not
from pyro_vi.compiling.step import MANY, Optimizer, WholeStep
from pyro_vi.compiling.steps import CompiledSteps, Raised, agree

__all__ = [
    "MANY",
    "Choice",
    "Compile",
    "Compiled",
    "CompiledSteps",
    "Estimate",
    "Optimizer",
    "Raised",
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
