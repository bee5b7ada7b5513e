"""The ELBO of given data under a fitted pair: its value per datum, its two parts, and the terms of its sites."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyro_vi.data import Batch, length_of
from pyro_vi.data import part as part_of
from pyro_vi.elbo.decomposition import KL, Terms
from pyro_vi.elbo.draws import stream, vectorizes
from pyro_vi.programs import Pair, evaluating, isolated


@dataclass(frozen=True)
class Evaluation:
    """The ELBO of each datum and its two parts, averaged over draws, in nats: tensors of shape ``(n,)``.

    Attributes:
        reconstruction: log p(x | z), or NaN where the ELBO does not split.
        kl: the KL, or NaN.
        unsplit: the ELBO of a pair in which sites are summed out, where it does not split.
        log_joint: log p(x, z) of a point estimate, which has no ELBO.
        of_draws: mean ELBO over data of each draw, of shape ``(draws,)``: its spread is the Monte Carlo error.
        observed: E_q log p of each observed site, averaged over data, by its name; empty where the ELBO does not split.
        latents: the KL of each latent site, in the same way. The sum of ``observed`` minus that of ``latents`` is the ELBO.
    """

    reconstruction: Tensor
    kl: Tensor
    unsplit: Tensor | None = None
    log_joint: Tensor | None = None
    of_draws: Tensor | None = None
    observed: Mapping[str, Tensor] = field(default_factory=dict)
    latents: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def elbo_per_datum(self) -> Tensor:
        """The ELBO, reconstruction − KL; NaN for a point estimate."""
        return self.reconstruction - self.kl if self.unsplit is None else self.unsplit

    @property
    def elbo_mean(self) -> float:
        """Mean ELBO over data."""
        return float(self.elbo_per_datum.mean())

    @property
    def elbo_se(self) -> float:
        """Standard error of the mean ELBO over data."""
        return standard_error(self.elbo_per_datum)


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of independent values."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")


def evaluate(
    pair: Pair,
    args: Batch,
    *,
    draws: int = 100,
    kl: KL = "analytic",
    seed: int | None = 0,
    rows: int = 1000,
    num_data: int | None = None,
) -> Evaluation:
    """E_q[log p(x | z)] and KL(q ‖ p) per datum, averaged over draws from the guide, in evaluation mode.

    Args:
        pair: model and guide.
        args: the data, ``n`` rows; taken ``rows`` at a time.
        draws: draws for each datum.
        kl: closed forms where they exist, or the draws' log q − log p.
        seed: of the draws, the same for every pair that is to be compared; None continues from the generators' present state.
        rows: how many data at a time.
        num_data: N, by which the KL of latents that all data share is divided; by default the size of the data plate.
    """
    parts, of_draws = [], torch.zeros(draws)
    by_site: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    with evaluating(pair), isolated(seed, validation=False):
        if length_of(args) > rows and not pair.separable(args, rows):
            rows = length_of(args)
        vectorized = draws > 1 and vectorizes(pair, part_of(args, 0, rows))
        for start in range(0, length_of(args), rows):
            batch = part_of(args, start, start + rows)
            totals: list[Tensor] = [torch.zeros(()), torch.zeros(())]
            sums = []
            for terms in stream(pair, batch, draws, kl=kl, vectorized=vectorized):
                if num_data is not None:
                    terms = replace(terms, num_data=num_data)
                both = [part.reshape(-1, terms.rows) for part in (terms.reconstruction, terms.kl)]
                for i, part in enumerate(both):
                    totals[i] = totals[i] + part.sum(0)
                sums.append((both[0] - both[1]).sum(1))
                _add(by_site, terms, len(both[0]))
            parts.append([total / draws for total in totals])
            of_draws = of_draws.to(sums[0]) + torch.cat(sums)
    reconstruction, divergence = (torch.cat(columns) for columns in zip(*parts, strict=True))
    observed, latents = ({name: sum_ / (draws * len(divergence)) for name, sum_ in one.items()} for one in by_site)
    return Evaluation(
        reconstruction, divergence, of_draws=of_draws / len(divergence), observed=observed, latents=latents
    )


def _add(sums: tuple[dict[str, Tensor], dict[str, Tensor]], terms: Terms, count: int) -> None:
    """Add the terms of ``count`` draws, summed over draws and data, to the sums of the observed and the latent sites."""
    for name, site in terms.sites.items():
        value = site.divergence if site.latent else site.log_p
        if value is not None:
            share = value if site.local else value.unsqueeze(-1) / terms.num_data
            total = share.expand(*share.shape[:-1], terms.rows).reshape(-1, terms.rows).mean(0).sum() * count
            one = sums[site.latent]
            one[name] = one[name] + total if name in one else total
