"""KL and moments of each unit of the local latents, averaged over draws of the guide.

* `UnitSums` takes runs one by one; its ``result`` has the numbers of a site.
* `unchanged` says if the distributions of a site are the same in two runs, so that one draw is enough.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pyro_vi.diagnostics.collapsing.units import UnitSite, factorises, law_of, moment
from pyro_vi.elbo import Run

Source = Literal["closed", "marginal", "sampled", "least", "none"]
"""Where the KL of a unit comes from: the closed form of independent units, that of the marginals of dependent ones, draws,
a lower bound from the moments of draws, or nowhere."""


@dataclass(frozen=True)
class UnitNumbers:
    """Numbers of the units of one site; NaN where a unit is absent.

    Attributes:
        kl: KL(q(z_u | x_n) ‖ p(z_u)) in nats, ``(rows, units)``; given the other draws that q and p depend on.
        source: where it comes from.
        mean: E[z_u | x_n], ``(rows, units, numbers of a unit)``.
        noise: the variance of ``mean`` by the draws that it is taken from; 0 where it is in closed form.
        spread: variance of z_u under the prior, over the data and the draws it depends on, ``(units, numbers of a unit)``.
        entropy: of q(z_u | x_n) of a discrete site, ``(rows, units)``, else NaN.
    """

    kl: Tensor
    source: Source
    mean: Tensor
    noise: Tensor
    spread: Tensor
    entropy: Tensor


def unchanged(one: Run, other: Run, name: str) -> bool:
    """True if the guide's and the model's distributions at a site are the same in two runs."""
    return all(
        _same(first.nodes[name], second.nodes[name])
        for first, second in ((one.guide_trace, other.guide_trace), (one.model_trace, other.model_trace))
    )


def _same(one: Any, other: Any) -> bool:
    if tuple(one["fn"].shape()) != tuple(other["fn"].shape()):
        return False
    try:
        return torch.equal(*(node["fn"].log_prob(one["value"]).nan_to_num() for node in (one, other)))
    except (RuntimeError, ValueError, NotImplementedError):
        return False


class UnitSums:
    """Sums over runs for one site.

    Args:
        site: the site.
        reason: why the closed form of its KL is not the KL; empty if it is.
    """

    def __init__(self, site: UnitSite, reason: str = "") -> None:
        self.site, self.reason, self.count, self.source = site, reason, 0, "none"
        self.sums: dict[str, Tensor] = {}
        self.stated, self.unread = True, False

    def add(self, run: Run) -> None:
        """Take one run."""
        site, name = self.site, self.site.name
        given, prior, z = run.guide_trace.nodes[name]["fn"], run.model_trace.nodes[name]["fn"], run.values[name]
        q, p = law_of(given, site), prior_law(prior, site)
        self.count += 1
        numbers: dict[str, Tensor] = {}
        kl = self._kl(given, q, p, z)
        if kl is not None:
            numbers["kl"] = kl
        values = site.split_values(z.double())
        numbers |= {"z": values, "zz": values.square()}
        centre = None if q is None else moment(q, "mean")
        if centre is None:
            self.stated = False
        else:
            numbers["mean"] = site.split(centre.double())
            numbers["mean²"] = numbers["mean"].square()
        if q is not None and site.discrete:
            numbers["entropy"] = site.split(q.entropy().double())
        numbers |= self._prior(p)
        if p is not None and isinstance(p, Normal):
            numbers["scale²"] = site.split(p.scale.double().square())
            numbers["loc"] = site.split(p.loc.double())
            numbers["log_scale"] = site.split(p.scale.double().log())
        for key, value in numbers.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value

    def _kl(self, given: Any, q: Any, p: Any, z: Tensor) -> Tensor | None:
        if q is None or p is None:
            return None
        independent = factorises(given, self.site)
        if not self.reason:
            try:
                value = self.site.split(torch.as_tensor(kl_divergence(q, p)).double())
            except NotImplementedError:
                pass
            else:
                self.source = "closed" if independent else "marginal"
                return value
        self.source = "sampled"
        return self.site.split(q.log_prob(z).double() - p.log_prob(z).double())

    def _prior(self, p: Any) -> dict[str, Tensor]:
        """Mean and variance of a unit's prior."""
        found = {} if p is None else {name: moment(p, name) for name in ("mean", "variance")}
        if found and all(value is not None for value in found.values()):
            mean, variance = (
                self.site.split(value.double()).unsqueeze(-1) for value in found.values() if value is not None
            )
            return {"prior": mean, "prior²": mean.square() + variance}
        self.unread = not (self.site.discrete and not self.site.own)
        return {}

    def add_prior(self, value: Tensor) -> None:
        """Take a draw of the site from the prior."""
        draw = self.site.split_values(value.double().expand(*self.site.batch, *self.site.inner, *self.site.own))
        for key, number in (("prior", draw), ("prior²", draw.square()), ("priors", torch.ones(()))):
            self.sums[key] = self.sums[key] + number if key in self.sums else number

    def result(self) -> UnitNumbers:
        """The means over the runs."""
        site, here = self.site, self.site.present
        found = {name: value / self.count for name, value in self.sums.items()}
        nothing = torch.full(here.shape, math.nan, dtype=torch.float64)
        within = (found["zz"] - found["z"].square()) * self.count / max(1, self.count - 1)
        if self.stated:
            mean = found["mean"].unsqueeze(-1)
            within = (found["mean²"].unsqueeze(-1) - mean.square()) * self.count / max(1, self.count - 1)
        else:
            mean = found["z"]
        kl = found.get("kl")
        if kl is None and "scale²" in found and not site.own and self.count > 2:
            kl, self.source = self._least(found, within.squeeze(-1)), "least"
        spread = torch.full((here.shape[1], mean.shape[-1]), math.nan, dtype=torch.float64)
        if "prior" in found and not (site.discrete and not site.own and not self.stated):
            weight, many = here.double().unsqueeze(-1), found.get("priors", torch.ones(()))
            first, second = ((found[key] / many * weight).sum(0) / weight.sum(0) for key in ("prior", "prior²"))
            spread = second - first.square()
        return UnitNumbers(
            kl=nothing if kl is None else kl.masked_fill(~here, math.nan),
            source=self.source,  # type: ignore[arg-type]
            mean=mean.masked_fill(~here.unsqueeze(-1), math.nan),
            noise=(within / self.count).clamp(min=0).masked_fill(~here.unsqueeze(-1), math.nan),
            spread=spread,
            entropy=found.get("entropy", nothing),
        )

    def _least(self, found: dict[str, Tensor], variance: Tensor) -> Tensor:
        """KL of the normal with the moments of q, which is below KL(q ‖ p) for a normal p: it has the same cross-entropy and

        the largest entropy. The bias of moments from S draws is taken out: E log s² of normal draws is
        log σ² + ψ((S − 1)/2) − log((S − 1)/2).
        """
        half = torch.tensor((self.count - 1) / 2, dtype=torch.float64)
        log_variance = variance.log() - half.digamma() + half.log()
        square = (found["z"].squeeze(-1) - found["loc"]).square() - variance / self.count
        ratio = (variance + square) / found["scale²"]
        return 0.5 * (ratio - 1 - log_variance) + found["log_scale"]


def prior_law(fn: Any, site: UnitSite) -> Any:
    """The distribution of the units in the model; None if they depend on each other, or on a site that is summed out."""
    if len(fn.batch_shape) > len(site.batch) or not factorises(fn, site):
        return None
    return law_of(fn, site)


def variance_of_means(numbers: UnitNumbers, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Var_x(E[z_u | x]) in units of the prior's variance, its standard error over the data, and that by the draws alone.

    Of a unit of several numbers, sums over them are compared. The variance by draws is taken out. Shapes ``(units,)``.
    """
    count = present.sum(0).double()
    mean = numbers.mean.nanmean(0)
    squares = ((numbers.mean - mean).square()).sum(-1)
    total = numbers.spread.sum(-1)
    value = (squares - numbers.noise.sum(-1)).nanmean(0) * count / (count - 1)
    spread = (squares - squares.nanmean(0)).square().nanmean(0)
    drawn = numbers.noise.sum(-1).nanmean(0) * (2 / count).sqrt()
    return value / total, (spread / count).sqrt() / total, drawn / total
