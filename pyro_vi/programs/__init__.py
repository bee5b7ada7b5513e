"""A model and a guide as a `Pair`: two modules that own their parameters.

* `lookup` finds the program that a name refers to; `build` makes the pair; `binding` turns a Pyro function into a module;
  `pair` defines `Pair`.
* `layout` reads sites and plates; `handlers` fix or relax draws; `isolation` runs programs without side effects.
"""

from pyro_vi.programs.binding import swapped
from pyro_vi.programs.build import build_pair, pair_and_args, pair_of
from pyro_vi.programs.handlers import Give, Relax, Straighten, Values
from pyro_vi.programs.isolation import Program, evaluating, isolated, kept_buffers
from pyro_vi.programs.layout import (
    ModelPlate,
    Plate,
    Prototype,
    Site,
    data_frame,
    data_plate,
    data_plate_of,
    describe,
    prototype,
    role_of,
    shapes_of,
    support_of,
    title,
)
from pyro_vi.programs.lookup import Source, name_of, resolve
from pyro_vi.programs.pair import Pair

__all__ = [
    "Give",
    "ModelPlate",
    "Pair",
    "Plate",
    "Program",
    "Prototype",
    "Relax",
    "Site",
    "Source",
    "Straighten",
    "Values",
    "build_pair",
    "data_frame",
    "data_plate",
    "data_plate_of",
    "describe",
    "evaluating",
    "isolated",
    "kept_buffers",
    "name_of",
    "pair_and_args",
    "pair_of",
    "prototype",
    "resolve",
    "role_of",
    "shapes_of",
    "support_of",
    "swapped",
    "title",
]
