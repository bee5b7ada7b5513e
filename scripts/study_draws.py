"""Independent, antithetic and quasi-Monte Carlo draws for a VAE's gradient: `python scripts/study_draws.py`.

An average of gradients over S independent draws of the guide has variance V / S. The claim concerns two other kinds of
draws at the same S. Both are unbiased.

    antithetic  pairs ε, −ε. The part of the gradient that is odd in the noise cancels, and the variance of the even
                part doubles. This helps the model and the mean head of a guide. It can hurt the scale head.
    sobol       scrambled Sobol points. The variance of a sum of functions of few coordinates falls faster than 1 / S
                (Buchholz, Wenzel and Mandt 2018, arXiv:1807.01604). This helps least where an integrand depends on all
                coordinates at once, as a many-sample bound does.

The pair is a VAE with a diagonal normal guide on digits after a few hundred steps. All kinds of draws use the same
parameters and batch. A replication is the mean of the gradient and of the bound's value over S draws, with a seed of its
own. The variance is over replications.

The picture: how many times less variance than with independent draws, by estimator and part (bars: ±2 standard errors).
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch
import tyro
import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

import pyro_vi
from pyro_vi.auditing import KINDS, Evaluator, noise
from pyro_vi.programs import Pair, isolated
from pyro_vi.reporting.look import LOOK, legend, looks
from pyro_vi.support import fitting_threads

ELBOS = ("trace", "mean_field", "iwae(num_particles=8)")
PARTS = ("model", "guide", "its mean head", "its scale head", "value")


def parts(pair: Pair, x: tuple[Tensor, ...]) -> Tensor:
    """Which elements of value and gradient belong to which part, of shape ``(parts, 1 + size)``."""
    rows = [torch.tensor([[False]] * 4 + [[True]])]
    for name, (owner, parameter) in pair.owned(x).items():
        half = torch.arange(parameter.numel()) < parameter.numel() // 2  # both heads of the guide are one layer
        head, guide = torch.full_like(half, name.startswith("q.z.head.")), torch.full_like(half, owner == "guide")
        rows.append(torch.stack([~guide, guide, head & half, head & ~half, half & False]))
    return torch.cat(rows, 1)


def measure(steps: int = 400, rows: int = 16, count: int = 16, replications: int = 200) -> xr.Dataset:
    """Variance of the mean of ``count`` draws, summed over the elements of a part, with its error, by estimator and kind."""
    run = pyro_vi.fit("vae", "diag_normal", "digits", steps=steps, lr=3e-3, schedule="constant", progress=False)
    x = run.data.example(rows)
    parameters = [parameter for _, parameter in run.pair.owned(x).values()]
    belongs, found = parts(run.pair, x).double(), []
    for name in ELBOS:
        with isolated(0, validation=False), fitting_threads(run.pair, x):
            evaluator = Evaluator(pyro_vi.estimators.get(name), run.pair, x, parameters, vectorize=True)
            for kind in KINDS:
                means = []
                for seed in range(replications):
                    losses, gradients = evaluator.at(noise(evaluator.captured, count, kind=kind, seed=seed))
                    means.append(torch.cat([losses.unsqueeze(1), gradients], 1).mean(0) / run.data.spec.num_data)
                values = torch.stack(means)
                square = (values - values.mean(0)).square() @ belongs.mT * replications / (replications - 1)
                found.append(torch.stack([square.mean(0), square.std(0) / replications**0.5]))
    shape = (len(ELBOS), len(KINDS), 2, len(PARTS))
    variance, error = np.moveaxis(torch.stack(found).numpy().reshape(shape), 2, 0)
    # Times less than with independent draws; the errors of both add on the log scale.
    gain, relative = variance[:, :1] / variance, error / variance
    dims = ("elbo", "kind", "part")
    return xr.Dataset(
        {
            **{"variance": (dims, variance), "variance_se": (dims, error)},
            **{"gain": (dims, gain), "gain_se": (dims, gain * np.hypot(relative, relative[:, :1]))},
        },
        coords={"elbo": list(ELBOS), "kind": list(KINDS), "part": list(PARTS)},
    )


@matplotlib.rc_context(LOOK)
def draw(numbers: xr.Dataset) -> Figure:
    """Gain over independent draws, one panel for each estimator."""
    figure = Figure(figsize=(9.4, 3.4), layout="constrained")
    place = np.arange(len(PARTS))
    for axes, name in zip(figure.subplots(1, len(ELBOS), sharey=True), ELBOS, strict=True):
        for shift, (kind, look) in zip((-0.1, 0, 0.1), looks(KINDS).items(), strict=True):
            one = numbers.sel(elbo=name, kind=kind)
            error = 2 * one.gain_se if kind != "independent" else None
            marks = {"color": look.colour, "marker": look.marker, "linestyle": "", "capsize": 2}
            axes.errorbar(place + shift, one.gain, error, label=kind, **marks)
        axes.axhline(1, color="0.5", linewidth=0.8, zorder=0)
        axes.set(yscale="log", title=name, xticks=place, xlim=(-0.5, len(PARTS) - 0.5))
        axes.set_xticklabels([part.replace("its ", "") for part in PARTS], rotation=20)
    figure.axes[0].set_ylabel("times less variance than independent")
    legend(figure)
    return figure


def main(
    out: Path = Path("runs/study_draws"), steps: int = 400, rows: int = 16, count: int = 16, replications: int = 200
) -> None:
    """Measure the variance of means over independent, antithetic and Sobol draws, at equal numbers of draws.

    Args:
        out: folder for the picture.
        steps: steps of the fit that comes first.
        rows: data in the batch.
        count: draws S that an estimate averages over; a power of 2.
        replications: replications of each estimate, each with a seed of its own.
    """
    numbers = measure(steps, rows, count, replications)
    title = (
        f"Variance of gradient and value over S = {count} draws ± se ({replications} replications), after {steps} steps"
    )
    table = Table(title=title, title_justify="left")
    for column in ("estimator", "part"):
        table.add_column(column, no_wrap=True)
    for column in ("independent", "antithetic", "times less", "sobol", "times less"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in ELBOS:
        for part in PARTS:
            cells = []
            for kind in KINDS:
                one = numbers.sel(elbo=name, part=part, kind=kind)
                cells.append(f"{float(one.variance):.3g} ± {float(one.variance_se):.1g}")
                cells += [f"{float(one.gain):.2f} ± {float(one.gain_se):.2f}"] if kind != "independent" else []
            table.add_row(name if part == PARTS[0] else "", part, *cells, end_section=part == PARTS[-1])
    Console(highlight=False, width=140).print(table)
    worse = [
        f"{kind} under {name} ({part})"
        for name in ELBOS
        for part in PARTS
        for kind in KINDS[1:]
        for one in [numbers.sel(elbo=name, part=part, kind=kind)]
        if float(one.gain + 2 * one.gain_se) < 1
    ]
    print(f"The variance is larger than with independent draws for: {', '.join(worse) or 'none'}.")
    out.mkdir(parents=True, exist_ok=True)
    draw(numbers).savefig(out / "draws.png", dpi=150)
    print(out / "draws.png")


if __name__ == "__main__":
    tyro.cli(main)
