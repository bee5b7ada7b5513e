"""Which ELBO estimator has the smallest gradient variance depends on the guide's width: `python scripts/study_guide_width.py`.

The pair is z ~ N(0, 1), x | z ~ N(z, 1) with the guide q(z) = N(m, s²) and z = m + s ε. The derivatives of one draw of the
ELBO in m and in l = log s have these variances over ε, in closed form:

    trace        4 s²             and   (x − 2m)² s² + 8 s⁴            (total derivative, sampled KL)
    mean_field   s²               and   (x − m)² s² + 2 s⁴             (total derivative, analytic KL)
    stl          (1/s − 2s)²      and   (x − 2m)² s² + 2 (1 − 2s²)²    (path derivative)

The claim: no estimator is best everywhere. Dropping the score (Roeder et al. 2017, arXiv:1703.09194) removes all noise
where the guide is the posterior, s² = 1/2. It adds much noise where the guide is too narrow. The analytic KL is often said
to have the smaller variance. It has the larger one in log s where the guide is narrow and has the right mean.

The picture: the closed forms against s as lines, and the variances that `pyro_vi.audit` measures as points. Dotted lines
mark the widths at which two estimators change places. The strip along the bottom has the colour of the estimator with the
smallest variance.
"""

import math
from itertools import combinations
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

ELBOS = ("trace", "mean_field", "stl")
X, MEANS, WIDTHS = 1.3, (0.65, 0.3), np.geomspace(0.15, 1.5, 12)


def theory(elbo: str, m: float, s: np.ndarray) -> dict[str, np.ndarray]:
    """Var of one draw's derivative in m and in log s, in nats²."""
    return {
        "trace": {"m": 4 * s**2, "log s": (X - 2 * m) ** 2 * s**2 + 8 * s**4},
        "mean_field": {"m": s**2, "log s": (X - m) ** 2 * s**2 + 2 * s**4},
        "stl": {"m": (1 / s - 2 * s) ** 2, "log s": (X - 2 * m) ** 2 * s**2 + 2 * (1 - 2 * s**2) ** 2},
    }[elbo]


def model(x: Tensor) -> None:
    """z ~ N(0, 1), x | z ~ N(z, 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Guide(nn.Module):
    """q(z_n) = N(m_n, s_n²) with parameters of its own for each datum, so that one audit measures all widths and means."""

    def __init__(self, cases: list[tuple[float, float]]) -> None:
        super().__init__()
        self.m = nn.ParameterList([torch.tensor(m, dtype=torch.float64) for m, _ in cases])
        self.log_s = nn.ParameterList([torch.tensor(math.log(s), dtype=torch.float64) for _, s in cases])

    def forward(self, x: Tensor) -> None:
        loc, log_scale = torch.stack(list(self.m)), torch.stack(list(self.log_s))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def measure(draws: int = 4000, seed: int = 0) -> xr.Dataset:
    """Variances of the derivatives, measured (with standard error) and exact, over estimator, m, s and parameter."""
    cases = [(m, s) for m in MEANS for s in WIDTHS]
    x = torch.full((len(cases),), X, dtype=torch.float64)
    audit = pyro_vi.audit(model, Guide(cases), x, elbos=ELBOS, draws=draws, seed=seed)
    n, shape = len(cases), (len(MEANS), len(WIDTHS))

    def laid_out(variable: str) -> np.ndarray:
        # An audit is of the ELBO per datum, and these are n data: a datum's own gradient is n times as large.
        found = [audit[variable].sel(parameter=[f"{kind}.{i}" for i in range(n)]) for kind in ("m", "log_s")]
        return np.stack([n**2 * part.values.reshape(-1, *shape) for part in found], -1)

    dims = ("elbo", "m", "s", "parameter")
    exact = [[np.stack(list(theory(elbo, m, WIDTHS).values()), -1) for m in MEANS] for elbo in ELBOS]
    return xr.Dataset(
        {"variance": (dims, laid_out("grad_var")), "se": (dims, laid_out("grad_var_se")), "exact": (dims, exact)},
        coords={"elbo": list(ELBOS), "m": list(MEANS), "s": WIDTHS, "parameter": ["m", "log s"]},
    )


def flips(parameter: str, m: float) -> list[tuple[float, str, str]]:
    """Widths at which two estimators change places, from the closed forms; the estimator that is better below comes first."""
    s = np.linspace(WIDTHS[0], WIDTHS[-1], 100_001)
    values = {elbo: theory(elbo, m, s)[parameter] for elbo in ELBOS}
    found = []
    for one, other in combinations(ELBOS, 2):
        difference = values[one] - values[other]
        for i in np.flatnonzero(np.diff(np.sign(difference))):
            found.append((float(s[i]), *((one, other) if difference[i] < 0 else (other, one))))
    return sorted(found)


@matplotlib.rc_context(LOOK)
def draw(numbers: xr.Dataset) -> Figure:
    """Variance against the guide's width: in m, where it does not depend on m, and in log s at each m."""
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    s, styles = np.linspace(WIDTHS[0], WIDTHS[-1], 2000), looks(ELBOS)
    panels = [("m", MEANS[0], "in m (the same at every m)")]
    panels += [("log s", m, f"in log s, at m = {m} (posterior: {X / 2})") for m in MEANS]
    for axes, (parameter, m, title) in zip(figure.subplots(1, 3), panels, strict=True):
        lines = np.array([theory(elbo, m, s)[parameter] for elbo in ELBOS])
        for elbo, line in zip(ELBOS, lines, strict=True):
            axes.plot(s, line, color=styles[elbo].colour, linewidth=1.2)
            found = numbers.sel(elbo=elbo, m=m, parameter=parameter)
            look = {"color": styles[elbo].colour, "marker": styles[elbo].marker, "markersize": 4, "capsize": 2}
            axes.errorbar(found.s, found.variance, yerr=2 * found.se, linestyle="", label=elbo, **look)
        axes.set(xscale="log", yscale="log", ylim=(2e-4, 100), xlabel="width s of the guide", title=title)
        axes.set_xticks([0.15, 0.3, 0.5, 0.71, 1.0, 1.5], ["0.15", "0.3", "0.5", "√½", "1", "1.5"])
        axes.minorticks_off()
        for width, *_ in flips(parameter, m):
            axes.axvline(width, color="0.6", linestyle=":", linewidth=1, zorder=0)
        best = lines.argmin(0)
        for i, elbo in enumerate(ELBOS):
            axes.fill_between(
                s, 0, 0.025, where=best == i, transform=axes.get_xaxis_transform(), color=styles[elbo].colour
            )
    figure.axes[0].set_ylabel("variance of one draw's gradient (nats²)")
    figure.suptitle(
        "Gradient variance against the guide's width (lines: closed form; points: audit, ±2 se)", fontsize=10
    )
    legend(figure)
    return figure


def main(out: Path = Path("runs/study_guide_width"), draws: int = 4000) -> None:
    """Measure the gradient variance at several widths of the guide, and compare it with the closed forms.

    Args:
        out: folder for the picture.
        draws: evaluations of each estimator.
    """
    numbers = measure(draws)
    table = Table(title=f"Widths at which the order changes (x = {X}, posterior N({X / 2}, 1/2))", title_justify="left")
    for column in ("gradient in", "at m", "width s", "smaller variance below", "above"):
        table.add_column(column)
    for parameter, m in (("m", "any"), *(("log s", m) for m in MEANS)):
        for width, below, above in flips(parameter, MEANS[0] if m == "any" else m):
            table.add_row(parameter, str(m), f"{width:.3f}", below, above)
    Console(highlight=False, width=110).print(table)
    distance = float((abs(numbers.variance - numbers.exact) / numbers.se).max())
    narrow = numbers.sel(m=MEANS[0]).isel(s=0).variance
    stl, field = (narrow.sel(elbo=a) / narrow.sel(elbo="trace") for a in ("stl", "mean_field"))
    print(
        f"The largest of {numbers.variance.size} differences between measured and exact variances is {distance:.1f} standard "
        f"errors ({draws} draws).\nAt s = {WIDTHS[0]:.2f}, stl has {float(stl.sel(parameter='m')):.0f} times the variance of "
        f"trace in m, and mean_field has {float(field.sel(parameter='log s')):.1f} times that of trace in log s."
    )
    out.mkdir(parents=True, exist_ok=True)
    draw(numbers).savefig(out / "guide_width.png", dpi=150)
    print(out / "guide_width.png")


if __name__ == "__main__":
    tyro.cli(main)
