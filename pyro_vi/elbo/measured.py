"""Numbers of given data under a fitted pair of any kind: the objective of each datum, and the log predictive density.

* `measure` gives the ELBO of each datum, also where sites are summed out, and log p(x, z) for a point estimate.
* `log_predictive` gives log E_q(w) p(x | w) of each datum, for latents w that all data share.
* `stream_weights` yields the log-weights of many draws, on which both rest.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vi.data import Batch, length_of, part
from pyro_vi.elbo.decomposition import KL
from pyro_vi.elbo.draws import MEMORY, stream, vectorizes
from pyro_vi.elbo.facts import Facts, nesting_of, one_run
from pyro_vi.elbo.heldout import Evaluation, evaluate
from pyro_vi.elbo.weights import Weight, enumerated_run, summed_at_once, summed_weight, weight_of_terms
from pyro_vi.programs import Pair, evaluating, isolated


def measure(
    pair: Pair,
    args: Batch,
    facts: Facts,
    *,
    num_data: int | None = None,
    draws: int = 100,
    kl: KL = "analytic",
    seed: int | None = 0,
    rows: int = 1000,
) -> Evaluation:
    """Return the ELBO of each datum, in evaluation mode: the objective of any pair, in nats per datum.

    The KL of latents that all data share is divided by ``num_data``. With summed sites, the ELBO is
    E_q log Σ_k p(x, z, k) / q(z), which does not split: its two parts are NaN. For a point estimate the ELBO is NaN, and
    ``log_joint`` is log p(x, z).

    Args:
        pair: model and guide.
        args: the data, ``n`` rows.
        facts: the facts about the pair.
        num_data: N, the number of training data; by default what the pair's own plate says.
        draws: draws for each datum.
        kl: closed forms where they exist, or the draws' log q − log p.
        seed: seed of the draws; None continues from the generators' present state.
        rows: most data at a time.
    """
    if not facts.points and not facts.summed:
        return evaluate(pair, args, draws=draws, kl=kl, seed=seed, rows=rows, num_data=num_data)
    parts, of_draws = [], torch.zeros(draws)
    with evaluating(pair), isolated(seed, validation=False):
        for batch in blocks(pair, args, rows):
            total, sums = torch.zeros(()), []
            for weight in stream_weights(pair, batch, draws, facts):
                share = weight.shared.unsqueeze(-1) / (num_data or length_of(args))
                # Without a data plate everything is shared, and the row stands for the whole data set.
                value = (weight.local + share).reshape(-1, weight.local.shape[-1])
                total = total + value.sum(0)
                sums.append(value.sum(1))
            parts.append(total / draws)
            of_draws = of_draws.to(sums[0]) + torch.cat(sums)
    value = torch.cat(parts)
    nothing = torch.full_like(value, math.nan)
    if facts.points:
        return Evaluation(nothing, nothing, log_joint=value)
    return Evaluation(nothing, nothing, unsplit=value, of_draws=of_draws / len(value))


def log_predictive(
    pair: Pair,
    args: Batch,
    facts: Facts,
    *,
    draws: int = 100,
    seed: int | None = 0,
    rows: int = 1000,
    vectorized: bool | None = None,
) -> Tensor | None:
    """Return log E_q(w) p(x_n | w) of each new datum, shape ``(n,)``: the log predictive density under the guide's w.

    E is over draws of the latents w that all data share. A datum's own latents z_n are integrated by importance sampling
    from their guide, inside the same mean: log (1/S) Σ_s p(x_n, z_ns | w_s) / q(z_ns | x_n, w_s). It is too low on average,
    and rises with S to the log predictive density.

    Returns:
        None where there is no such number: all latents are local, a shared latent is summed over, a latent of a datum is at a
        point, or the model has no data plate.
    """
    if not predictable(facts):
        return None
    parts = []
    with evaluating(pair), isolated(seed, validation=False):
        for batch in blocks(pair, args, rows):
            found = [
                w.local.reshape(-1, w.local.shape[-1]) for w in stream_weights(pair, batch, draws, facts, vectorized)
            ]
            parts.append(torch.cat(found).logsumexp(0) - math.log(draws))
    return torch.cat(parts)


def predictable(facts: Facts) -> bool:
    """True if a pair has a log predictive density of new data: see `log_predictive`."""
    local_points = set(facts.points) - set(facts.shared)
    summed = set(facts.summed) & set(facts.shared)
    return bool(facts.shared) and not summed and not local_points and facts.plate is not None


def stream_weights(
    pair: Pair, args: Batch, draws: int, facts: Facts, vectorized: bool | None = None
) -> Iterator[Weight]:
    """Yield the log-weights of ``draws`` draws without gradients, in chunks with the draws as first dimension.

    Uses the generators as they are; call it within `pyro_vi.programs.isolation.isolated`.
    """
    if vectorized is None:
        vectorized = draws > 1 and at_once(pair, args, facts)
    if not facts.summed:
        for terms in stream(pair, args, draws, kl="sampled", vectorized=vectorized):
            yield weight_of_terms(terms)
        return
    nesting = nesting_of(pair, args)
    nodes = one_run(pair, args, True).model_trace.nodes.values()
    widest = max(node["log_prob"].numel() for node in nodes if node["type"] == "sample")
    chunk = max(1, MEMORY // max(1, widest)) if vectorized else 1
    with torch.no_grad():
        for start in range(0, draws, chunk):
            particles = min(chunk, draws - start) if vectorized else None
            yield summed_weight(enumerated_run(pair, args, particles, nesting))


def at_once(pair: Pair, args: Batch, facts: Facts) -> bool:
    """True if the pair can make many draws in one run."""
    return summed_at_once(pair, args, nesting_of(pair, args)) if facts.summed else vectorizes(pair, args)


def blocks(pair: Pair, args: Batch, rows: int) -> list[Batch]:
    """The data, ``rows`` rows at a time, or all at once if a part of them cannot be taken by itself."""
    length = length_of(args)
    if rows >= length or not pair.separable(args, rows):
        return [args]
    return [part(args, start, start + rows) for start in range(0, length, rows)]
