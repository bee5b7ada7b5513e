"""Rules of `check` that run a pair again: on several draws at once, or on other rows."""

from collections.abc import Iterator

import torch

from pyro_vi.checking.findings import Finding, View
from pyro_vi.elbo import draws_at_once
from pyro_vi.errors import InputError
from pyro_vi.programs import isolated, kept_buffers


def batch_norm(view: View) -> Iterator[Finding]:
    """Batch norm where the last batch has one row."""
    if view.flat and view.smallest == 1:
        text = "the last batch of an epoch has one row, of which batch norm cannot take a variance"
        yield Finding("batch-norm", "error", None, text, "use another batch_size, or drop_last=True")


def vectorized(view: View) -> Iterator[Finding]:
    """Many draws in one run of programs that are not written for it."""
    elbo = view.elbo
    wanted = getattr(elbo, "vectorize_particles", False) or getattr(elbo, "vectorize", False)
    if not wanted or getattr(elbo, "num_particles", 1) < 2 or view.run is None:
        return
    with torch.no_grad(), isolated(seed=0, validation=False), kept_buffers(view.pair):
        try:
            fits = draws_at_once(view.pair.model, view.pair.guide, view.args, view.run)
        except InputError:  # a site that is summed out
            return
    if not fits:
        text = "vectorize_particles puts all draws into one run, which gives other numbers than single runs of these programs"
        remedy = "leave vectorize_particles out, or let the programs take a batch dimension on the left"
        yield Finding("not-vectorizable", "error", None, text, remedy)
