"""Draws of a pair, decomposed: log p, log q and KL for each site and each datum.

* `traces` makes one run of a pair; `decomposition` takes it apart into `Terms`, with the closed forms of `kl`;
  `draws` makes many draws; `heldout` averages them into the ELBO of given data.
"""

from pyro_vi.elbo.decomposition import (
    KL,
    KLSource,
    SiteTerms,
    Terms,
    from_run,
    length_of,
    terms,
    terms_of_pair,
)
from pyro_vi.elbo.draws import (
    MEMORY,
    chunk_of,
    draw_terms,
    draws_at_once,
    refuse_own_minibatch,
    refuse_unguided,
    stream,
    vectorizes,
)
from pyro_vi.elbo.heldout import Evaluation, evaluate, standard_error
from pyro_vi.elbo.traces import Run, draw_traces

__all__ = [
    "KL",
    "MEMORY",
    "Evaluation",
    "KLSource",
    "Run",
    "SiteTerms",
    "Terms",
    "chunk_of",
    "draw_terms",
    "draw_traces",
    "draws_at_once",
    "evaluate",
    "from_run",
    "length_of",
    "refuse_own_minibatch",
    "refuse_unguided",
    "standard_error",
    "stream",
    "terms",
    "terms_of_pair",
    "vectorizes",
]
