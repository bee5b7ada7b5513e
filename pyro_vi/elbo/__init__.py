"""Draws of a pair, decomposed: log p, log q and KL for each site and each datum.

* `traces` makes one run of a pair; `decomposition` takes it apart into `Terms`, with the closed forms of `kl` where `closed`
  does not refuse them; `draws` makes many draws; `heldout` averages them into the ELBO of given data.
* `units` splits the KL of a site over its latent dimensions.
* `weights` sums sites out and gives log-weights; `facts` finds what can be reported of a pair; `measured` reports it;
  `completed` draws summed sites from their posterior.
"""

from pyro_vi.elbo.closed import Reasons, apart, by_dependence, dependence_of, has_closed_form, refused, shared
from pyro_vi.elbo.completed import posterior_trace
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
from pyro_vi.elbo.facts import (
    ELBO,
    Facts,
    entry_mask,
    facts_of,
    nesting_of,
    one_run,
    own_scale,
    quoted,
    refuse_no_density,
    site_mask,
)
from pyro_vi.elbo.heldout import Evaluation, evaluate, standard_error
from pyro_vi.elbo.measured import at_once, blocks, log_predictive, measure, predictable, stream_weights
from pyro_vi.elbo.traces import Run, draw_traces
from pyro_vi.elbo.units import Units, units_of
from pyro_vi.elbo.weights import Keep, Weight, density_of, enumerated_run, summed_weight, weight_of_terms

__all__ = [
    "ELBO",
    "KL",
    "MEMORY",
    "UNANNEALED",
    "Evaluation",
    "Facts",
    "KLSource",
    "Keep",
    "Reasons",
    "Run",
    "SiteTerms",
    "Terms",
    "Units",
    "Weight",
    "apart",
    "at_once",
    "blocks",
    "by_dependence",
    "chunk_of",
    "density_of",
    "dependence_of",
    "draw_terms",
    "draw_traces",
    "draws_at_once",
    "entry_mask",
    "enumerated_run",
    "evaluate",
    "facts_of",
    "from_run",
    "has_closed_form",
    "length_of",
    "log_predictive",
    "measure",
    "nesting_of",
    "one_run",
    "own_scale",
    "posterior_trace",
    "predictable",
    "quoted",
    "refuse_no_density",
    "refuse_own_minibatch",
    "refuse_unguided",
    "refused",
    "shared",
    "site_mask",
    "standard_error",
    "stream",
    "stream_weights",
    "subsampled",
    "summed_weight",
    "terms",
    "terms_of_pair",
    "units_of",
    "unwrapped",
    "vectorizes",
    "weight_of_terms",
]
