"""A model and a guide as a `Pair`: two modules that own their parameters.

* `lookup` finds the program that a name refers to; `copying` copies it; `binding` makes the copy a module that owns its
  parameters; `build` makes the pair of both, with `autoguides` for guides of Pyro's; `pair` defines `Pair`.
* `layout` reads sites and plates; `messages` names programs and says why they fail; `latents` reads the latent sites for a
  guide; `supports` says where a distribution has values; `numbering` serves guides with parameters for each row; `handlers`
  fix or relax draws; `isolation` runs programs without side effects.
"""

from pyro_vi.programs.binding import draw, trace_of_guide
from pyro_vi.programs.build import build_pair, called, pair_and_args, pair_of
from pyro_vi.programs.handlers import Give, Relax, Straighten, Values
from pyro_vi.programs.isolation import Program, evaluating, isolated, kept_buffers, moved_parameters
from pyro_vi.programs.latents import Datum, Latent, LatentPlate, Reading
from pyro_vi.programs.layout import (
    ModelPlate,
    Plate,
    Prototype,
    Site,
    data_frame,
    data_plate,
    data_plate_of,
    prototype,
    role_of,
)
from pyro_vi.programs.lookup import Source, name_of, resolve, with_options
from pyro_vi.programs.messages import describe, shapes_of, title
from pyro_vi.programs.numbering import takes_row_numbers, without_numbers
from pyro_vi.programs.pair import Pair
from pyro_vi.programs.supports import bare, innermost, inside, masked_by, range_of, support_of, words_of
from pyro_vi.programs.swapping import swapped

__all__ = [
    "Datum",
    "Give",
    "Latent",
    "LatentPlate",
    "ModelPlate",
    "Pair",
    "Plate",
    "Program",
    "Prototype",
    "Reading",
    "Relax",
    "Site",
    "Source",
    "Straighten",
    "Values",
    "bare",
    "build_pair",
    "called",
    "data_frame",
    "data_plate",
    "data_plate_of",
    "describe",
    "draw",
    "evaluating",
    "innermost",
    "inside",
    "isolated",
    "kept_buffers",
    "masked_by",
    "moved_parameters",
    "name_of",
    "pair_and_args",
    "pair_of",
    "prototype",
    "range_of",
    "resolve",
    "role_of",
    "shapes_of",
    "support_of",
    "swapped",
    "takes_row_numbers",
    "title",
    "trace_of_guide",
    "with_options",
    "without_numbers",
    "words_of",
]
