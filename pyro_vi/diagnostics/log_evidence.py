"""The evidence log p(x): exact if the model has a closed form or sums all latents out, otherwise by importance sampling.

It is a number for each datum; for a model with latents that all data share, one number for the whole data set.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_vi.compiling import Compile, check_mode
from pyro_vi.data import Batch, length_of
from pyro_vi.diagnostics.tails import MOST, UNRELIABLE, khat
from pyro_vi.diagnostics.weights import Weights
from pyro_vi.elbo import (
    Facts,
    at_once,
    blocks,
    facts_of,
    one_run,
    quoted,
    refuse_no_density,
    refuse_own_minibatch,
    standard_error,
)
from pyro_vi.errors import InputError, naming_programs
from pyro_vi.programs import Pair, Program, evaluating, isolated, pair_and_args, title, without_numbers
from pyro_vi.support import Whole, seed_from
from pyro_vi.support import whole as whole_number

Method = Literal["iw", "exact", "enum"]


def evidence(
    model: Program,
    guide: Program,
    batch: Any,
    *,
    method: Method | None = None,
    particles: Whole = 5000,
    seed: Whole = 0,
    rows: Whole = 1000,
    compile: Compile = "auto",
) -> xr.Dataset:
    """Return log p(x_n) of each datum, exactly or as log (1/K) Σ_k p(x_n, z_k) / q(z_k | x_n) with z_k from the guide.

    The importance-sampling estimate is below log p(x) on average (Jensen) and rises to it with K (Burda et al. 2016,
    arXiv:1509.00519). ``ess`` says how many of the K draws carry the weight; if it is near 1, the estimate is low. ``khat``
    is the shape of the weights' tail: above 0.7, ``mc_se`` is too small to be trusted (Vehtari et al. 2024, arXiv:1507.02646).

    A discrete latent that the guide lacks and that is marked for enumeration is summed over its states in each weight. If
    nothing is left to draw, the evidence is exact.

    If latents are shared by all data, there is one number for the data set: log p(x_1..N) by the same mean over draws of all
    latents together. Its variance grows with the number of data, as the weight is a product over them.

    Args:
        model: generative program.
        guide: variational program.
        batch: a tensor of ``n`` rows, or the tuple that the programs are called with; all the data if latents are shared.
        method: ``"exact"`` calls the model's ``log_evidence(x)``, ``"enum"`` sums all latents out, ``"iw"`` samples; by default
            the first of these that the pair allows.
        particles: K.
        seed: seed of the draws.
        rows: most data that are evaluated at a time, unless latents are shared.
        compile: True compiles the draws or raises an error; False never compiles; ``"auto"`` compiles if that saves time. The
            draws are the same in each case.

    Returns:
        ``log_evidence`` and ``mc_se`` (Monte Carlo standard error, by the delta method) in nats, ``ess`` and ``khat`` (NaN
        without draws, or if the weights are equal; of at most 500 data, evenly spaced), over the dimension ``datum``, or
        without a dimension for a whole data set. Attributes: ``method``; ``value`` and ``se`` in nats per datum (mean and
        standard error over the data; for a whole data set its evidence and Monte Carlo error, divided by N); ``total`` in nats,
        of all rows; ``per``, which is ``"datum"`` or ``"data set"``; and ``note``, which says whether the draws were compiled,
        and why, what was summed, and where k-hat is above 0.7.

    Raises:
        InputError: the weight is no ratio of densities: the guide is a point estimate, has a factor or draws what the model
            observes, a site is scaled by `poutine.scale` or masked in one program only; latents are shared and the batch is a
            part of the data; or the pair has no such method.

    Example:
        >>> from pyro_vi import models, guides
        >>> from pyro_vi.data import DataSpec
        >>> from pyro_vi.models.linear_gaussian import LinearGaussian
        >>> from pyro_vi.guides.exact import Exact
        >>> x = torch.tensor([[1.3]])
        >>> model = LinearGaussian(DataSpec("x", 1, (1,), "real", torch.float32, "made up"), latent_dim=1, weight=[[1.0]])
        >>> round(float(evidence(model, Exact(model, (x,)), x).log_evidence[0]), 4)
        -1.688
    """
    pair, args = pair_and_args(model, guide, batch)
    with naming_programs("the pair fails in the evidence"):
        return evidence_of_pair(pair, args, method=method, particles=particles, seed=seed, rows=rows, compile=compile)


def evidence_of_pair(
    pair: Pair,
    args: Batch,
    *,
    method: Method | None = None,
    particles: Whole = 5000,
    seed: Whole = 0,
    rows: Whole = 1000,
    compile: Compile = "auto",
) -> xr.Dataset:
    """Return `evidence` for a pair that is already bound."""
    check_mode(compile)
    particles, seed, rows = whole_number("particles", particles, 2), seed_from(seed), whole_number("rows", rows, 1)
    closed = getattr(pair.model, "log_evidence", None)
    if method not in (None, "iw", "exact", "enum"):
        raise InputError(f"evidence method must be 'iw', 'enum' or 'exact', not {method!r}")
    if method == "exact" or (method is None and closed is not None):
        if closed is None:
            raise InputError(f"{title(pair.model)} has no closed form log_evidence(x); use method='iw'")
        facts = facts_of(pair, args)
        whole = facts.plate is None or bool(facts.shared)
        if whole:  # the closed form is one number, of all rows together
            refuse_part(pair, args, facts)
        with torch.no_grad(), isolated(seed, validation=False):
            cut = [args] if whole else blocks(pair, args, rows)
            values = torch.cat([closed(*without_numbers(pair.model, block)).reshape(-1) for block in cut])
        return _exact(values, "exact", "no draws", length_of(args) if whole else None)
    facts = facts_of(pair, args)
    refuse_no_density(pair, args, facts)
    whole = facts.plate is None or bool(facts.shared)
    if whole:
        refuse_part(pair, args, facts)
    else:
        refuse_own_minibatch(pair, args)
        rows = rows if length_of(args) <= rows or pair.separable(args, rows) else length_of(args)
    drawn = [name for name in pair.layouts(args)[0].latents if name not in facts.summed]
    if method == "enum" and drawn:
        raise InputError(f"the guide draws {quoted(drawn)}, so the latents are not all summed out; use method='iw'")
    if method is None:
        method = "iw" if drawn else "enum"
    # Blocks have one length, because each length is compiled separately; the last block may be shorter.
    length = length_of(args)
    count = 1 if whole else math.ceil(length / rows)
    cut = blocks(pair, args, math.ceil(length / count))
    with evaluating(pair), isolated(seed, validation=False):
        if method == "enum":
            weights = Weights(pair, cut[0], 1, False, facts, whole)
            values = torch.cat([weights.sums(block)[0] for block in cut])
            return _exact(values, method, _summed(facts) or "no latent sites", length if whole else None)
        weights = Weights(pair, cut[0], particles, at_once(pair, cut[0], facts), facts, whole)
        weights.compile(compile, count)
        parts = [_importance(weights, block, math.ceil(MOST / count)) for block in cut]
    note = "; ".join(text for text in (weights.note, _summed(facts)) if text)
    found = (torch.cat(column) for column in zip(*parts, strict=True))
    return _dataset(*found, method=method, particles=particles, note=note, whole=length if whole else None)


def refuse_part(pair: Pair, args: Batch, facts: Facts) -> None:
    """Raise InputError for a part of the data: the evidence of latents that all data share is that of all of them."""
    run = one_run(pair, args, bool(facts.summed))
    for trace in (run.model_trace, run.guide_trace):
        for node in trace.nodes.values():
            for frame in node["cond_indep_stack"] if node["type"] == "sample" else ():
                if frame.full_size != frame.size:
                    raise InputError(
                        f"plate '{frame.name}' holds {frame.size} of its {frame.full_size} rows, and {quoted(facts.shared)} "
                        "is shared by all of them, so that the evidence is that of the whole data set; give all its rows"
                    )


def _importance(weights: Weights, args: Batch, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, second, top = weights.sums(args)
    ess = (2 * first - second).exp()
    # Var(w) / (K mean(w)²) = 1/ESS − 1/K: the squared relative error of the mean weight.
    error = (1 / ess - 1 / weights.draws).clamp(min=0).sqrt()
    return first - math.log(weights.draws), error, ess, khat(top, weights.draws, most)


def _summed(facts: Facts) -> str:
    return f"{quoted(facts.summed)} summed over all states" if facts.summed else ""


def _exact(values: Tensor, method: Method, note: str, whole: int | None = None) -> xr.Dataset:
    nothing = torch.full_like(values, math.nan)
    return _dataset(
        values, torch.zeros_like(values), nothing, nothing, method=method, particles=0, note=note, whole=whole
    )


def _dataset(
    values: Tensor,
    error: Tensor,
    ess: Tensor,
    shape: Tensor,
    *,
    method: Method,
    particles: int,
    note: str,
    whole: int | None,
) -> xr.Dataset:
    """Lay out the columns; ``whole`` is the number of data in the data set of which there is one number, else None."""

    def column(x: Tensor) -> tuple[tuple[str, ...], np.ndarray]:
        numbers = x.cpu().double().numpy()
        return ((), numbers.reshape(())) if whole else (("datum",), numbers)

    heavy, count = int((shape > UNRELIABLE).sum()), int((~shape.isnan()).sum())
    if heavy:
        where = "" if whole else f" for {heavy} of {count} data"
        note += (
            f"; k-hat is above {UNRELIABLE}{where}: the weights have a heavy tail, and mc_se is too small to be trusted"
        )
    mean, se = float(values.mean()), standard_error(values)
    if whole:
        mean, se = mean / whole, float(error[0]) / whole
    return xr.Dataset(
        {"log_evidence": column(values), "mc_se": column(error), "ess": column(ess), "khat": column(shape)},
        attrs={
            "method": method,
            "particles": particles,
            "note": note,
            "value": mean,
            "se": se,
            "total": float(values.sum()),
            "per": "data set" if whole else "datum",
        },
    )
