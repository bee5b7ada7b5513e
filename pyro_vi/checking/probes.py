"""Rules of `check` that run a pair again: on several draws at once, or on other rows."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_vi.checking.estimates import Estimates, apart, loss_of, two_estimates
from pyro_vi.checking.findings import Finding, View
from pyro_vi.data import changed, length_of, part
from pyro_vi.elbo import Terms, draw_traces, draws_at_once, from_run
from pyro_vi.errors import InputError, of_program
from pyro_vi.programs import Give, data_plate_of, isolated, kept_buffers


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
        both = _with_and_without(view)
        shown = f" ({both.words('in one run', 'in single runs')})" if both is not None and both.differ else ""
        text = f"vectorize_particles puts all draws into one run, which gives other numbers than single runs{shown}"
        remedy = "leave vectorize_particles out, or let the programs take a batch dimension on the left"
        yield Finding("not-vectorizable", "error", None, text, remedy)


def _with_and_without(view: View) -> Estimates | None:
    elbo: Any = view.elbo
    single = copy.deepcopy(elbo)
    name = "vectorize" if hasattr(single, "vectorize") else "vectorize_particles"
    setattr(single, name, False)
    return two_estimates(view, loss_of(view, copy.deepcopy(elbo)), loss_of(view, single))


def last_batch(view: View) -> Iterator[Finding]:
    """Programs that fail on as many rows as the last batch of an epoch has."""
    rows = view.smallest
    if rows is None or rows >= view.length:
        return
    few = part(view.args, 0, rows)
    said = ""
    try:
        with apart(view):
            terms = from_run(draw_traces(view.pair.model, view.pair.guide, few), length_of(few), kl="sampled")
        if not bool(terms.loss.isfinite().all()):
            said = "the loss is not finite"
    except Exception as error:
        said = of_program(error).rstrip(":")
    if said:
        text = f"the last batch of an epoch has {rows} row{'s' * (rows > 1)}, not {view.length}, and there {said}"
        yield Finding("last-batch", "error", None, text, "use another batch_size, or drop_last=True")


def rows_shuffled(view: View) -> Iterator[Finding]:
    """Minibatches in a new order each epoch, for rows whose order means something."""
    if not view.minibatches or view.planned.shuffle is False or view.run is None or view.length < 2:
        return
    if view.run.subsamples and any(len(v) != view.length for v in view.run.subsamples.values() if v.dim()):
        return  # the programs draw rows themselves
    order = torch.randperm(view.length, generator=torch.Generator().manual_seed(0))
    first, again = _terms(view, None, 0), _terms(view, None, 1)
    if first is None or again is None or not _close(first.elbo, again.elbo):
        return  # the programs draw more than sites
    other = _terms(view, order, 0)
    if other is None:
        return
    expected = first.elbo[..., order] if first.rows == view.length else first.elbo
    if expected.shape == other.elbo.shape and not _close(expected, other.elbo):
        one, two = (float(terms.loss) / terms.num_data for terms in (first, other))
        text = (
            f"the same {view.length} rows in another order have another loss ({one:.3f} and {two:.3f} nats per datum on the "
            "same draws), and each epoch shuffles them"
        )
        remedy = "use shuffle=False, or batch_size=None, if the rows are a series or have parameters of their own"
        yield Finding("rows-shuffled", "error", None, text, remedy)


def _close(one: Tensor, two: Tensor) -> bool:
    tolerance = 1e-3 if one.dtype == torch.float32 else 1e-7
    return one.shape == two.shape and torch.allclose(one, two, rtol=tolerance, atol=tolerance)


def _terms(view: View, order: Tensor | None, seed: int) -> Terms | None:
    """Terms of the draws of the first run, all in another order; None if the programs fail on it."""
    assert view.run is not None
    plate = data_plate_of(view.model_trace)
    frames = {
        n: node["cond_indep_stack"]
        for t in (view.model_trace, view.guide_trace)
        for n, node in t.nodes.items()
        if node["type"] == "sample"
    }
    events = {
        n: len(node["fn"].event_shape)
        for t in (view.model_trace, view.guide_trace)
        for n, node in t.nodes.items()
        if node["type"] == "sample"
    }

    def moved(name: str, value: Tensor) -> Tensor:
        value = value.detach()
        if order is None or plate is None or all(f.name != plate.name for f in frames.get(name, ())):
            return value
        dim = plate.dim - events[name]
        inside = value.dim() >= -dim and value.shape[dim] == view.length
        return value.index_select(dim, order) if inside else value

    args = view.args
    if order is not None:
        args = changed(args, lambda v: v[order] if v.dim() and len(v) == view.length else v)
    values = {name: moved(name, value) for name, value in view.run.values.items() if name not in view.run.subsamples}
    try:
        with apart(view, seed), Give(values):
            return from_run(draw_traces(view.pair.model, view.pair.guide, args), view.length, kl="sampled")
    except Exception:  # of a program that takes these rows only
        return None
