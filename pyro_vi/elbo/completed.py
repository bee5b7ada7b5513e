"""Draws of all latents of a pair given the data, also of the sites that the guide leaves to enumeration.

`posterior_trace` runs the model on draws of the guide, and draws the sites that are summed out from their posterior.
"""

from typing import Any

import pyro
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.poutine.util import prune_subsample_sites

from pyro_vi.data import Batch, fresh
from pyro_vi.elbo.facts import Facts, nesting_of
from pyro_vi.elbo.traces import PARTICLES, draw_traces
from pyro_vi.elbo.weights import Keep
from pyro_vi.programs import Pair, trace_of_guide


def posterior_trace(pair: Pair, args: Batch, facts: Facts, count: int | None) -> Any:
    """A trace of the model on one draw of the guide, or on ``count`` draws at once; nothing in it is a draw from the prior.

    A site that is summed out is drawn from p(k | x, z) given the guide's draw of the others, by `pyro.infer.infer_discrete`.
    """
    nesting = nesting_of(pair, args)
    if not facts.summed:
        return draw_traces(pair.model, pair.guide, args, count, nesting).model_trace
    model: Any = pair.model
    guide: Any = pair.guide
    if count is not None:
        plate = pyro.plate(PARTICLES, count, dim=-1 - nesting)
        model, guide = plate(model), plate(guide)
    args = fresh(args)
    guide_trace: Any = trace_of_guide(guide, args)
    given = _Given(guide_trace)
    kept = given(model)  # innermost, because infer_discrete hides the handlers around it from the model
    sampled = infer_discrete(kept, first_available_dim=-1 - nesting - (count is not None), temperature=1)
    trace = prune_subsample_sites(poutine.trace(sampled).get_trace(*args))
    for name in given.values:
        if name in trace.nodes:
            trace.nodes[name]["is_observed"] = False
    return trace


class _Given(Keep):
    """Keep the guide's draws as if they were observed: infer_discrete would take their event dimensions for batch dimensions
    where their prior depends on a discrete site."""

    def _pyro_sample(self, msg: Any) -> None:
        latent = not msg["is_observed"]
        super()._pyro_sample(msg)
        msg["is_observed"] = msg["is_observed"] or (latent and msg["name"] in self.values)
