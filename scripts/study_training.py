"""Gradient variance of every estimator along a VAE's training on digits: `python scripts/study_training.py`.

The claim: no ELBO estimator has the least gradient noise throughout a fit. Early, the guide is far from the posterior, and
the closed-form KL (``mean_field``) removes most of the noise. The nearer the guide is to the posterior, the less noise the
path derivative has (``stl``, Roeder et al. 2017, arXiv:1703.09194). In the decoder, the KL makes no difference.

The study keeps the parameters of one fit (under ``mean_field``) at several steps. There it audits every estimator at the
same parameters, on the same batch and draws. The picture shows the gradient variance of guide and model parameters against
the step. It also shows the work-normalised variance of the guide (variance × seconds), the number by which to choose an
estimator.
"""

from pathlib import Path

import numpy as np
import tyro
import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import pyro_vi
from pyro_vi.auditing import advise
from pyro_vi.reporting.look import looks

ELBOS = ("trace", "mean_field", "stl", "score", "mixed", "iwae", "dreg", "renyi")
STAGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


def measure(epochs: int, draws: int) -> xr.Dataset:
    """Audits of all estimators at the stages of one fit, over the dimension ``step``."""
    run = pyro_vi.fit("vae", "diag_normal", "digits", epochs=epochs, lr=3e-3, schedule="cosine", snapshots=STAGES)
    batch = run.data.example(128)
    audits = {}
    for step in run.snapshots:
        pair = run.at(step)
        audits[step] = pyro_vi.audit(pair.model, pair.guide, batch, elbos=ELBOS, draws=draws)
    steps = xr.Variable("step", list(audits))
    return xr.concat(list(audits.values()), steps, combine_attrs="override")


def draw(numbers: xr.Dataset) -> Figure:
    """Three panels: guide, model, and the guide's work-normalised variance."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    place = np.arange(numbers.sizes["step"])  # evenly spaced: the early stages are close together
    panels = (
        ("guide", "part_grad_var", "guide: gradient variance"),
        ("model", "part_grad_var", "model: gradient variance"),
        ("guide", "part_work_var", "guide: variance × seconds"),
    )
    for axis, (part, key, title) in zip(axes, panels, strict=True):
        for name, look in looks(list(ELBOS)).items():
            one = numbers.sel(elbo=name, part=part)
            error = 2 * one.part_grad_var_se if key == "part_grad_var" else None
            label = f"{name} [{numbers.target.sel(elbo=name).values}]"
            axis.errorbar(place, one[key], yerr=error, label=label, color=look.colour, marker=look.marker, ms=5, lw=1.2)
        axis.set(title=title, xlabel="step of the fit", yscale="log", xticks=place)
        axis.set_xticklabels([str(step) for step in numbers.step.values])
    axes[0].set_ylabel("variance (of the bound per datum)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, title="estimator [bound]")
    figure.suptitle("Estimators at the same parameters along one fit: VAE on digits (bars: ±2 standard errors)")
    return figure


def main(out: Path = Path("runs/study_training"), epochs: int = 100, draws: int = 400) -> None:
    """Measure, print the table and the advice at each stage, and write the picture."""
    numbers = measure(epochs, draws)
    console = Console(highlight=False, width=120)
    shown = Table(title="Gradient variance of the guide's parameters, by step", title_justify="left")
    shown.add_column("estimator")
    for step in numbers.step.values:
        shown.add_column(str(step), justify="right")
    for name in ELBOS:
        cells = numbers.part_grad_var.sel(elbo=name, part="guide").values
        shown.add_row(name, *(f"{cell:.3g}" for cell in cells))
    console.print(shown)
    for step in numbers.step.values:
        for advice in advise(numbers.sel(step=step), stage=f"step {step}"):
            console.print(advice.text)
    out.mkdir(parents=True, exist_ok=True)
    draw(numbers).savefig(out / "training.png", dpi=150)
    print(out / "training.png")


if __name__ == "__main__":
    tyro.cli(main)
