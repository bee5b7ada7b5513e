"""Draws of a pair, decomposed: log p, log q and KL for each site and each datum.

* `traces` makes one run of a pair; `decomposition` takes it apart into `Terms`, with the closed forms of `kl` where `closed`
  does not refuse them; `draws` makes many draws; `heldout` averages them into the ELBO of given data.
"""

from pyro_vi.elbo.closed import Reasons, apart, by_dependence, dependence_of, has_closed_form, refused, shared
from pyro_vi.elbo.decomposition import (
    KL,
    UNANNEALED,
    KLSource,
    SiteTerms,
    Terms,
    from_run,
    length_of,
    terms,
    terms_of_pair,
    unwrapped,
)
from pyro_vi.elbo.draws import (
    MEMORY,
    chunk_of,
    draw_terms,
    draws_at_once,
    refuse_own_minibatch,
    refuse_unguided,
    stream,
    subsampled,
    vectorizes,
)
from pyro_vi.elbo.heldout import Evaluation, evaluate, standard_error
from pyro_vi.elbo.traces import Run, draw_traces

__all__ = [
    "KL",
    "MEMORY",
    "UNANNEALED",
    "Evaluation",
    "KLSource",
    "Reasons",
    "Run",
    "SiteTerms",
    "Terms",
    "apart",
    "by_dependence",
    "chunk_of",
    "dependence_of",
    "draw_terms",
    "draw_traces",
    "draws_at_once",
    "evaluate",
    "from_run",
    "has_closed_form",
    "length_of",
    "refuse_own_minibatch",
    "refuse_unguided",
    "refused",
    "shared",
    "standard_error",
    "stream",
    "subsampled",
    "terms",
    "terms_of_pair",
    "unwrapped",
    "vectorizes",
]
