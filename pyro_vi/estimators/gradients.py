"""Gradients of a bound: functions from K draws to a surrogate, a scalar whose gradient is the estimate.

Each surrogate is of the loss (the negative bound, summed over all data). It is made of the draws and of the function that
gives the loss of their terms. Its value does not matter; `Bound` puts the bound's in its place.

* ``total``: differentiate everything through the draws. Needs draws that can be reparameterised.
* ``path``: the same without the score of log q (Roeder et al. 2017, arXiv:1703.09194): 0 at the exact posterior.
* ``doubly``: that idea for weighted draws (Tucker et al. 2018, arXiv:1810.04152).
* ``score``: the score function of every site, with the mean of the other draws as baseline (arXiv:1602.06725).
* ``mixed``: ``total`` at sites that can be reparameterised, ``score`` at the others.
* ``vimco``: the score function for a many-sample bound, with a baseline for each draw (same paper).
* ``relaxed``: ``total`` through straight-through Gumbel-softmax draws (arXiv:1611.01144): biased.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_vi.elbo import SiteTerms, Terms, apart
from pyro_vi.errors import InputError
from pyro_vi.estimators.sample import Sample, Values, weights

Value = Callable[[Terms], Tensor]
"""The loss of a bound, from terms of K draws: see `pyro_vi.estimators.bound.Bound.value`."""


def _need_reparametrized(sample: Sample, gradient: str) -> None:
    for name, possible in sample.reparametrized.items():
        if not possible:
            raise InputError(
                f"gradient '{gradient}' goes through the draws, but the guide's distribution at site '{name}' cannot be "
                "reparameterised and its gradient would be lost; use 'score', 'mixed' or 'vimco'"
            )


def total(value: Value, sample: Sample) -> Tensor:
    """−bound with every gradient through the draws."""
    _need_reparametrized(sample, "total")
    return value(sample.live)


def relaxed(value: Value, sample: Sample) -> Tensor:
    """−bound at discrete draws that pass gradients straight through."""
    return value(sample.live)


def path(value: Value, sample: Sample) -> Tensor:
    """Gradient of the guide through the draws only: Σ ∂[−log w]/∂z · ∂z/∂φ, with no score of q."""
    _need_reparametrized(sample, "path")
    terms, leaves = sample.fixed(leaves=True)
    return through_draws(value(terms), leaves, sample) + value(without_score(terms))


def doubly(value: Value, sample: Sample) -> Tensor:
    """Model: Σ w̃_k ∂ log w_k; guide: Σ w̃_k² ∂ log w_k/∂z · ∂z/∂φ, w̃ the normalised weights.

    If log q counts b times (a weighted KL), so does the term that replaces E w̃ ∂ log q: the guide's part is then
    Σ [(1 − b) w̃_k + b w̃_k²] ∂ log w_k/∂z · ∂z/∂φ. A site whose log q counts otherwise keeps the score of the difference.
    """
    _need_reparametrized(sample, "doubly")
    terms, leaves = sample.fixed(leaves=True)
    log_weight, factor = weights(terms)
    normalized = log_weight.detach().softmax(0)
    scales = [site.scale for site in terms.sites.values() if site.drawn]
    count = next((s for s in scales if not isinstance(s, Tensor) or s.numel() == 1), 1.0)
    replaced = count if terms.outer is None else count / terms.outer
    through = normalized - replaced * (normalized - normalized.square())
    guide_part = through_draws(-factor * (through * log_weight).sum(), leaves, sample)
    return guide_part - factor * (normalized * weights(without_score(terms, count))[0]).sum()


def score(value: Value, sample: Sample) -> Tensor:
    """Σ_k (L_k − mean of the other L) ∂ log q(z_k), for every site, and ∂ log p at fixed draws."""
    terms, _ = sample.fixed(leaves=False)
    return value(without_score(terms)) + _score_terms(terms, list(sample.reparametrized))


def mixed(value: Value, sample: Sample) -> Tensor:
    """Through the draws where they can be reparameterised; the score function, with its baseline, elsewhere."""
    discrete = [name for name, possible in sample.reparametrized.items() if not possible]
    loss = value(sample.live)
    return loss + _score_terms(sample.live, discrete) if discrete else loss


def vimco(value: Value, sample: Sample) -> Tensor:
    """Σ_k (L − L with log w_k replaced by the mean of the others) ∂ log q(z_k), and Σ w̃_k ∂ log w_k at fixed draws."""
    terms, _ = sample.fixed(leaves=False)
    log_weight, factor = weights(terms)
    particles = len(log_weight)
    fixed = log_weight.detach()
    others = (fixed.sum(0) - fixed) / (particles - 1)
    # Row k of the square: all log-weights, with the k-th replaced.
    square = fixed.unsqueeze(0).expand(particles, *fixed.shape).clone()
    square[range(particles), range(particles)] = others
    signal = fixed.logsumexp(0) - square.logsumexp(1)
    log_q = _joint_log_q(terms, len(fixed[0]))
    return -factor * ((signal * log_q).sum() + log_weight.logsumexp(0).sum())


def _score_terms(terms: Terms, names: list[str]) -> Tensor:
    """−Σ advantage · log q over sites; the advantage is that of the site's own datum, or of all data for a global site."""
    value = terms.elbo.detach()
    particles = len(value)
    result = value.new_zeros(())
    for name in names:
        site = terms.sites[name]
        if site.score is None:  # a Delta: its gradient is that of its value
            continue
        signal = value * (terms.num_data / terms.rows) if site.local else terms.num_data * value.mean(-1)
        advantage = (signal - signal.mean(0)) * (particles / (particles - 1))
        result = result - (advantage * site.score).sum() / particles
    return result


def _joint_log_q(terms: Terms, rows: int) -> Tensor:
    """log q of all sites that the guide draws, of the shape of the weights: ``(K, rows)``."""
    local = [s.score for s in terms.sites.values() if s.score is not None and s.local]
    shared = [s.score for s in terms.sites.values() if s.score is not None and not s.local]
    if not shared and local and rows == terms.rows:
        return torch.stack(torch.broadcast_tensors(*local)).sum(0)
    return sum(
        [part.sum(-1, keepdim=True) for part in local] + [part.unsqueeze(-1) for part in shared], torch.zeros(())
    )


def without_score(terms: Terms, count: Any = None) -> Terms:
    """The terms without the score of each draw's log q, or, with ``count``, without that many times the score.

    What is no draw keeps its gradient: the log-density that a Delta states, a factor, an observation.
    """

    def without(site: SiteTerms) -> SiteTerms:
        assert site.log_q is not None
        rest = site.log_q.detach()
        if count is not None and not same_number(site.scale, count):
            assert site.score is not None
            left = site.log_q - count * site.score
            rest = rest + (left - left.detach())
        return replace(site, log_q=rest)

    return replace(terms, sites={n: without(s) if s.drawn else s for n, s in terms.sites.items()})


def same_number(one: Any, two: Any) -> bool:
    """True if two scales are known to be equal without reading the value of a tensor."""
    return one is two or (not isinstance(one, Tensor) and not isinstance(two, Tensor) and bool(one == two))


def through_draws(loss: Tensor, leaves: list[Values], sample: Sample) -> Tensor:
    """Σ ∂loss/∂z · z: a surrogate whose gradient runs through the draws alone, whatever else ``loss`` depends on."""
    pairs = [
        (leaf, drawn[name])
        for given, drawn in zip(leaves, sample.drawn(), strict=True)
        for name, leaf in given.items()
        if leaf.requires_grad and drawn[name].requires_grad
    ]
    if not pairs:
        return loss.new_zeros(())
    slopes = torch.autograd.grad(loss, [leaf for leaf, _ in pairs], retain_graph=True, allow_unused=True)
    parts = [(slope * value).sum() for slope, (_, value) in zip(slopes, pairs, strict=True) if slope is not None]
    return torch.stack(parts).sum() if parts else loss.new_zeros(())


def refuse_unserved(gradient: str, sample: Sample) -> None:
    """Raise InputError if a gradient cannot serve a pair; `Bound` asks before a fit or an audit starts.

    Raises:
        InputError: a draw that cannot be reparameterised under a gradient through the draws; a guide that cannot score given
            draws, under one that needs that; a mask on one side under a score function.
    """
    if gradient in ("total", "path", "doubly"):
        _need_reparametrized(sample, gradient)
    if gradient in ("path", "doubly", "score", "vimco"):
        sample.fixed(leaves=False)
    if gradient in ("mixed", "score", "vimco"):
        run = sample.runs[0]
        for name, possible in sample.reparametrized.items():
            node, other = run.model_trace.nodes.get(name), run.guide_trace.nodes[name]
            if not (gradient == "mixed" and possible) and node is not None and "mask" in apart(node, other):
                raise InputError(
                    f"model and guide mask site '{name}' differently, so gradient '{gradient}' would leave out the score of "
                    "draws that count; mask it alike in both"
                )


GRADIENTS: dict[str, Callable[[Value, Sample], Tensor]] = {
    "total": total,
    "path": path,
    "doubly": doubly,
    "score": score,
    "mixed": mixed,
    "vimco": vimco,
    "relaxed": relaxed,
}
