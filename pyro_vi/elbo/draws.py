"""Many draws of a pair on a batch: at once where the programs allow it, one by one elsewhere, the memory bounded.

* `vectorizes` tries a pair in an outer plate of particles and compares it with single runs on the same values.
* `stream` yields the `Terms` of many draws, a chunk at a time; `evaluate` averages them per datum.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_vi.data import Batch, length_of, tensors_in
from pyro_vi.elbo.closed import dependence_of
from pyro_vi.elbo.decomposition import KL, Terms, from_run
from pyro_vi.elbo.traces import Run, draw_traces
from pyro_vi.errors import InputError
from pyro_vi.programs import Give, Pair, Program, isolated, kept_buffers

MEMORY = 2**19
"""Numbers that a tensor of one chunk may hold (draws × rows × numbers in a datum): enough that the programs' own time does not
show, and no more than the processor's caches hold."""


def vectorizes(pair: Pair, args: Batch) -> bool:
    """True if the pair can make many draws in one run: their terms must equal those of single runs on the same values.

    A program that is not written for a further batch dimension on the left may fail in it, or silently give wrong
    numbers; both are found here, on two draws.
    """
    with torch.no_grad(), isolated(seed=0, validation=False), kept_buffers(pair):
        return draws_at_once(pair.model, pair.guide, args, draw_traces(pair.model, pair.guide, args))


def draws_at_once(model: Program, guide: Program, args: tuple[Any, ...], single: Run) -> bool:
    """Compare two draws in one run with two runs on the same values; see `vectorizes`.

    Args:
        model: generative program.
        guide: variational program.
        args: the batch.
        single: a run of the pair on it, in which the plates of the programs drew their subsamples.
    """

    def elbo_per_datum(run: Run) -> Tensor:
        refuse_unguided(run)
        return from_run(run, length_of(args), kl="sampled").elbo

    try:
        with Give(single.subsamples):
            many = draw_traces(model, guide, args, 2, single.nesting)
        together = elbo_per_datum(many)
        apart = []
        for k in range(2):
            values = {}
            for name, value in many.values.items():
                like = single.values[name]
                if name in many.guide_trace.nodes:
                    if value.shape[:1] != (2,) or value[k].numel() != like.numel():
                        return False
                    value = value[k].reshape(like.shape)
                values[name] = value
            with Give(values):
                apart.append(elbo_per_datum(draw_traces(model, guide, args)))
    except Exception:  # whatever a program raises in a form that it is not written for; by itself it has run already
        return False
    expected = torch.stack(apart)
    tolerance = 1e-4 if expected.dtype == torch.float32 else 1e-9
    return together.shape == expected.shape and torch.allclose(together, expected, rtol=tolerance, atol=tolerance)


def stream(
    pair: Pair, args: Batch, draws: int, *, kl: KL = "analytic", vectorized: bool | None = None
) -> Iterator[Terms]:
    """Terms of ``draws`` draws without gradients, in chunks: the tensors of each have the draws as first dimension.

    Uses the generators as they are; call it within `pyro_vi.programs.isolation.isolated`. If the programs draw a minibatch of
    their own, a row is another datum in each draw, and only means over rows have a meaning.
    """
    if vectorized is None:
        vectorized = draws > 1 and vectorizes(pair, args)
    chunk, nesting = chunk_of(pair, args) if vectorized else (1, 0)
    with torch.no_grad():
        for start in range(0, draws, chunk):
            yield draw_terms(pair, args, min(chunk, draws - start) if vectorized else None, nesting, kl)


def chunk_of(pair: Pair, args: Batch) -> tuple[int, int]:
    """The number of draws to make at once, and of batch dimensions right of theirs."""
    layout, guide = pair.layouts(args)
    nesting = max(layout.max_plate_nesting, guide.max_plate_nesting)
    sites = (*layout.sites.values(), *guide.sites.values())
    widest = max([a.numel() for a in tensors_in(args)] + [site.numel for site in sites])
    return max(1, MEMORY // max(1, widest)), nesting


def draw_terms(pair: Pair, args: Batch, particles: int | None, nesting: int, kl: KL) -> Terms:
    """Terms of one draw, or of some at once, from the generators as they are.

    Raises:
        InputError: the guide lacks a site.
    """
    run = draw_traces(pair.model, pair.guide, args, particles, nesting)
    refuse_unguided(run)
    if kl == "analytic" and dependence_of(pair, args, run):
        # The KL of one site is sampled then, and its noise cancels against that of the others only where they are too.
        kl = "sampled"
    return from_run(run, length_of(args), kl=kl)


def refuse_own_minibatch(pair: Pair, args: Batch) -> None:
    """Raise InputError if the data plate holds other rows than the batch: its terms then belong to no datum of the batch."""
    plate, given = pair.layouts(args)[0].data_plate, length_of(args)
    if plate is not None and plate.length != given:
        raise InputError(
            f"plate '{plate.name}' holds {plate.length} of the {given} rows that the programs are called with: each draw of "
            "their own minibatch has different data; call the programs with minibatches instead"
        )


def subsampled(*traces: Any) -> str | None:
    """The name of a plate of some traces that holds a part of its data, or None."""
    for trace in traces:
        for node in trace.nodes.values():
            for frame in node["cond_indep_stack"] if node["type"] == "sample" else ():
                if frame.size != frame.full_size:
                    return str(frame.name)
    return None


def refuse_unguided(run: Run) -> None:
    """Raise InputError for a latent site that the guide lacks: drawn from the prior, it has no term in an ELBO."""
    for name, node in run.model_trace.nodes.items():
        if node["type"] == "sample" and not node["is_observed"] and name not in run.guide_trace.nodes:
            raise InputError(
                f"the guide has no site '{name}', so the ELBO has no terms for it but under an estimator that sums it out "
                f"('enum'); sample '{name}' in the guide"
            )
