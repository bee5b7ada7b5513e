"""One run of a pair: the guide draws its latent sites, and the model scores these draws.

* `draw_traces` makes the run, for one draw or for K at once; `Run` holds its traces and everything that was drawn in it.

It runs the programs in whatever parameter store is in force, so that it serves a plain `pyro.infer.SVI` as well as modules, and
draws from the generators as they are.
"""

from dataclasses import dataclass
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vi.data import fresh
from pyro_vi.programs import Program, Values, trace_of_guide


@dataclass(frozen=True)
class Run:
    """Traces of one run, with log-densities.

    Attributes:
        model_trace: of the model, replayed on the guide's draws.
        guide_trace: of the guide.
        values: every value drawn in the run by site, subsamples of plates included.
        subsamples: the subsamples of plates alone.
    """

    model_trace: Any
    guide_trace: Any
    values: Values
    subsamples: Values

    @property
    def nesting(self) -> int:
        """Number of batch dimensions of the widest site: particles stand left of them."""
        nodes = [n for t in (self.model_trace, self.guide_trace) for n in t.nodes.values() if n["type"] == "sample"]
        return max((len(node["fn"].batch_shape) for node in nodes), default=0)


def draw_traces(
    model: Program, guide: Program, args: tuple[Any, ...], particles: int | None = None, nesting: int = 0
) -> Run:
    """Run the guide, and the model on its draws.

    Args:
        model: generative program.
        guide: variational program.
        args: the batch.
        particles: K draws at once, in an outer plate at dimension ``-1 - nesting``; by default one draw, in no plate.
        nesting: number of batch dimensions right of the particles.
    """
    if particles is not None:
        plate = pyro.plate(PARTICLES, particles, dim=-1 - nesting)
        model, guide = plate(model), plate(guide)
    args = fresh(args)
    guide_trace = trace_of_guide(guide, args)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    values = {
        name: node["value"]
        for trace in (model_trace, guide_trace)
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and isinstance(node["value"], Tensor)
    }
    values.pop(PARTICLES, None)
    model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
    subsamples = {n: v for n, v in values.items() if n not in model_trace.nodes and n not in guide_trace.nodes}
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    return Run(model_trace, guide_trace, values, subsamples)


PARTICLES = "_particles"
"""Name of the plate in which many draws are made at once."""
