"""The posterior that a unit would have, given the decoder: is a guide right to leave the unit at its prior?

`posteriors_of` compares the guide's law of one unit z_u with p(z_u | x_n, z_−u), the posterior given the other latents, with
z_−u from the guide. With draws z_u^k of the guide and w_k = p(x_n, z_u^k, z_−u) / q(z_u^k),

* use = KL(p(z_u | x_n, z_−u) ‖ q(z_u)) = E[w log w] / E[w] − log E[w]: 0 if the model does not use the unit;
* gain = log E[w̄] − E[log w̄], with log w̄ the mean of log w over z_−u: what the ELBO of the datum gains if the factor of this
  unit alone becomes the best one, exp E log p(x_n, z_u, z_−u), which is the update of coordinate ascent (Bishop 2006, section
  10.1.1). No start has to be chosen, and no optimum can be missed.

Where q(z_u) depends on other latents, the gain is the mean of that given them. Means of few weights make both numbers too low
rather than too high. Both are at least 0, and exactly 0 if log p(x_n, z) depends on the unit by its prior alone and q is that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vi.data import Batch
from pyro_vi.diagnostics.collapsing.local_runs import LocalRun, local_run, log_joint_of, with_particles
from pyro_vi.diagnostics.collapsing.unit_numbers import prior_law
from pyro_vi.diagnostics.collapsing.units import UnitSite, law_of, sites_of
from pyro_vi.elbo import MEMORY, Facts, at_once, nesting_of
from pyro_vi.programs import Pair

VALUES, CONTEXTS = 32, 8
"""Values of the unit, and draws of the other latents, for each datum."""
MOST = 64
"""Most units that are looked at."""


@dataclass(frozen=True)
class UnitPosterior:
    """Numbers of one unit over the data, in nats, with their standard errors over the data.

    ``use`` and ``gain`` as above; NaN where no distribution of the unit by itself is known.
    """

    use: float
    use_se: float
    gain: float
    gain_se: float


def posteriors_of(
    pair: Pair, args: Batch, facts: Facts, units: Mapping[str, Sequence[int]]
) -> dict[tuple[str, int], UnitPosterior]:
    """Return the numbers of some units, by site and unit; at most 64 of them, evenly spaced.

    Args:
        pair: model and guide.
        args: the data.
        facts: the facts about the pair.
        units: the units, by site.
    """
    every = [(name, unit) for name, some in units.items() for unit in some]
    if len(every) > MOST:
        every = [every[int(i)] for i in torch.linspace(0, len(every) - 1, MOST).round()]
    vectorized, nesting = at_once(pair, args, facts), nesting_of(pair, args)
    contexts = [local_run(pair, args, facts) for _ in range(CONTEXTS)]
    found = {}
    for name in dict.fromkeys(name for name, _ in every):
        site = sites_of(contexts[0].run)[name]
        values = _drawn(contexts, site)
        if values is None:
            continue
        drawn, common = values
        for unit in [u for n, u in every if n == name]:
            rows = _log_weights(pair, args, facts, contexts, site, unit, drawn, vectorized, nesting)
            found[name, unit] = _numbers(rows, site.present[:, unit], common)
    return found


@dataclass(frozen=True)
class _Drawn:
    """Values of all units of a site, ``(values, rows, units, numbers)``, and log of the density that they are drawn from."""

    values: Tensor
    density: Tensor


def _drawn(contexts: Sequence[LocalRun], site: UnitSite) -> tuple[list[_Drawn], bool] | None:
    """Values for each context, and if they are the same in each; None if the units have no density by themselves."""
    laws = [_law(context, site) for context in contexts]
    if any(law is None for law in laws):
        return None
    z = laws[0].sample((VALUES,))
    first = laws[0].log_prob(z)
    if all(torch.equal(first, law.log_prob(z)) for law in laws[1:]):
        return [_Drawn(site.split_values(z), site.split(first.double()))] * len(laws), True
    found = []
    for law in laws:
        z = law.sample((VALUES,))
        found.append(_Drawn(site.split_values(z), site.split(law.log_prob(z).double())))
    return found, False


def _law(context: LocalRun, site: UnitSite) -> Any:
    """The guide's distribution of the units; if it is not known, the model's, which is that of units at their prior."""
    run = context.run
    law: Any = law_of(run.guide_trace.nodes[site.name]["fn"], site)
    if law is None:
        law = prior_law(run.model_trace.nodes[site.name]["fn"], site)
    shape = torch.Size((*site.batch, *site.inner))
    return law if law is None or law.batch_shape == shape else law.expand(shape)


def _log_weights(
    pair: Pair,
    args: Batch,
    facts: Facts,
    contexts: Sequence[LocalRun],
    site: UnitSite,
    unit: int,
    drawn: Sequence[_Drawn],
    vectorized: bool,
    nesting: int,
) -> Tensor:
    """log w of each value, context and datum: shape ``(values, contexts, rows)``."""
    found = []
    for context, pieces in zip(contexts, drawn, strict=True):
        own = site.split_values(context.run.values[site.name])
        changed = own.expand(VALUES, *own.shape).clone()
        changed[:, :, unit] = pieces.values[:, :, unit]
        values = site.join(changed)
        chunk = max(1, min(VALUES, 4 * MEMORY // max(1, values[0].numel() * 8))) if vectorized else 1
        parts = []
        for some in values.split(chunk):
            given = with_particles(some, len(site.batch), nesting) if vectorized else some[0]
            parts.append(
                log_joint_of(
                    pair, args, facts, {**context.run.values, site.name: given}, len(some) if vectorized else None
                )
            )
        found.append(torch.cat(parts) - pieces.density[:, :, unit])
    return torch.stack(found, 1)


def _numbers(log_w: Tensor, present: Tensor, common: bool) -> UnitPosterior:
    log_w = log_w[..., present]
    mean = log_w.logsumexp(0) - math.log(len(log_w))
    weight = (log_w - log_w.logsumexp(0)).exp()
    use = ((weight * (log_w - mean)).sum(0)).mean(0)
    centre = log_w.mean(1, keepdim=True) if common else log_w
    gain = (centre.logsumexp(0) - math.log(len(centre)) - centre.mean(0)).mean(0)
    use, gain = use.clamp(min=0), gain.clamp(min=0)  # but for rounding, they are
    count = max(1, int(present.sum()))
    error = [float(x.std()) / count**0.5 if count > 1 else math.nan for x in (use, gain)]
    return UnitPosterior(float(use.mean()), error[0], float(gain.mean()), error[1])
