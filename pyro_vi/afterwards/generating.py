"""Means of latents, means of data and draws of data, from a fitted pair.

* `latent_means` returns E_q[z | x]; `predictive_means` returns E_q[E[x | z]]; `new_rows` draws x from the model.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vi.data import Batch, Data, fresh, length_of
from pyro_vi.elbo import blocks, facts_of, posterior_trace
from pyro_vi.errors import InputError
from pyro_vi.programs import Give, Pair, evaluating, isolated, role_of, trace_of_guide
from pyro_vi.reporting.of_pairs import moment, observed, posterior_of, rows_of, trace_of

ROWS = 1000
"""Most rows that are evaluated at a time, if the pair can take rows in parts."""
SETS = 100
"""Most draws of the shared latents among the new rows."""


def latent_means(pair: Pair, args: Batch, *, draws: int = 100, seed: int = 0) -> dict[str, np.ndarray]:
    """Return E_q[z | x] of each local latent site, by name, each of shape ``(rows, *shape of one value)``.

    If the distribution of a site depends on other sites, it is averaged over ``draws`` draws of those. For a discrete site
    without a mean, the result is the probability of each state, ``(rows, ..., states)``.

    Raises:
        InputError: no latent site is local.
    """
    layout = pair.layouts(args)[0]
    names = [name for name in layout.latents if name not in layout.shared]
    if layout.data_plate is None or not names:
        raise InputError(
            "no latent site belongs to single data, so that there is nothing to embed; use posterior() instead"
        )
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with evaluating(pair), isolated(seed, validation=False), torch.no_grad():
        for block in blocks(pair, args, ROWS):
            for name, mean in _means(pair, block, names, draws).items():
                parts[name].append(mean)
    return {name: np.concatenate(found) for name, found in parts.items()}


def predictive_means(pair: Pair, args: Batch, *, draws: int = 100, seed: int = 0) -> tuple[np.ndarray, bool]:
    """Return the posterior predictive mean E_q[E[x | z]] of each row, and whether it is of the first column of the batch.

    The mean is over ``draws`` draws of z, and has the shape of the observed values.

    Raises:
        InputError: the model observes nothing, or no site has a row for each datum.
    """
    if not args or not isinstance(args[0], Tensor):
        raise InputError("the programs take no rows, so that there is nothing to reconstruct; use posterior() instead")
    parts, first = [], False
    with evaluating(pair), isolated(seed, validation=False), torch.no_grad():
        for block in blocks(pair, args, ROWS):
            facts, total = facts_of(pair, block), np.zeros(())
            for _ in range(draws):
                data, mean = observed(pair, block, posterior_trace(pair, block, facts, None))
                total = total + mean / draws
            shaped, first = _in_shape(total, data, block)
            parts.append(shaped)
    return np.concatenate(parts), first


def new_rows(pair: Pair, data: Data, count: int, *, seed: int = 0) -> tuple[np.ndarray, bool]:
    """Return draws of x from the model, and whether they are of the first column of the batch.

    Local latents are drawn from their prior, shared latents from the guide. Other inputs of the model, such as those of a
    regression, are taken from the first rows of the data, in turn. If the rows of a model are drawn together, each draw is a
    whole data set.

    Raises:
        InputError: the model observes nothing, or does not run without its observations.
    """
    shared, together = _shared_and_together(pair, data)
    whole = data.example(data.spec.num_data) if shared or together else ()
    base = whole if together else data.heldout if data.num_heldout else data.example(min(data.spec.num_data, ROWS))
    base = base if together else rows_of(base, range(min(length_of(base), ROWS)))
    size = 1 if together else min(ROWS, math.ceil(count / SETS) if shared else count)
    with evaluating(pair), isolated(seed, validation=False), torch.no_grad():
        names, first, axis = _sites_of_data(pair, base)
        found = []
        for start in range(0, count, size):
            some = min(size, count - start)
            args = base if together else rows_of(base, [(start + i) % length_of(base) for i in range(some)])
            values = _shared_draws(pair, whole, shared)
            with Give(values):
                trace: Any = poutine.trace(poutine.uncondition(pair.model)).get_trace(*fresh(args))
            drawn = [_rows_first(trace.nodes[name]["fn"], trace.nodes[name]["value"], axis) for name in names]
            one = drawn[0] if len(drawn) == 1 else torch.cat([d.reshape(len(d), -1) for d in drawn], 1)
            found.append((one.unsqueeze(0) if together else one).cpu().numpy())
    return np.concatenate(found), first


def _shared_and_together(pair: Pair, data: Data) -> tuple[list[str], bool]:
    """The shared latents, and whether all rows are drawn together, because the model takes no other number of rows."""
    few = data.example(min(data.spec.num_data, 100))
    try:
        layout = pair.layouts(few)[0]
        alone = layout.data_plate is not None and layout.data_plate.length == length_of(few)
    except InputError:  # the pair takes all rows only
        alone = False
    if alone and not layout.shared:
        return [], False
    whole = data.example(data.spec.num_data)
    layout = pair.layouts(whole)[0]
    plate = layout.data_plate
    return list(layout.shared), plate is None or plate.length != length_of(whole) or not _takes(pair, whole)


def _takes(pair: Pair, args: Batch) -> bool:
    """True if the model runs with one row less, and with one row more."""
    rows = length_of(args)
    try:
        for count in (max(1, rows - 1), rows + 1):
            with isolated(0, validation=False), torch.no_grad():
                trace_of(pair.model, fresh(rows_of(args, [i % rows for i in range(count)])))
    except Exception:  # whatever a program raises on rows that it is not written for
        return False
    return True


def _shared_draws(pair: Pair, args: Batch, shared: list[str]) -> dict[str, Tensor]:
    if not shared:
        return {}
    nodes = trace_of_guide(pair.guide, fresh(args)).nodes
    return {name: nodes[name]["value"] for name in shared if name in nodes}


def _sites_of_data(pair: Pair, args: Batch) -> tuple[list[str], bool, int | None]:
    """Names of the observed sites, whether they are the first column of the batch, and the dimension of the data plate."""
    layout = pair.layouts(args)[0]
    axis = None if layout.data_plate is None else layout.data_plate.dim
    nodes: Any = prune_subsample_sites(posterior_of(pair, args)).nodes
    names = [n for n, node in nodes.items() if node["type"] == "sample" and role_of(node) == "observed"]
    if not names:
        raise InputError("the model has no observed site, so there is nothing to draw; add one with obs=")
    x = args[0] if args and isinstance(args[0], Tensor) else None
    mine = [n for n in names if x is not None and _same(nodes[n]["value"], x)]
    return (mine[:1], True, axis) if mine else (names, False, axis)


def _same(value: Any, x: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == x.shape and bool(torch.equal(value.to(x.dtype), x))


def _rows_first(fn: Any, value: Tensor, axis: int | None) -> Tensor:
    shape = fn.shape()
    value = value.expand(shape) if value.dim() <= len(shape) else value
    return value if axis is None else value.movedim(axis + len(fn.batch_shape), 0)


def _means(pair: Pair, args: Batch, names: list[str], draws: int) -> dict[str, np.ndarray]:
    """`latent_means` of rows that are evaluated at once."""
    facts, rows = facts_of(pair, args), length_of(args)
    total: dict[str, Tensor] = {}
    count = 0
    for number, found in enumerate(_runs(pair, args, names, facts, draws)):
        same = number == 1 and all(torch.equal(found[name], total[name]) for name in names)
        if same:  # nothing depends on a draw
            break
        total = {name: total[name] + found[name] if number else found[name] for name in names}
        count = number + 1
    means = {}
    for name, value in total.items():
        if value.shape[0] != rows:
            raise InputError(f"site '{name}' does not have a row for each of {rows} data; use posterior() instead")
        means[name] = (value / count).cpu().numpy()
    return means


def _runs(pair: Pair, args: Batch, names: list[str], facts: Any, draws: int) -> Iterator[dict[str, Tensor]]:
    plate = pair.layouts(args)[0].data_plate
    assert plate is not None
    for _ in range(draws):
        guide: Any = trace_of_guide(pair.guide, fresh(args)).nodes
        drawn: Any = posterior_trace(pair, args, facts, None).nodes if facts.summed else {}
        found = {}
        for name in names:
            fn = (drawn if name in facts.summed else guide)[name]["fn"]
            if name in facts.summed:
                mean, shape = _one_hot(fn, drawn[name]["value"]), fn.batch_shape
            else:
                mean, shape = _expected(fn)
            found[name] = mean.movedim(plate.dim + len(shape), 0)
        yield found


def _expected(fn: Any) -> tuple[Tensor, Any]:
    """The mean of a distribution, or the probabilities of its states as the last dimension; and its batch shape."""
    if fn.has_enumerate_support and not fn.event_shape:
        try:
            finite = bool(fn.mean.isfinite().all())
        except NotImplementedError:
            finite = False
        if not finite:
            states = fn.enumerate_support(expand=False)
            return fn.log_prob(states).exp().movedim(0, -1), fn.batch_shape
    return moment(fn, "mean", 200).expand(fn.shape()), fn.batch_shape


def _one_hot(fn: Any, value: Tensor) -> Tensor:
    states = fn.enumerate_support(expand=False)
    if (
        len(states) == 2
        and not fn.event_shape
        and bool(((value == 0) | (value == 1)).all())
        and states.dtype.is_floating_point
    ):
        return value.to(torch.get_default_dtype())
    return (value == states).movedim(0, -1).to(torch.get_default_dtype()) if not fn.event_shape else value


def _in_shape(values: np.ndarray, data: np.ndarray, args: Batch) -> tuple[np.ndarray, bool]:
    """Reshape values ``(rows, numbers)`` as the column that they belong to, and tell whether that is the first column."""
    for number, column in enumerate(args):
        if isinstance(column, Tensor) and column.dim() and len(column) == len(data):
            flat = column.reshape(len(column), -1).double().cpu().numpy()
            if flat.shape == data.shape and np.array_equal(flat, data):
                return values.reshape(tuple(column.shape)), number == 0
    return values, False
