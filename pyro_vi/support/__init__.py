"""Small utilities that use nothing of the package but its exceptions.

* `specs`: names with options, such as ``vae(latent_dim=8)``.
* `writing`: atomic writing of files.
* `randomness`: state and seeds of the random generators that programs draw from.
* `threads`: the number of threads for a fit.
* `packages`: versions of the packages that results depend on.
* `private`, `torch_internals`, `pyro_internals`: the parts of other packages that are not public.
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
