"""Small modules that know nothing of the rest.

* `specs`: names with options, such as ``vae(latent_dim=8)``; `writing`: files written whole; `randomness`: the
  generators that programs draw from; `threads`: how many threads a computation is worth; `packages`: versions of what
  the numbers depend on.
"""

from pyro_vi.support.packages import versions
from pyro_vi.support.randomness import generators, kept_generators, seed_generators, set_generators
from pyro_vi.support.specs import check_options, parse, unknown
from pyro_vi.support.threads import fitting_threads
from pyro_vi.support.writing import finite, make_folder, slug, write_json, write_through

__all__ = [
    "check_options",
    "finite",
    "fitting_threads",
    "generators",
    "kept_generators",
    "make_folder",
    "parse",
    "seed_generators",
    "set_generators",
    "slug",
    "unknown",
    "versions",
    "write_json",
    "write_through",
]
