"""Why an estimate of the evidence needs a guide: `python scripts/study_evidence.py`.

log p(x) = log E_q[p(x, z) / q(z)] holds for any proposal q, even for the prior: log (1/K) Σ_k p(x | z_k). The claim: the
estimate needs about e^KL(p(z|x) ‖ q) draws (Chatterjee and Diaconis 2018, arXiv:1511.01437). With fewer draws it is far too
low, because it misses the few z that explain x. For the prior, this number grows exponentially with the latent dimension.
For a fitted guide it stays small. For the exact posterior, every single draw gives log p(x). With more draws, the bias
falls as 1 / K (Burda et al. 2016, arXiv:1509.00519), but only if the weights p(x, z) / q(z) have a finite variance. A
diagonal guide fitted by its ELBO is narrower than a correlated posterior, so the variance of its weights may be infinite.
The last tenths of a nat then need very many draws.

The model is linear-Gaussian, so log p(x) and the KL have closed forms. The guide is fitted by SVI.

The picture: the error of the estimate against K (mean over repetitions and data, with the band of the middle 80 %), for the
three proposals, in two and in eight latent dimensions. Dotted lines mark K = e^KL.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import torch
import tyro
import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import pyro_vi
from pyro_vi.guides.exact import Exact
from pyro_vi.models.linear_gaussian import LinearGaussian
from pyro_vi.programs import data_plate
from pyro_vi.reporting.look import LOOK, legend, looks

PROPOSALS, DIMENSIONS, FEATURES, NOISE = ("prior", "fitted guide", "exact posterior"), (2, 8), 12, 0.5


class Guide(nn.Module):
    """q(z | x) = N(B x + c, diag(s²)): before it is fitted, with B = 0, c = 0 and s = 1, it is the prior."""

    def __init__(self, model: LinearGaussian, batch: tuple[Tensor, ...]) -> None:
        super().__init__()
        latent_dim, self.num_data = model.latent_dim, model.data.num_data
        self.loc = nn.Linear(batch[0].shape[1], latent_dim, dtype=batch[0].dtype)
        for parameter in self.loc.parameters():
            nn.init.zeros_(parameter)
        self.log_scale = nn.Parameter(torch.zeros(latent_dim, dtype=batch[0].dtype))

    def forward(self, x: Tensor) -> None:
        with data_plate(self.num_data, x):
            pyro.sample("z", dist.Normal(self.loc(x), self.log_scale.exp()).to_event(1))

    def divergence(self, posterior: MultivariateNormal, x: Tensor) -> Tensor:
        """KL(p(z | x) ‖ q(z | x)) of each datum, in closed form."""
        return kl_divergence(posterior, MultivariateNormal(self.loc(x), scale_tril=self.log_scale.exp().diag()))

    def finite_variance(self, posterior: MultivariateNormal) -> bool:
        """True if ∫ p(z | x)² / q(z | x) dz is finite: if twice the posterior's precision exceeds the guide's."""
        excess = 2 * posterior.precision_matrix[0] - (-2 * self.log_scale).exp().diag()
        return bool(torch.linalg.eigvalsh(excess).min() > 0)


def setting(latent_dim: int, steps: int) -> tuple[LinearGaussian, dict[str, nn.Module], Tensor]:
    """A model with parameters drawn at random, data drawn from it, and the three proposals."""
    generator = torch.Generator().manual_seed(latent_dim)
    shape = dict(generator=generator, dtype=torch.float64)
    weight = torch.randn(FEATURES, latent_dim, **shape)
    z = torch.randn(1000, latent_dim, **shape)
    x = z @ weight.mT + NOISE * torch.randn(1000, FEATURES, **shape)
    data = pyro_vi.load(x)
    model = LinearGaussian(data.spec, latent_dim=latent_dim, weight=weight, scale=NOISE, learn=False)
    run = pyro_vi.fit(model, Guide, data, steps=steps, lr=0.03, schedule="cosine", progress=False)
    guides = (Guide(model, data.heldout), run.guide, Exact(model, data.heldout))
    return model, dict(zip(PROPOSALS, guides, strict=True)), data.heldout[0]


def estimate(model: nn.Module, guide: nn.Module, x: Tensor, k: int, seed: int) -> np.ndarray:
    """log (1/K) Σ p(x, z_k) / q(z_k) of each row."""
    if k == 1:  # without a standard error of its own
        return pyro_vi.terms(model, guide, x, kl="sampled", seed=seed).log_weight.detach().numpy()
    return pyro_vi.evidence(model, guide, x, method="iw", particles=k, seed=seed).log_evidence.values


def measure(most: int = 5, repetitions: int = 16, rows: int = 4, steps: int = 1500) -> xr.Dataset:
    """Error of log p̂(x) in nats over dimension, proposal, K = 1 ... 10^most, repetition and datum; and what to expect."""
    ks = [10**power for power in range(most + 1)]
    error = np.zeros((len(DIMENSIONS), len(PROPOSALS), len(ks), repetitions, rows))
    kl, finite = np.zeros(error.shape[:2]), np.ones(error.shape[:2], dtype=bool)
    for i, latent_dim in enumerate(DIMENSIONS):
        model, guides, heldout = setting(latent_dim, steps)
        x = heldout[:rows]
        exact = pyro_vi.evidence(model, guides["prior"], x, method="exact").log_evidence.values
        for j, guide in enumerate(guides.values()):
            if isinstance(guide, Guide):
                kl[i, j] = float(guide.divergence(model.posterior(x)["z"], x).mean().detach())
                finite[i, j] = guide.finite_variance(model.posterior(x)["z"])
            for n, k in enumerate(ks):
                # A datum stands in the batch as often as it is to be estimated anew.
                found = estimate(model, guide, x.repeat(repetitions, 1), k, seed=n)
                error[i, j, n] = found.reshape(repetitions, rows) - exact
    dims = ("latent_dim", "proposal", "k", "repetition", "datum")
    coords: dict[str, Any] = {"latent_dim": list(DIMENSIONS), "proposal": list(PROPOSALS), "k": ks}
    return xr.Dataset({"error": (dims, error), "kl": (dims[:2], kl), "finite": (dims[:2], finite)}, coords=coords)


@matplotlib.rc_context(LOOK)
def draw(numbers: xr.Dataset) -> Figure:
    """Error of the estimate against the number of draws, a panel for each latent dimension."""
    figure, styles = Figure(figsize=(9.0, 4.0), layout="constrained"), looks(PROPOSALS)
    for axes, latent_dim in zip(figure.subplots(1, 2, sharey=True), DIMENSIONS, strict=True):
        for name in PROPOSALS:
            found, look = numbers.sel(latent_dim=latent_dim, proposal=name), styles[name]
            together = found.error.stack(draw=("repetition", "datum"))
            low, high = together.quantile((0.1, 0.9), "draw").values
            axes.fill_between(found.k, low, high, color=look.colour, alpha=0.18, linewidth=0)
            axes.plot(found.k, together.mean("draw"), color=look.colour, marker=look.marker, markersize=4, label=name)
            if name != PROPOSALS[2]:
                axes.axvline(np.exp(float(found.kl)), color=look.colour, linestyle=":", linewidth=1.4)
        axes.axhline(0, color="0.2", linewidth=0.8, zorder=0)
        axes.set(xscale="log", xlabel="draws K", title=f"{latent_dim} latent dimensions")
        axes.set_yscale("symlog", linthresh=0.1, linscale=0.6)
    figure.axes[0].set_ylabel("estimate of log p(x) − exact value (nats per datum)")
    figure.axes[0].plot([], [], color="0.4", linestyle=":", label="K = exp KL(posterior ‖ proposal)")
    figure.suptitle(
        "Estimates of the evidence against the number of draws (line: mean; band: middle 80 %)", fontsize=10
    )
    legend(figure)
    return figure


def main(
    out: Path = Path("runs/study_evidence"), most: int = 5, repetitions: int = 16, rows: int = 4, steps: int = 1500
) -> None:
    """Estimate the evidence of a linear-Gaussian model from three proposals, against the number of draws.

    Args:
        out: folder for the picture.
        most: the largest number of draws is 10 to this power.
        repetitions: repetitions of each estimate, each with new draws.
        rows: number of data.
        steps: steps of the guide's fit.
    """
    numbers = measure(most, repetitions, rows, steps)
    table = Table(title="Error of log p(x), nats per datum: mean (sd over repetitions)", title_justify="left")
    for column in ("dim z", "proposal", "e^KL", "Var(w)", *(f"K = {k}" for k in numbers.k.values)):
        table.add_column(column, justify="left" if column == "proposal" else "right", no_wrap=True)
    for latent_dim in DIMENSIONS:
        for name in PROPOSALS:
            found = numbers.sel(latent_dim=latent_dim, proposal=name)
            means, spreads = found.error.mean(("repetition", "datum")), found.error.std("repetition").mean("datum")
            both = zip(means.values.round(9) + 0.0, spreads.values, strict=True)
            cells = [f"{m:.{d}f} ({s:.{d}f})" for m, s in both for d in [0 if abs(m) > 10 else 3]]
            table.add_row(
                str(latent_dim),
                name,
                f"{float(np.exp(found.kl)):.1f}",
                "finite" if found.finite else "infinite",
                *cells,
            )
    Console(highlight=False, width=160).print(table)
    last = abs(numbers.error.isel(k=-1).mean(("repetition", "datum")).sel(latent_dim=DIMENSIONS[-1]))
    needed = np.exp(numbers.kl.sel(latent_dim=DIMENSIONS[-1]))
    print(
        f"In {DIMENSIONS[-1]} dimensions with {int(numbers.k[-1])} draws, the error is "
        f"{float(last.sel(proposal='prior')):.2g} nats from the prior, and "
        f"{float(last.sel(proposal='fitted guide')):.1g} from the fitted guide.\n"
        f"e^KL is {float(needed.sel(proposal='prior')):.0g} for the prior, and "
        f"{float(needed.sel(proposal='fitted guide')):.2g} for the fitted guide."
    )
    out.mkdir(parents=True, exist_ok=True)
    draw(numbers).savefig(out / "evidence.png", dpi=150)
    print(out / "evidence.png")


if __name__ == "__main__":
    tyro.cli(main)
