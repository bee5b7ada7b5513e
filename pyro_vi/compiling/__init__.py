"""Whole optimisation steps as machine code; see README.md beside this file.

* `step` is one step as a pure function; `inductor` compiles a graph, with the faster forms of `decompositions` and
  `products`; `steps` holds compiled steps and proves them; `choice` decides whether compiling pays.
"""

from pyro_vi.compiling.choice import (
    COMPILING,
    PER_NODE,
    Choice,
    Compile,
    check_mode,
    choose,
    lengths_to_come,
    refuse_without_compiler,
)
from pyro_vi.compiling.inductor import Compiled, compile_graph, why_not
from pyro_vi.compiling.step import MANY, Optimizer, WholeStep
from pyro_vi.compiling.steps import CompiledSteps, Raised, agree

__all__ = [
    "COMPILING",
    "MANY",
    "PER_NODE",
    "Choice",
    "Compile",
    "Compiled",
    "CompiledSteps",
    "Optimizer",
    "Raised",
    "WholeStep",
    "agree",
    "check_mode",
    "choose",
    "compile_graph",
    "lengths_to_come",
    "refuse_without_compiler",
    "why_not",
]
