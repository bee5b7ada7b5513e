"""The gap between log p(x) and the ELBO of each datum, and its two parts: what the encoder loses, and what the family loses.

* `gaps` measures them for programs, `gaps_of_pair` for a pair that is bound.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_vi.data import Batch, length_of
from pyro_vi.diagnostics.log_evidence import evidence_of_pair, refuse_part
from pyro_vi.diagnostics.splitting.expectations import mean_and_error
from pyro_vi.diagnostics.splitting.own_family import DIAGONAL, FLOW, FULL
from pyro_vi.diagnostics.splitting.search import Part, Search
from pyro_vi.diagnostics.splitting.words import sentences_of, verdict_of
from pyro_vi.diagnostics.tails import UNRELIABLE
from pyro_vi.elbo import blocks, facts_of, refuse_no_density, refuse_own_minibatch
from pyro_vi.errors import InputError, naming_programs
from pyro_vi.programs import Pair, Program, evaluating, isolated, kept_buffers, pair_and_args
from pyro_vi.support import Whole, seed_from, word
from pyro_vi.support import whole as whole_number

FAMILIES = (DIAGONAL, FULL, FLOW)
"""The families that a guide is compared with."""


def gaps(
    model: Program,
    guide: Program,
    batch: Any,
    *,
    families: Sequence[str] = FAMILIES,
    method: Literal["iw", "exact", "enum"] | None = None,
    draws: Whole = 1000,
    particles: Whole = 5000,
    seed: Whole = 0,
    rows: Whole = 250,
) -> xr.Dataset:
    """Return log p(x) − ELBO of each datum, split into what the encoder loses and what the guide's family loses.

    With q* the best member of a family for one datum, and q that of the encoder (Cremer, Li and Duvenaud 2018,
    arXiv:1801.03558),

        log p(x) − ELBO(q) = [ELBO(q*) − ELBO(q)] + [log p(x) − ELBO(q*)]: amortization gap + approximation gap.

    q* is searched for each datum alone, from the encoder's output and from the prior, for the guide's own family and for
    others; a wider family starts at the best of a narrower one. The ELBO of what was found is estimated on new draws, so that
    it is not optimistic. All families have the same draws, so that differences have less noise than the ELBOs. What a quadratic
    in the noise explains is taken out: where log p(x, z) is quadratic, the ELBO of a normal is exact.

    The family of a guide is read from log q: a normal (diagonal, in blocks, low-rank or full) on the unconstrained scale of the
    sites, or a flow. Of others, amortization is NaN, and ``note`` says so.

    If latents are shared by all data, there is one gap, of the data set. ``amortization`` is then what the fit has left: the
    best of the family, for all latents together, minus the guide.

    Args:
        model: generative program.
        guide: variational program.
        batch: a tensor of ``n`` rows, or the tuple that the programs are called with; all the data if latents are shared.
        families: families to compare with, of ``"diag_normal"``, ``"full_normal"`` and ``"flow"``.
        method: how log p(x) is found: as in `pyro_vi.evidence`. By default exactly, if the pair allows it, and otherwise by
            importance sampling from a mixture of the guide and the best normals, or from the best flow where that is clearly
            higher; both are nearer to log p(x) than draws of the guide alone.
        draws: draws of each ELBO, at least; more are taken for long latents.
        particles: draws of an importance-sampling estimate of log p(x).
        seed: seed of all draws.
        rows: most data at a time, unless latents are shared.

    Returns:
        In nats, over the dimension ``datum`` (none for a whole data set): ``log_evidence``, ``elbo``, ``gap``,
        ``amortization``, and ``best_elbo`` and ``approximation`` over ``family`` too, each with its Monte Carlo standard error,
        ``<name>_se``; ``khat`` of the weights of the evidence (NaN where it is exact). ``mean_<name>`` and ``mean_<name>_se``
        are means over the data, with an error that includes the spread of the data. Attributes: ``own`` (the guide's family, a
        value of ``family``, or ""); ``verdict``: ``"pass"`` for a mean gap of at most 0.02 nats for each latent number,
        ``"fail"`` above 0.125, both by twice its error, ``"care"`` between them, ``"none"`` without a number; ``sentences``;
        ``note``; ``method``; ``per``, ``latents``, ``rows``, ``draws``, ``particles``, ``seed``.

    Raises:
        InputError: the pair has no ELBO or no evidence, as in `pyro_vi.evidence`.

    Example:
        >>> from pyro_vi.data import DataSpec
        >>> from pyro_vi.models.linear_gaussian import LinearGaussian
        >>> from pyro_vi.guides.prior import Prior
        >>> spec = DataSpec("x", 1, (1,), "real", torch.float32, "made up")
        >>> x = torch.tensor([[1.3]])
        >>> model = LinearGaussian(spec, latent_dim=1, weight=[[1.0]])
        >>> found = gaps(model, Prior(model, (x,)), x, families=["diag_normal"])
        >>> round(float(found.amortization[0]), 3), round(abs(float(found.approximation[0, 0])), 3)
        (0.576, 0.0)
    """
    pair, args = pair_and_args(model, guide, batch)
    with naming_programs("the pair fails in the gaps"):
        return gaps_of_pair(
            pair, args, families=families, method=method, draws=draws, particles=particles, seed=seed, rows=rows
        )


def gaps_of_pair(
    pair: Pair,
    args: Batch,
    *,
    families: Sequence[str] = FAMILIES,
    method: Literal["iw", "exact", "enum"] | None = None,
    draws: Whole = 1000,
    particles: Whole = 5000,
    seed: Whole = 0,
    rows: Whole = 250,
    numbers: Sequence[int] | None = None,
) -> xr.Dataset:
    """Return `gaps` for a pair that is already bound; ``numbers`` are those of the data, by default from 0."""
    draws, particles = whole_number("draws", draws, 16), whole_number("particles", particles, 30)
    seed, rows = seed_from(seed), whole_number("rows", rows, 1)
    if isinstance(families, str):
        raise InputError(f"families must be a list, such as ['{families}'], not a text")
    wanted = [word("families", family, FAMILIES) for family in families]
    if method not in (None, "iw", "enum", "exact"):
        raise InputError(f"evidence method must be 'iw', 'enum' or 'exact', not {method!r}")
    facts = facts_of(pair, args)
    refuse_no_density(pair, args, facts)
    whole = facts.plate is None or bool(facts.shared)
    if whole:
        refuse_part(pair, args, facts)
    else:
        refuse_own_minibatch(pair, args)
    cut = [args] if whole else blocks(pair, args, rows)
    search = Search(pair, facts, whole, wanted, draws, particles, seed)
    with evaluating(pair), isolated(seed, validation=False), kept_buffers(pair):
        parts = [search.block(block) for block in cut]
    closed = getattr(pair.model, "log_evidence", None) is not None
    drawn = [name for name in pair.layouts(args)[0].latents if name not in facts.summed]
    if method is not None or closed or not drawn or any(part.evidence is None for part in parts):
        found = evidence_of_pair(pair, args, method=method, particles=particles, seed=seed, compile=False)
        given = (torch.as_tensor(found[name].values).reshape(-1) for name in ("log_evidence", "mc_se", "khat"))
        split = zip(*(values.split([part.rows for part in parts]) for values in given), strict=True)
        parts = [part.given(evidence) for part, evidence in zip(parts, split, strict=True)]
        method = found.attrs["method"]
    else:
        method = "iw"
    return _dataset(_joined(parts), search, method, length_of(args), numbers)


def _joined(parts: list[Part]) -> Part:
    assert all(part.evidence is not None for part in parts)
    evidence = tuple(
        torch.cat(column) for column in zip(*(part.evidence for part in parts if part.evidence), strict=True)
    )
    names = parts[0].best
    return Part(
        torch.cat([part.elbo for part in parts], 1),
        {name: torch.cat([part.best[name] for part in parts], 1) for name in names},
        all(part.paired for part in parts),
        evidence,  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class _Number:
    """A number of each datum and its Monte Carlo error, (R,) each, and the Monte Carlo error of the mean over data."""

    value: Tensor
    error: Tensor
    common: float

    @classmethod
    def of(cls, draws: Tensor) -> "_Number":
        value, error = mean_and_error(draws)
        return cls(value, error, float(mean_and_error(draws.mean(1))[1]))

    def minus(self, other: "_Number") -> "_Number":
        """The difference of independent numbers."""
        return _Number(self.value - other.value, self.error.hypot(other.error), math.hypot(self.common, other.common))

    @property
    def mean(self) -> tuple[float, float]:
        """Mean over the data, and its error: that of the draws and of the data."""
        rows = len(self.value)
        spread = float(self.value.std()) / rows**0.5 if rows > 1 else 0.0
        return float(self.value.mean()), math.hypot(spread, self.common)


def _dataset(part: Part, search: Search, method: str, length: int, numbers: Sequence[int] | None) -> xr.Dataset:
    assert part.evidence is not None and search.own is not None
    value, error, shape = (v.double() for v in part.evidence)
    log_p = _Number(value, error, float(error.square().sum().sqrt()) / len(error))
    elbo = _Number.of(part.elbo)
    best = {name: _Number.of(draws) for name, draws in part.best.items()}
    own = search.own.name
    nothing = torch.full_like(value, math.nan)
    amortization = _Number(nothing, nothing, math.nan)
    if own and part.paired:
        amortization = _Number.of(part.best[own] - part.elbo)
    elif own:
        amortization = best[own].minus(elbo)
    single = {"log_evidence": log_p, "elbo": elbo, "gap": log_p.minus(elbo), "amortization": amortization}
    of_families = {"best_elbo": best, "approximation": {name: log_p.minus(number) for name, number in best.items()}}
    whole = search.whole
    dims: tuple[str, ...] = () if whole else ("datum",)

    def column(x: Tensor) -> np.ndarray:
        values: np.ndarray = x.cpu().double().numpy()
        return values.reshape(()) if whole else values

    variables: dict[str, Any] = {"khat": (dims, column(shape))}
    for name, number in single.items():
        variables[name], variables[f"{name}_se"] = (dims, column(number.value)), (dims, column(number.error))
        variables[f"mean_{name}"], variables[f"mean_{name}_se"] = number.mean
    for name, found in of_families.items():
        wide = ("family", *dims)
        empty = np.zeros((0, *column(value).shape))
        for suffix, which in (("", "value"), ("_se", "error")):
            rows = [column(getattr(number, which)) for number in found.values()]
            variables[f"{name}{suffix}"] = wide, np.stack(rows) if rows else empty
        means = np.array([number.mean for number in found.values()]).reshape(-1, 2)
        variables[f"mean_{name}"], variables[f"mean_{name}_se"] = ("family", means[:, 0]), ("family", means[:, 1])
    heavy, counted = int((shape > UNRELIABLE).sum()), int((~shape.isnan()).sum())
    # Where weights are equal, the errors are 0 to rounding, and the two numbers differ by rounding alone.
    rounding = 1e-6 * (1 + log_p.value.abs())
    above = [number.value - 4 * number.error > log_p.value + 4 * log_p.error + rounding for number in best.values()]
    below = int(torch.stack(above).any(0).sum()) if above else 0
    notes = [search.own.note]
    if search.rising:
        notes.append(
            f"for {search.rising} searches the ELBO still rose at the end, so that amortization may be too small"
        )
    note = "; ".join(text for text in notes if text)
    gap = single["gap"]
    worst = int(gap.value.argmax())
    datum = list(range(len(value))) if numbers is None else list(numbers)
    families = {name: number.mean for name, number in of_families["approximation"].items()}
    sentences = sentences_of(
        {
            "rows": length,
            "whole": whole,
            "size": search.size,
            "own": own,
            "gap": gap.mean,
            "amortization": amortization.mean,
            "approximation": families.get(own, (math.nan, math.nan)),
            "families": families,
            "worst": None
            if whole or len(value) < 2
            else (datum[worst], float(gap.value[worst]), float(gap.error[worst])),
            "heavy": (heavy, len(value)),
            "below": below,
            "exact": method != "iw",
            "note": note,
        }
    )
    return xr.Dataset(
        variables,
        coords={"family": list(best), **({} if whole else {"datum": datum})},
        attrs={
            "verdict": verdict_of(*gap.mean, search.size, heavy > 0.1 * max(counted, 1) or below > 0),
            "sentences": sentences,
            "own": own,
            "note": note,
            "method": method,
            "per": "data set" if whole else "datum",
            "latents": search.size,
            "rows": length,
            "draws": search.draws,
            "particles": search.particles,
            "seed": search.seed,
        },
    )
