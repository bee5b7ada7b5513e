"""Small utilities that use nothing of the package but its exceptions.

* `specs`: names with options, such as ``vae(latent_dim=8)``.
* `numbers`: checks of arguments that are numbers, words or flags.
* `leaves`: the tensors that a result has gradients in.
* `locks`: one writer at a time in a folder.
* `writing`: atomic writing of files; `html`: what a notebook shows.
* `randomness`: state and seeds of the random generators that programs draw from.
* `threads`: the number of threads for a fit.
* `packages`: versions of the packages that results depend on.
* `lazy`: names of a package that are imported when they are first used.
* `private`, `torch_internals`, `pyro_internals`: the parts of other packages that are not public.
"""

from typing import TYPE_CHECKING

from pyro_vi.support.lazy import lazily

if TYPE_CHECKING:
    from pyro_vi.support.html import html_block, pictures_in
    from pyro_vi.support.leaves import leaves_of
    from pyro_vi.support.locks import NO_LINK, Lock
    from pyro_vi.support.numbers import Real, Whole, flag, real, seed_from, shown, whole, word
    from pyro_vi.support.packages import versions
    from pyro_vi.support.randomness import (
        generators,
        kept_generators,
        seed_generators,
        set_generators,
        torch_generators,
    )
    from pyro_vi.support.specs import check_options, parse, unknown
    from pyro_vi.support.threads import fitting_threads
    from pyro_vi.support.writing import (
        finite,
        keep_as,
        make_folder,
        remove_temporary,
        slug,
        unwritable,
        write_json,
        write_through,
    )
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "NO_LINK",
    "Lock",
    "Real",
    "Whole",
    "check_options",
    "finite",
    "fitting_threads",
    "flag",
    "generators",
    "html_block",
    "keep_as",
    "kept_generators",
    "leaves_of",
    "make_folder",
    "parse",
    "pictures_in",
    "real",
    "remove_temporary",
    "seed_from",
    "seed_generators",
    "set_generators",
    "shown",
    "slug",
    "torch_generators",
    "unknown",
    "unwritable",
    "versions",
    "whole",
    "word",
    "write_json",
    "write_through",
]
