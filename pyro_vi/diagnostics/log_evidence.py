"""The evidence log p(x): in closed form, by sums over all latents, by importance sampling or by annealing.

It is a number for each datum; for a model with latents that all data share, one number for the whole data set.
"""

import math
from typing import Any, Literal

import torch
import xarray as xr

from pyro_vi.compiling import Compile, check_mode
from pyro_vi.data import Batch, length_of
from pyro_vi.diagnostics.annealing.chains import Annealing, Start, log_weights
from pyro_vi.diagnostics.annealing.sandwich import sandwich_of_pair
from pyro_vi.diagnostics.estimates import NAMES, Estimate, estimate_of, laid_out, of_log_weights
from pyro_vi.diagnostics.prior import prior_pair
from pyro_vi.diagnostics.tails import MOST
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
)
from pyro_vi.errors import InputError, naming_programs
from pyro_vi.programs import Pair, Program, evaluating, isolated, pair_and_args, title, without_numbers
from pyro_vi.support import Whole, seed_from, word
from pyro_vi.support import whole as whole_number

Method = Literal["iw", "prior", "ais", "sandwich", "exact", "enum"]
METHODS = ("iw", "prior", "ais", "sandwich", "exact", "enum")


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
    start: Start = "guide",
    chains: Whole = 32,
    steps: Whole = 50,
    data: Whole = 100,
) -> xr.Dataset:
    """Return log p(x_n) of each datum, exactly or as log (1/K) Σ_k p(x_n, z_k) / q(z_k | x_n) with z_k from the guide.

    The importance-sampling estimate is below log p(x) on average (Jensen) and rises to it with K (Burda et al. 2016,
    arXiv:1509.00519). ``ess`` says how many of the K draws carry the weight; if it is near 1, the estimate is low. ``khat``
    is the shape of the weights' tail: above 0.7, ``mc_se`` is too small to be trusted (Vehtari et al. 2024, arXiv:1507.02646).

    Annealed importance sampling moves each of few draws from the guide to the posterior, over ``steps`` densities
    q(z | x) (p(x, z) / q(z | x))^β with β from 0 to 1, by Hamiltonian transitions on the unconstrained scale (Neal 2001,
    arXiv:physics/9803008). Temperatures, step sizes and scales are fixed in a run before, whose draws do not count. The
    estimate is below log p(x) on average too, and far closer where the guide is poor.

    The sandwich draws data from the model itself. There the latents that made a datum are an exact draw of its posterior, from
    which reverse annealing gives an estimate that is above log p(x) on average; forward annealing gives one below it (Grosse,
    Ghahramani and Adams 2015, arXiv:1511.02543). Both bound what importance sampling misses on such data. On other data nothing
    bounds log p(x) from above.

    A discrete latent that the guide lacks and that is marked for enumeration is summed over its states in each weight. If
    nothing is left to draw, the evidence is exact.

    If latents are shared by all data, there is one number for the data set: log p(x_1..N) by the same mean over draws of all
    latents together. Its variance grows with the number of data, as the weight is a product over them.

    Args:
        model: generative program.
        guide: variational program.
        batch: a tensor of ``n`` rows, or the tuple that the programs are called with; all the data if latents are shared.
        method: ``"exact"`` calls the model's ``log_evidence(x)``, ``"enum"`` sums all latents out, ``"iw"`` samples; by default
            the first of these that the pair allows. ``"prior"`` samples from the prior in place of the guide, ``"ais"``
            anneals, and ``"sandwich"`` bounds log p(x) of data drawn from the model.
        particles: K of importance sampling.
        seed: seed of the draws.
        rows: most data that are evaluated at a time, unless latents are shared.
        compile: True compiles the draws of importance sampling or raises an error; False never compiles; ``"auto"`` compiles if
            that saves time. The draws are the same in each case.
        start: of annealing: ``"guide"``, or ``"prior"``, which takes more steps, but finds what the guide has missed.
        chains: draws that are annealed, for each datum.
        steps: temperatures of annealing.
        data: most data that the sandwich draws, unless latents are shared.

    Returns:
        ``log_evidence`` and ``mc_se`` (Monte Carlo standard error, by the delta method) in nats, ``ess`` and ``khat`` (NaN
        without draws, or if the weights are equal; of at most 500 data, evenly spaced), over the dimension ``datum``, or
        without a dimension for a whole data set. Attributes: ``method``; ``value`` and ``se`` in nats per datum (mean and
        standard error over the data; for a whole data set its evidence and Monte Carlo error, divided by N); ``total`` in nats,
        of all rows; ``per``, which is ``"datum"`` or ``"data set"``; ``note``, which says whether the draws were compiled, and
        why, what was summed, and where k-hat is above 0.7; ``verdict`` and ``sentences``, which say whether the numbers can be
        used. The sandwich adds ``lower``, ``upper``, ``width`` and ``iw``, the estimate by importance sampling on the same
        data, each with ``_se``, and their means as attributes, with ``missed_least`` and ``missed_most``, the bounds of
        log p(x) − iw.

    Raises:
        InputError: the weight is no ratio of densities: the guide is a point estimate, has a factor or draws what the model
            observes, a site is scaled by `poutine.scale` or masked in one program only; latents are shared and the batch is a
            part of the data; the pair has no such method; a site cannot be moved, because it is discrete; or no data can be
            drawn from the model.

    Example:
        >>> from pyro_vi import models, guides
        >>> from pyro_vi.data import DataSpec
        >>> from pyro_vi.models.linear_gaussian import LinearGaussian
        >>> from pyro_vi.guides.exact import Exact
        >>> x = torch.tensor([[1.3]])
        >>> model = LinearGaussian(DataSpec("x", 1, (1,), "real", torch.float32, "made up"), latent_dim=1, weight=[[1.0]])
        >>> round(float(evidence(model, Exact(model, (x,)), x).log_evidence[0]), 4)
        -1.688
        >>> found = evidence(model, Exact(model, (x,)), x, method="ais", start="prior", chains=64)
        >>> abs(float(found.log_evidence[0]) + 1.688) < 4 * float(found.mc_se[0])
        True
    """
    pair, args = pair_and_args(model, guide, batch)
    with naming_programs("the pair fails in the evidence"):
        return evidence_of_pair(
            pair,
            args,
            method=method,
            particles=particles,
            seed=seed,
            rows=rows,
            compile=compile,
            start=start,
            chains=chains,
            steps=steps,
            data=data,
        )


def evidence_of_pair(
    pair: Pair,
    args: Batch,
    *,
    method: Method | None = None,
    particles: Whole = 5000,
    seed: Whole = 0,
    rows: Whole = 1000,
    compile: Compile = "auto",
    start: Start = "guide",
    chains: Whole = 32,
    steps: Whole = 50,
    data: Whole = 100,
) -> xr.Dataset:
    """Return `evidence` for a pair that is already bound."""
    check_mode(compile, captured=False)
    particles, seed, rows = whole_number("particles", particles, 2), seed_from(seed), whole_number("rows", rows, 1)
    chains, steps, data = (
        whole_number("chains", chains, 2),
        whole_number("steps", steps, 1),
        whole_number("data", data, 1),
    )
    word("start", start, ("guide", "prior"))
    if start == "prior" and method not in ("ais", "sandwich", "prior"):
        raise InputError(
            "start='prior' is of annealing; take method='ais' with it, or method='prior' for draws of the prior"
        )
    closed = getattr(pair.model, "log_evidence", None)
    if method not in (None, *METHODS):
        raise InputError(f"evidence method must be {', '.join(map(repr, METHODS[:-1]))} or 'enum', not {method!r}")
    if method == "exact" or (method is None and closed is not None):
        if closed is None:
            raise InputError(f"{title(pair.model)} has no closed form log_evidence(x); use method='iw'")
        return _closed(pair, args, closed, seed, rows)
    fitted = pair
    if method == "prior" or (start == "prior" and method in ("ais", "sandwich")):
        pair = prior_pair(pair, args, moved=method != "prior")
    facts = facts_of(pair, args)
    refuse_no_density(pair, args, facts)
    whole = facts.plate is None or bool(facts.shared)
    if whole:
        refuse_part(pair, args, facts)
    else:
        refuse_own_minibatch(pair, args)
    drawn = [name for name in pair.layouts(args)[0].latents if name not in facts.summed]
    if method == "enum" and drawn:
        raise InputError(f"the guide draws {quoted(drawn)}, so the latents are not all summed out; use method='iw'")
    if not drawn:
        if method == "sandwich":
            raise InputError(
                "all latents are summed out, so that log p(x) is exact and needs no bounds; use method='enum'"
            )
        return _enumerated(pair, args, facts, whole, seed, rows)
    if method in ("ais", "sandwich"):
        settings = Annealing(chains, steps, start, seed, rows)
        if method == "ais":
            return _annealed(pair, args, facts, whole, settings)

        own = facts if fitted is pair else facts_of(fitted, args)
        refuse_no_density(fitted, args, own)

        def weighed(others: Batch) -> Estimate:
            return _sampled(fitted, others, own, whole, particles, seed, rows, False)[0]

        return sandwich_of_pair(pair, args, whole, settings, data, weighed, particles)
    found, note = _sampled(pair, args, facts, whole, particles, seed, rows, compile)
    return laid_out(
        found,
        method=method or "iw",
        draws=particles,
        note=note,
        rows=length_of(args),
        whole=whole,
        from_prior=method == "prior",
    )


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


def _closed(pair: Pair, args: Batch, closed: Any, seed: int, rows: int) -> xr.Dataset:
    facts = facts_of(pair, args)
    whole = facts.plate is None or bool(facts.shared)
    if whole:  # the closed form is one number, of all rows together
        refuse_part(pair, args, facts)
    with torch.no_grad(), isolated(seed, validation=False):
        cut = [args] if whole else blocks(pair, args, rows)
        values = torch.cat([closed(*without_numbers(pair.model, block)).reshape(-1) for block in cut])
    found = Estimate.exact(values)
    return laid_out(found, method="exact", draws=0, note="no draws", rows=length_of(args), whole=whole)


def _enumerated(pair: Pair, args: Batch, facts: Facts, whole: bool, seed: int, rows: int) -> xr.Dataset:
    cut = _cut(pair, args, whole, rows)
    with evaluating(pair), isolated(seed, validation=False):
        weights = Weights(pair, cut[0], 1, False, facts, whole)
        found = Estimate.exact(torch.cat([weights.sums(block)[0] for block in cut]))
    note = _summed(facts) or "no latent sites"
    return laid_out(found, method="enum", draws=0, note=note, rows=length_of(args), whole=whole)


def _sampled(
    pair: Pair, args: Batch, facts: Facts, whole: bool, particles: int, seed: int, rows: int, compile: Compile
) -> tuple[Estimate, str]:
    cut = _cut(pair, args, whole, rows)
    most = math.ceil(MOST / len(cut))
    with evaluating(pair), isolated(seed, validation=False):
        weights = Weights(pair, cut[0], particles, at_once(pair, cut[0], facts), facts, whole)
        weights.compile(compile, len(cut))
        found = Estimate.joined([estimate_of(*weights.sums(block), particles, most) for block in cut])
    return found, "; ".join(text for text in (weights.note, _summed(facts)) if text)


def _annealed(pair: Pair, args: Batch, facts: Facts, whole: bool, settings: Annealing) -> xr.Dataset:
    with evaluating(pair):
        weights, accepted = log_weights(pair, args, whole, settings)
    share, length = float(accepted.mean()), length_of(args)
    from_where = f"annealed from the {settings.start} in {settings.steps} steps"
    note = "; ".join(text for text in (f"{from_where}, {share:.0%} of the moves accepted", _summed(facts)) if text)
    how = f"{NAMES['ais']} from the {settings.start} in {settings.steps} steps"
    found = laid_out(
        of_log_weights(weights, MOST),
        method="ais",
        draws=settings.chains,
        note=note,
        rows=length,
        whole=whole,
        how=how,
        from_prior=settings.start == "prior",
    )
    found.attrs |= {"start": settings.start, "steps": settings.steps, "accepted": share}
    return found


def _cut(pair: Pair, args: Batch, whole: bool, rows: int) -> list[Batch]:
    """The data in blocks of one length, because each length is compiled separately; the last block may be shorter."""
    length = length_of(args)
    if whole or length <= rows or not pair.separable(args, rows):
        return [args]
    return blocks(pair, args, math.ceil(length / math.ceil(length / rows)))


def _summed(facts: Facts) -> str:
    return f"{quoted(facts.summed)} summed over all states" if facts.summed else ""
