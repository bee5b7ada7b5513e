"""Linear decoders with normal noise: what probabilistic PCA says about the number of units that can be active.

* `linear_decoder` finds out, from the model's own numbers, if x | z ~ N(A z + b, Σ) with one diagonal Σ for all data, and
  z ~ N(0, I) or another independent normal.
* `Spectrum` compares such a decoder with the maximum of the likelihood at its noise Σ, which has a closed form: with
  eigenvalues λ_i of the covariance of Σ^(−1/2) x, direction i is used if λ_i > 1 (Tipping and Bishop 1999). Units of the other
  directions are at their prior at every maximum (Lucas et al. 2019, arXiv:1911.02469).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Normal

from pyro_vi.data import Batch, fresh
from pyro_vi.diagnostics.collapsing.local_runs import LocalRun, spread
from pyro_vi.diagnostics.collapsing.unit_numbers import prior_law
from pyro_vi.diagnostics.collapsing.units import UnitSite, sites_of
from pyro_vi.elbo import Facts, entry_mask, one_run, unwrapped
from pyro_vi.programs import Give, Pair, role_of

FEW, TESTS = 3, 4
"""Data at which a decoder is looked at, and values of z at which it must be affine."""


@dataclass(frozen=True)
class Spectrum:
    """A linear decoder and the data, in units of the noise.

    Attributes:
        eigenvalues: λ_i of the covariance of the data, falling, ``(features,)``.
        signal: 1 + d_i², the variances along the decoder's own directions, falling, ``(directions,)``.
        kl: KL of the exact posterior along each of these, mean over the data, in nats.
        noise: the variance of the noise if it is one number, else NaN.
        evidence: log p(x) per datum of the decoder as it is, in nats.
        best: the same at the maximum for this noise.
    """

    eigenvalues: Tensor
    signal: Tensor
    kl: Tensor
    noise: float
    evidence: float
    best: float

    def used(self, threshold: float) -> int:
        """Number of directions that the decoder uses: with a KL above the threshold."""
        return int((self.kl > threshold).sum())

    def usable(self, threshold: float) -> int:
        """Number of directions that a decoder with this noise uses at the maximum: ½ log λ_i is above the threshold."""
        return int((0.5 * self.eigenvalues[: len(self.signal)].log() > threshold).sum())


def linear_decoder(pair: Pair, args: Batch, facts: Facts, drawn: LocalRun) -> Spectrum | None:
    """Return the spectrum of a pair whose model is linear and normal with local latents alone; None for other models."""
    sites = sites_of(drawn.run)
    if facts.shared or facts.summed or not sites or any(not bool(s.present.all()) for s in sites.values()):
        return None
    few = spread(pair, args, FEW)
    run = one_run(pair, few, False)
    prior = _prior(run, sites_of(run))
    data = [n for n, node in run.model_trace.nodes.items() if node["type"] == "sample" and role_of(node) == "observed"]
    if prior is None or len(data) != 1:
        return None
    found = _affine(pair, few, run, sites_of(run), prior, data[0])
    if found is None:
        return None
    weight, bias, scale = found
    node = one_run(pair, args, False).model_trace.nodes[data[0]]
    x = node["value"].reshape(-1, len(bias)).double()
    if not bool(entry_mask(node).all()) or not bool(x.isfinite().all()):
        return None
    return _spectrum(x / scale, weight / scale.unsqueeze(-1), bias / scale, scale)


def _prior(run: Any, sites: dict[str, UnitSite]) -> dict[str, tuple[Tensor, Tensor]] | None:
    """Mean and standard deviation of each unit, ``(units,)``, if they are independent normals, the same for all data."""
    found = {}
    for name, site in sites.items():
        law = prior_law(run.model_trace.nodes[name]["fn"], site)
        if not isinstance(law, Normal):
            return None
        loc, scale = (site.split(value.double()) for value in (law.loc, law.scale))
        if bool((loc != loc[:1]).any()) or bool((scale != scale[:1]).any()):
            return None
        found[name] = loc[0], scale[0]
    return found


def _affine(
    pair: Pair, args: Batch, run: Any, sites: dict[str, UnitSite], prior: dict[str, tuple[Tensor, Tensor]], data: str
) -> tuple[Tensor, Tensor, Tensor] | None:
    """A, b and the scales of x | ε ~ N(A ε + b, Σ), with ε the latents in units of their prior; None if it is not so."""
    loc, sd = (torch.cat([numbers[i] for numbers in prior.values()]) for i in (0, 1))
    count = len(loc)
    generator = torch.Generator().manual_seed(0)
    tests = 2 * torch.randn(TESTS, count, dtype=torch.float64, generator=generator)
    points = torch.cat([torch.zeros(1, count), torch.eye(count), tests])
    means = []
    scales = None
    for point in points:
        pieces = dict(zip(sites, (loc + sd * point).split([s.present.shape[1] for s in sites.values()]), strict=True))
        values = {}
        for name, site in sites.items():
            like = run.values[name]
            rows = pieces[name].to(like).expand(site.present.shape).unsqueeze(-1)
            values[name] = site.join(rows)
        with Give({**run.values, **values}):
            node: Any = poutine.trace(pair.model).get_trace(*fresh(args)).nodes[data]
        law = unwrapped(node["fn"])
        if not isinstance(law, Normal):
            return None
        shape = (len(next(iter(sites.values())).present), -1)
        if len(node["value"]) != shape[0]:
            return None
        mean, scale = (v.expand(node["fn"].shape()).reshape(shape).double() for v in (law.loc, law.scale))
        if not _close(mean, mean[:1], law.loc.dtype) or not _close(scale, scale[:1], law.loc.dtype):
            return None
        if scales is not None and not _close(scale[0], scales, law.loc.dtype):
            return None
        scales = scale[0]
        means.append(mean[0])
    every = torch.stack(means)
    bias, weight = every[0], (every[1 : count + 1] - every[0]).T
    fits = _close(tests @ weight.T + bias, every[count + 1 :], law.loc.dtype)
    return (weight, bias, scales) if fits and scales is not None else None


def _close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    return bool((one - other).abs().max() <= tolerance * (1e-6 + other.abs().max()))


def _spectrum(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Spectrum:
    """All in units of the noise, so that Σ is the identity."""
    features = x.shape[1]
    centred = x - x.mean(0)
    eigenvalues = torch.linalg.svdvals(centred).square() / len(x)
    eigenvalues = torch.nn.functional.pad(eigenvalues, (0, max(0, features - len(eigenvalues))))
    vectors, singular, _ = torch.linalg.svd(weight, full_matrices=False)
    signal = singular.square()
    # E[(uᵀ (x − b))²] over the data, along the decoder's directions and in all.
    along = ((x - bias) @ vectors).square().mean(0)
    every = (x - bias).square().sum(1).mean()
    constant = features * math.log(2 * math.pi) + 2 * float(scale.log().sum())
    now = constant + signal.log1p().sum() + every - (signal / (1 + signal) * along).sum()
    top = eigenvalues[: len(signal)]
    top = top[top > 1]
    best = constant + (top.log() + 1 - top).sum() + eigenvalues.sum()
    means = signal / (1 + signal).square() * along
    kl = 0.5 * (signal.log1p() + 1 / (1 + signal) - 1 + means)
    one = bool((scale == scale[0]).all())
    noise = float(scale[0] ** 2) if one else math.nan
    return Spectrum(eigenvalues, 1 + signal, kl, noise, -0.5 * float(now), -0.5 * float(best))
