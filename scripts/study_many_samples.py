"""Signal-to-noise ratio of the guide's gradient under IWAE and DReG, against K: `python scripts/study_many_samples.py`.

The importance-weighted bound E log (1/K) Σ_k p(x, z_k) / q(z_k) rises to log p(x) with K (Burda et al. 2016,
arXiv:1509.00519). The claim: the signal-to-noise ratio of its gradient in the guide's parameters falls as K^(−1/2)
(Rainforth et al. 2018, arXiv:1802.04537). The doubly reparameterised gradient (DReG) is a gradient of the same bound. Its
ratio rises as K^(1/2) (Tucker et al. 2018, arXiv:1810.04152).

The pair is z ~ N(0, 1), x | z ~ N(z, 1) at x = 1.3 with the guide N(0.6, 0.75²). The ratio is |mean| / standard deviation
of one datum's gradient in the guide's mean. As K grows, IWAE's mean soon becomes too small to be measured among its noise.
Both gradients have the same mean, so IWAE's ratio uses the mean of DReG (filled points). The hollow points use IWAE's own
mean.

The picture. Left: the two ratios against K. Right: the bound and the exact evidence. The dashed line is log p(x) − V / 2K,
where V is the variance of the normalised weights p(z | x) / q(z), in closed form.
"""

import math
from pathlib import Path

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

import pyro_vi
from pyro_vi.reporting.look import LOOK, legend, looks

NAMES, KS = ("iwae", "dreg"), (1, 4, 16, 64, 256)
X, M, S = 1.3, 0.6, 0.75
EVIDENCE = -0.5 * math.log(2 * math.pi * 2) - X**2 / 4  # log N(x; 0, 2)


def weight_variance() -> float:
    """Var_q of p(z | x) / q(z) for the posterior N(x/2, 1/2): √ of a ratio of Gaussian integrals, less 1."""
    precision = 2 / 0.5 - 1 / S**2
    exponent = 2 * (X / 2 - M) ** 2 / 0.5 / S**2 / precision
    return S / 0.5 / math.sqrt(precision) * math.exp(exponent / 2) - 1


def model(x: Tensor) -> None:
    """z ~ N(0, 1), x | z ~ N(z, 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Guide(nn.Module):
    """q(z_n) = N(m + each_n, s²) with each_n = 0.

    The derivative in ``m`` is the mean of all data's gradients, that in ``each`` has them apart: the one gives their mean, the
    other their variance, from every draw of every datum.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(M, dtype=torch.float64))
        self.each = nn.Parameter(torch.zeros(rows, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.m + self.each, S))


def measure(rows: int = 2000, draws: int = 60, seed: int = 0) -> xr.Dataset:
    """Mean and standard deviation of one datum's gradient in m, and the bound, over estimator and K; errors with ``_se``."""
    elbos = [f"{name}(num_particles={k})" for name in NAMES for k in KS]
    x = torch.full((rows,), X, dtype=torch.float64)
    audit = pyro_vi.audit(model, Guide(rows), x, elbos=elbos, draws=draws, seed=seed)
    shape, count = (len(NAMES), len(KS)), rows * draws

    def of(variable: str, **where: str) -> np.ndarray:
        return audit[variable].sel(elbo=elbos, **where).values.reshape(shape)

    variance = rows * of("grad_var", parameter="each")  # the audit's is of the mean over the data
    mean, sd = of("grad_mean", parameter="m"), np.sqrt(variance)
    sd_se = rows * of("grad_var_se", parameter="each") / (2 * sd)
    shared = mean[1] / sd  # DReG's mean: the mean of both
    error = shared * np.hypot(sd[1] / np.sqrt(count) / mean[1], sd_se / sd)
    dims = ("elbo", "k")
    return xr.Dataset(
        {
            **{"mean": (dims, mean), "mean_se": (dims, sd / np.sqrt(count)), "sd": (dims, sd)},
            **{"snr": (dims, shared), "snr_se": (dims, error), "own_snr": (dims, mean / sd)},
            **{"bound": (dims, of("value_mean")), "bound_se": (dims, of("value_se"))},
        },
        coords={"elbo": list(NAMES), "k": list(KS)},
        attrs={"gradients": count},
    )


def slope(numbers: xr.Dataset, name: str) -> tuple[float, float, float]:
    """Exponent of K in the ratio, by least squares in the logarithms, its standard error, and the intercept."""
    (power, constant), covariance = np.polyfit(np.log(KS), np.log(numbers.snr.sel(elbo=name)), 1, cov=True)
    return float(power), float(np.sqrt(covariance[0, 0])), float(constant)


@matplotlib.rc_context(LOOK)
def draw(numbers: xr.Dataset) -> Figure:
    """Signal-to-noise ratio and bound against the number of samples."""
    figure, styles = Figure(figsize=(8.6, 4.0), layout="constrained"), looks(NAMES)
    left, right = figure.subplots(1, 2)
    k = np.geomspace(KS[0], KS[-1])
    for name in NAMES:
        found, look = numbers.sel(elbo=name), styles[name]
        power, error, constant = slope(numbers, name)
        left.plot(k, np.exp(constant) * k**power, color=look.colour, linewidth=1)
        bars = {"linestyle": "", "color": look.colour, "marker": look.marker, "markersize": 5, "capsize": 2}
        left.errorbar(KS, found.snr, 2 * found.snr_se, label=name, **bars, zorder=3)
        left.annotate(
            f"slope {power:.3f} ± {error:.3f}".replace("-", "−"),
            (KS[2], float(found.snr.sel(k=KS[2]))),
            (0, 14 if power < 0 else -20),
            textcoords="offset points",
            color=look.colour,
            ha="left",
        )
    own = numbers.sel(elbo="iwae")
    error = 2 / math.sqrt(numbers.gradients)
    bars |= {"color": styles["iwae"].colour, "marker": "o", "capsize": 0}
    hollow = {"markerfacecolor": "white", "linewidth": 0.8, "zorder": 1}
    left.errorbar(np.array(KS) * 1.15, own.own_snr, error, label="iwae, with its own mean", **(bars | hollow))
    # Both have the same bound, from the same draws.
    right.errorbar(KS, own.bound, 2 * own.bound_se, **(bars | {"color": "0.2", "capsize": 2}), label="bound (±2 se)")
    left.set(xscale="log", yscale="log", ylim=(1e-3, 20), xlabel="samples K", ylabel="|mean| / sd of the gradient in m")
    left.set_title("Signal-to-noise ratio of one datum's gradient")
    right.axhline(EVIDENCE, color="0.2", linewidth=1, label="exact evidence")
    right.plot(k, EVIDENCE - weight_variance() / (2 * k), color="0.5", linestyle="--", label="log p(x) − V / 2K")
    right.set(xscale="log", xlabel="samples K", ylabel="nats", title="Importance-weighted bound")
    right.set_ylim(float(numbers.bound.min()) - 0.0012, EVIDENCE + 0.0006)
    for axes in (left, right):
        axes.set_xticks(KS, [str(k) for k in KS])
        axes.minorticks_off()
    legend(figure)
    return figure


def main(out: Path = Path("runs/study_many_samples"), rows: int = 2000, draws: int = 60) -> None:
    """Measure the signal-to-noise ratio of the guide's gradient, and the bound, against the number of samples.

    Args:
        out: folder for the picture.
        rows: copies of the datum, each with samples of its own.
        draws: evaluations of each estimator on all of them.
    """
    numbers = measure(rows, draws)
    title = f"{numbers.gradients} gradients per estimator and K; exact evidence {EVIDENCE:.4f} nats"
    table = Table(title=title, title_justify="left")
    for column in ("K", "iwae: mean ± se", "sd", "ratio", "dreg: mean ± se", "sd", "ratio", "bound"):
        table.add_column(column, justify="right")
    for k in KS:
        row = [str(k)]
        for name in NAMES:
            found = numbers.sel(elbo=name, k=k)
            row += [f"{float(found['mean']):.5f} ± {float(found.mean_se):.5f}", f"{float(found.sd):.4f}"]
            row += [f"{float(found.snr):.4f}"]
        table.add_row(*row, f"{float(numbers.bound.sel(elbo='iwae', k=k)):.4f}")
    Console(highlight=False, width=120).print(table)
    said = {name: "{:.3f} ± {:.3f}".format(*slope(numbers, name)) for name in NAMES}
    last = EVIDENCE - float(numbers.bound.sel(elbo="iwae", k=KS[-1]))
    print(
        f"The ratio changes as K^({said['iwae']}) under iwae, and as K^({said['dreg']}) under dreg, for the same bound.\n"
        f"The bound is {EVIDENCE - float(numbers.bound.sel(elbo='iwae', k=1)):.4f} nats below the evidence at K = 1 "
        f"and {last:.5f} at K = {KS[-1]}."
    )
    out.mkdir(parents=True, exist_ok=True)
    draw(numbers).savefig(out / "many_samples.png", dpi=150)
    print(out / "many_samples.png")


if __name__ == "__main__":
    tyro.cli(main)
