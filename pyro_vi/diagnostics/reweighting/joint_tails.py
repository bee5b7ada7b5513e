"""PSIS k-hat of a guide: of each datum, of what all data share, and of each site given the others.

* `reliability` computes it for two programs, and `reliability_of_pair` for a pair that is bound.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_vi.data import Batch
from pyro_vi.diagnostics.reweighting.drawing import Asked, Drawn, Draws, Picked, asked, shown_name
from pyro_vi.diagnostics.reweighting.words import Kept, of_data, of_sites, of_whole, worst_of
from pyro_vi.diagnostics.tails import MOST, Tail, khat, khat_error, threshold
from pyro_vi.errors import naming_programs
from pyro_vi.programs import Pair, Program, evaluating, isolated, pair_and_args
from pyro_vi.support import Whole, seed_from
from pyro_vi.support import whole as whole_number

INNER = 16
"""Draws of the latents of each datum, over which the weight of the latents that all data share is averaged."""


def reliability(
    model: Program,
    guide: Program,
    batch: Any,
    *,
    draws: Whole = 2500,
    seed: Whole = 0,
    rows: Whole = 1000,
    most: Whole | None = MOST,
    inner: Whole = INNER,
) -> xr.Dataset:
    """Return PSIS k-hat of each datum: the tail shape of p(x_n, z_n) / q(z_n | x_n) under draws z_n of the guide.

    The weight of a datum is that of its own latents alone, never a product over data. k-hat is the shape of a generalised
    Pareto distribution fitted to the largest weights (Vehtari et al. 2024, arXiv:1507.02646; for guides Yao et al. 2018,
    arXiv:1802.02538). Up to 0.5 the weights have a variance. Up to ``threshold``, which is 0.7 from 2155 draws on, moments with
    Pareto-smoothed weights can be used in place of the guide's own. Above it, draws of the guide say too little about the
    posterior. A low k-hat says that draws of the guide cover what they reach of the posterior, and not that the guide is the
    posterior: a guide that is too wide has one too, with few effective draws, and a mode that no draw finds leaves it low.

    ``site_khat`` is the same for one site that the guide draws, given the other latents of the datum: the tail shape of
    p(z_i | z_-i, x) / q(z_i | z_-i), with z_-i held at one draw from where guide and posterior overlap. It says
    whether the form of this site fits. It does not see correlations between sites that the guide lacks: then the sites
    read low and the joint weight high. Where another site of the guide depends on the site, there is none.

    Latents that all data share have one weight for the data set. If the data have latents too, each is averaged over ``inner``
    draws inside it, p(θ) Π_n mean_m[p(x_n, z_nm | θ) / q(z_nm | x_n, θ)] / q(θ), and the weight of a datum is given one θ.

    Args:
        model: generative program.
        guide: variational program.
        batch: a tensor of ``n`` rows, or the tuple that the programs are called with; all the data if latents are shared.
        draws: draws of the guide for each datum, S, at least 25.
        seed: seed of the draws.
        rows: most data that are drawn for at a time, unless latents are shared.
        most: most data that get a k-hat, evenly spaced; None for all. Each costs about a millisecond.
        inner: draws of the latents of each datum inside the weight of the shared ones.

    Returns:
        ``khat``, ``khat_se`` and ``ess`` (effective draws) over ``datum``, whose coordinate has the numbers of the rows, and
        ``site_khat`` and ``site_khat_se`` over ``site`` and ``datum`` where the guide draws several sites. For latents that all
        data share: ``shared_khat``, ``shared_khat_se`` and ``shared_ess``, and ``shared_site_khat`` and
        ``shared_site_khat_se`` over ``shared_site``. k-hat is NaN where the largest weights are equal. Attributes:
        ``verdict``, ``sentences``, ``threshold``, ``share`` and ``share_se`` (data above the threshold), ``worst`` (their row
        numbers, the worst first, at most 20), ``rows`` (number of data), ``draws`` and ``seed``.

    Raises:
        InputError: the weight is no ratio of densities, as for `pyro_vi.evidence`; or the guide draws nothing.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.2))  # the posterior's standard deviation is 0.71
        >>> found = reliability(model, guide, torch.tensor([0.3, 1.3]))
        >>> found.verdict, bool((found.khat > 0.7).all())
        ('fail', True)
    """
    pair, args = pair_and_args(model, guide, batch)
    with naming_programs("the pair fails in its weights"):
        return reliability_of_pair(pair, args, draws=draws, seed=seed, rows=rows, most=most, inner=inner)


def reliability_of_pair(
    pair: Pair,
    args: Batch,
    *,
    draws: Whole = 2500,
    seed: Whole = 0,
    rows: Whole = 1000,
    most: Whole | None = MOST,
    inner: Whole = INNER,
) -> xr.Dataset:
    """Return `reliability` for a pair that is already bound."""
    draws, seed, rows = whole_number("draws", draws, 25), seed_from(seed), whole_number("rows", rows, 1)
    most = None if most is None else whole_number("most", most, 1)
    inner = whole_number("inner", inner, 1)
    with evaluating(pair), isolated(seed, validation=False):
        asking = asked(pair, args, most, rows)
        parts = [_weighed(pair, block, asking, draws, inner, places) for block, places in asking.blocks]
    return _laid_out(parts, asking, draws, seed, inner)


@dataclass
class _Shape:
    """Tail and sums of weights over draws that come in parts."""

    draws: int
    tail: Tail = field(init=False)
    sums: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tail = Tail(self.draws)

    def add(self, log_weight: Tensor) -> None:
        """Take log-weights, (draws, rows)."""
        self.sums.append((log_weight.logsumexp(0), (2 * log_weight).logsumexp(0)))
        self.tail.add(log_weight)

    def kept(self) -> Kept:
        """k-hat, effective draws and the kind of tail of each row."""
        one, two = (torch.stack(column).logsumexp(0) for column in zip(*self.sums, strict=True))
        top = self.tail.top()
        broken = ~(top[0].isfinite() & one.isfinite())
        k = khat(top, self.draws, top.shape[1])
        k = torch.where(broken, torch.nan, k)
        return Kept(k, khat_error(k, self.draws), (2 * one - two).exp(), broken)


@dataclass
class _Part:
    """The findings for a block: of the shared latents, of each datum, and of each site."""

    shared: Kept | None = None
    data: Kept | None = None
    noise: float = 0.0
    sites: dict[str, Kept | None] = field(default_factory=dict)
    shared_sites: dict[str, Kept | None] = field(default_factory=dict)


def _weighed(pair: Pair, args: Batch, asking: Asked, draws: int, inner: int, places: np.ndarray) -> _Part:
    maker, part, index = Draws(pair, args, asking.facts), _Part(), torch.as_tensor(places)
    kinds = list(maker.sources.values())
    whole, local, several = not all(kinds), any(kinds), max(kinds.count(True), kinds.count(False)) > 1
    held: dict[str, Tensor] = {}
    if whole:
        shape, picked, noise = _Shape(draws), Picked(maker, local=False), 0.0
        for drawn, weight, spread in shared_weights(maker, draws, inner if local else 0):
            shape.add(weight.unsqueeze(-1))
            if local or several:
                picked.add(weight.unsqueeze(-1), drawn.sources)
            noise += float(spread.sum()) / draws
        part.shared, part.noise, held = shape.kept(), noise**0.5, picked.values
    if local:
        shape, picked = _Shape(draws), Picked(maker, local=True)
        for drawn in maker.stream(draws, held):
            shape.add(drawn.local[:, index])
            if several:
                picked.add(drawn.local, drawn.sources)
        part.data, held = shape.kept(), {**held, **picked.values}
    for name, inside in maker.sources.items():
        # A site that is the only one of its kind has the number of the datum, or of the data set.
        if kinds.count(inside) > 1:
            into = part.sites if inside else part.shared_sites
            into[shown_name(name, maker.latents)] = _given_others(maker, name, held, draws, index)
    return part


def shared_weights(maker: Draws, draws: int, inner: int) -> Iterable[tuple[Drawn, Tensor, Tensor]]:
    """Yield draws with the log-weights of the latents that all data share, (draws,), and the variance of their inner means.

    With ``inner``, the latents of each datum are averaged over so many draws for each draw of the shared ones. The ``local``
    log-weights of a draw are then those of the first of them; the yielded `Drawn` has them less the log of the mean.
    """
    for start in range(0, draws, maker.chunk):
        drawn = maker.draw(min(maker.chunk, draws - start))
        if not inner:
            yield drawn, drawn.total, torch.zeros(())
            continue
        held = {name: value for name, value in drawn.sources.items() if not maker.sources[name]}
        one, two = drawn.local, 2 * drawn.local
        for _ in range(inner - 1):
            more = maker.draw(len(drawn.local), held).local
            one, two = torch.logaddexp(one, more), torch.logaddexp(two, 2 * more)
        mean = one - math.log(inner)
        # The variance of the log of a mean of weights is 1/ESS − 1/M.
        spread = ((two - 2 * one).exp() - 1 / inner).clamp(min=0).sum(-1)
        given = Drawn(drawn.local - mean, drawn.shared, drawn.sources, drawn.values, drawn.log_q)
        yield given, drawn.shared + mean.sum(-1), spread


def _given_others(maker: Draws, name: str, held: dict[str, Tensor], draws: int, index: Tensor) -> Kept | None:
    """k-hat of one site given the others; None if the guide draws another site given this one."""
    others = {other: value for other, value in held.items() if other != name}
    shape, first = _Shape(draws), None
    for drawn in maker.stream(draws, others):
        first = first if first is not None else {n: v[:1] for n, v in drawn.log_q.items()}
        for other, log_q in drawn.log_q.items():
            if not torch.allclose(log_q, first[other].expand_as(log_q), rtol=1e-4, atol=1e-4, equal_nan=True):
                return None
        # What the other data contribute is the same in each draw of a site of this datum.
        shape.add(drawn.local[:, index] if maker.sources[name] else drawn.total.unsqueeze(-1))
    return shape.kept()


def _laid_out(parts: list[_Part], asking: Asked, draws: int, seed: int, inner: int) -> xr.Dataset:
    columns: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    limit, shared = threshold(draws), parts[0].shared
    attrs: dict[str, Any] = {"threshold": limit, "rows": asking.length, "draws": draws, "seed": seed}
    sentences: list[str] = []
    verdicts: list[str] = []
    data = Kept.joined([part.data for part in parts])
    if data is not None:
        coords["datum"] = asking.index
        columns |= {
            "khat": ("datum", data.k.numpy()),
            "khat_se": ("datum", data.se.numpy()),
            "ess": ("datum", data.ess.numpy()),
        }
        verdict, said, facts = of_data(data, asking, draws, given=shared is not None)
        attrs |= facts
        attrs["worst"] = worst_of(data, asking.index, limit)
        verdicts.append(verdict)
        sentences += said
    if shared is not None:
        columns |= {
            "shared_khat": ((), float(shared.k[0])),
            "shared_khat_se": ((), float(shared.se[0])),
            "shared_ess": ((), float(shared.ess[0])),
        }
        attrs |= {"inner": inner, "inner_noise": parts[0].noise} if data is not None else {}
        verdict, said = of_whole(shared, draws, parts[0].noise, asking.facts)
        verdicts.append(verdict)
        sentences += said
    for dim, prefix, found in (("site", "site", "sites"), ("shared_site", "shared_site", "shared_sites")):
        names = list(getattr(parts[0], found))
        if not names:
            continue
        kept = {name: Kept.joined([getattr(part, found)[name] for part in parts]) for name in names}
        width = 1 if dim == "shared_site" else len(asking.index)
        nothing = torch.full((width,), math.nan, dtype=torch.float64)
        for what, key in (("k", "khat"), ("se", "khat_se")):
            values = torch.stack([nothing if k is None else getattr(k, what) for k in kept.values()]).numpy()
            dims = (dim,) if dim == "shared_site" else (dim, "datum")
            columns[f"{prefix}_{key}"] = (dims, values[:, 0] if dim == "shared_site" else values)
        coords[dim] = names
        joint = shared if dim == "shared_site" else data
        sentences += of_sites(kept, joint, limit)
    order = ("fail", "none", "care", "pass")
    attrs |= {"verdict": min(verdicts, key=order.index), "sentences": sentences}
    return xr.Dataset(columns, coords, attrs)
