"""A study of guides: each suits one shape of posterior, and fails on another: `python scripts/study_guides.py`.

Seven models with one or two latents, whose evidence is known by quadrature. Eleven guides are fitted to those that they serve.
The gap is log p − ELBO: what a family, or its encoder, cannot represent. The claim: no family is best everywhere. N(m, s) has
the standard deviation s.

    independent   two normals, each with its own datum             diag_normal is enough
    correlated    the sum of two normals is known to 0.2           full_normal, low_rank_normal
    heavy tails   Student-t priors with weak data                  student
    two modes     the square of a normal is known to 0.3           mixture
    banana        the distance from a parabola is known to 0.3     flow
    funnel        the scale of one latent is the other one         structured
    small encoder 300 data in the plane, one hidden unit           per_datum, semi_amortized

The picture has a row for each guide and a column for each model, with the gap in nats (per datum in the last).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import torch
import tyro
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import pyro_vi
from pyro_vi.data import load
from pyro_vi.elbo import facts_of, measure
from pyro_vi.errors import InputError
from pyro_vi.programs.build import build_pair
from pyro_vi.reporting.look import LOOK

FIXED = ("laplace", "prior")
"""Guides without parameters."""
EDGE, POINTS = 60.0, 3001
"""The quadrature's grid on each axis; it is denser in the middle."""


def independent() -> None:
    """x, y ~ N(0, 1), observed as 1 and −1 with scales .5 and .2."""
    for name, value, scale in (("x", 1.0, 0.5), ("y", -1.0, 0.2)):
        z = pyro.sample(name, dist.Normal(0.0, 1.0))
        pyro.sample(f"{name}_seen", dist.Normal(z, scale), obs=torch.tensor(value))


def correlated() -> None:
    """x, y ~ N(0, 1); x + y is observed as 1 with scale .2."""
    x, y = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "xy")
    pyro.sample("sum", dist.Normal(x + y, 0.2), obs=torch.tensor(1.0))


def heavy_tails() -> None:
    """x, y ~ Student-t with 2 degrees of freedom, each observed as 0 with scale 10."""
    for name in "xy":
        z = pyro.sample(name, dist.StudentT(2.0, 0.0, 1.0))
        pyro.sample(f"{name}_seen", dist.Normal(z, 10.0), obs=torch.tensor(0.0))


def two_modes() -> None:
    """x, y ~ N(0, 1); x² is observed as 1 with scale .3."""
    x, _ = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "xy")
    pyro.sample("square", dist.Normal(x.square(), 0.3), obs=torch.tensor(1.0))


def banana() -> None:
    """x ~ N(0, 1), y ~ N(0, 2); y − x² is observed as 0 with scale .3."""
    x, y = pyro.sample("x", dist.Normal(0.0, 1.0)), pyro.sample("y", dist.Normal(0.0, 2.0))
    pyro.sample("distance", dist.Normal(y - x.square(), 0.3), obs=torch.tensor(0.0))


def funnel() -> None:
    """v ~ N(0, 2), x | v ~ N(0, e^(v/2)): nothing is observed, and log Z = 0."""
    v = pyro.sample("v", dist.Normal(0.0, 2.0))
    pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


def small_encoder(x: torch.Tensor) -> None:
    """z ~ N(0, I) in the plane, x | z ~ N(z, .3 I)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=x)


SHAPES: dict[str, Callable[..., None]] = {
    "independent": independent,
    "correlated": correlated,
    "heavy tails": heavy_tails,
    "two modes": two_modes,
    "banana": banana,
    "funnel": funnel,
    "small encoder": small_encoder,
}


@dataclass(frozen=True)
class Options:
    """The guides to fit, for how long, and the picture."""

    guides: tuple[str, ...] = (
        "diag_normal", "full_normal", "low_rank_normal", "student", "flow", "mixture", "structured", "laplace",
        "per_datum", "semi_amortized", "prior",
    )  # fmt: skip
    """Guides of the shelf."""
    steps: int = 1500
    """Steps of each fit."""
    draws: int = 100_000
    """Draws of each ELBO; 1,000 for each datum where there are data."""
    out: Path = Path("study_guides.png")
    """File of the picture."""


def evidence(model: Callable[..., None], data: torch.Tensor | None) -> float:
    """Return log p in nats: by quadrature over the two latents, or in closed form, in nats per datum, where there are data."""
    if data is not None:
        return float(dist.Normal(0.0, math.sqrt(1 + 0.3**2)).log_prob(data).sum(-1).double().mean())
    axis = np.sinh(np.linspace(-1, 1, POINTS) * math.asinh(EDGE))
    points = torch.from_numpy(axis).float()
    weights = torch.from_numpy(np.gradient(axis)).double().log()
    names = list(pyro.poutine.trace(model).get_trace().stochastic_nodes)
    grid = dict(zip(names, torch.meshgrid(points, points, indexing="ij"), strict=True))
    conditioned = pyro.poutine.condition(model, grid)
    trace = pyro.poutine.trace(conditioned).get_trace()
    total = sum(node["fn"].log_prob(node["value"]) for node in trace.nodes.values() if node["type"] == "sample")
    return float((total.double() + weights + weights.unsqueeze(-1)).flatten().logsumexp(0))


def gaps(shape: str, options: Options) -> dict[str, tuple[float, str]]:
    """Return log p − ELBO of each guide, in nats per datum, or NaN and why the guide is refused."""
    model, data = SHAPES[shape], None
    if shape == "small encoder":
        noise = torch.randn(2, 300, 2, generator=torch.Generator().manual_seed(0))
        data = noise[0] + 0.3 * noise[1]
    truth, found = evidence(model, data), {}
    for guide in options.guides:
        encoded = data is not None and guide not in (*FIXED, "per_datum")
        given = load(data, heldout=0.0)
        try:
            if guide in FIXED:
                pair = build_pair(model, guide, given)
            else:
                pair = pyro_vi.fit(
                    model, f"{guide}(hidden=(1,))" if encoded else guide, given, elbo="trace", steps=options.steps,
                    lr=0.02, compile=False, progress=False,
                ).pair  # fmt: skip
        except InputError as error:
            found[guide] = (math.nan, str(error))
            continue
        batch = () if data is None else (data, torch.arange(len(data))) if guide == "per_datum" else (data,)
        # Draws of log p − log q, not the analytic KL: they have no noise where q is the posterior.
        draws = 1000 if data is not None else options.draws
        bound = measure(pair, batch, facts_of(pair, batch), draws=draws, kl="sampled", seed=1).elbo_mean
        found[guide] = (truth - bound, "")
    return found


def main(options: Options) -> None:
    """Fit all, print the table, and draw the picture."""
    table = Table(title="log p − ELBO, nats (per datum in the last column)")
    table.add_column("guide", no_wrap=True)
    columns = {}
    for shape in SHAPES:
        columns[shape] = gaps(shape, options)
        table.add_column(shape, justify="right")
    values = np.array([[columns[shape][guide][0] for shape in SHAPES] for guide in options.guides])
    best = np.nanmin(values, axis=0)
    for guide, row in zip(options.guides, values, strict=True):
        cells = [
            "-" if math.isnan(v) else f"[bold]{v:.3f}[/]" if v < b + 0.02 else f"{v:.3f}"
            for v, b in zip(row, best, strict=True)
        ]
        table.add_row(guide, *cells)
    console = Console()
    console.print(table)
    console.print("Bold: within 0.02 nats of the least.")
    reasons: dict[tuple[str, str], list[str]] = {}
    for shape, found in columns.items():
        for guide, (_, reason) in found.items():
            reasons.setdefault((guide, reason), []).extend([shape] if reason else [])
    for (guide, reason), shapes in reasons.items():
        if reason:
            console.print(f"{guide} on {', '.join(shapes)}: {reason}", markup=False)
    draw(options, values)
    console.print(str(options.out))


def draw(options: Options, values: np.ndarray) -> None:
    """Draw a row for each guide and a column for each model; the colour is the gap."""
    matplotlib.use("agg")
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(8.5, 0.42 * len(options.guides) + 1.8), layout="constrained")
        axes = figure.subplots()
        shown = np.clip(values, 0.01, None)
        image = axes.imshow(shown, norm=LogNorm(0.01, max(1.0, float(np.nanmax(shown)))), cmap="Blues", aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            text = "refused" if math.isnan(value) else f"{max(value, 0.0):.2f}"
            axes.text(j, i, text, ha="center", va="center", color="white" if value > 0.7 else "black", fontsize=9)
        axes.set_xticks(range(len(SHAPES)), list(SHAPES), rotation=20, ha="right")
        axes.set_yticks(range(len(options.guides)), list(options.guides))
        axes.tick_params(length=0)
        figure.colorbar(image, label="log p − ELBO, nats", shrink=0.8)
        figure.suptitle("What each guide cannot represent", fontsize=11)
        figure.savefig(options.out, dpi=150)


if __name__ == "__main__":
    main(tyro.cli(Options))
