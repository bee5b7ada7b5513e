"""Fit one Gaussian to two modes in both directions of the KL: `python scripts/study_kl_direction.py`.

The target is p(z) = ½ N(−d/2, 1) + ½ N(d/2, 1). The claim (Bishop 2006, section 10.1.2; Minka 2005) compares two Gaussians
q. SVI minimises the reverse KL(q ‖ p). The minimum avoids regions where p is small. From some distance d on, it covers one
mode only and underestimates the variance. The minimum of the forward KL(p ‖ q) must cover all of p. It has the mean and the
variance of p, 0 and 1 + d²/4: moment matching, a closed form. At large d the reverse KL of its fit tends to log 2, because
q leaves out half of p.

Pyro's SVI makes the reverse fit, with the path-derivative estimator as its loss. It fits all distances at once, each from
two starts, and keeps the better one. Both KLs are then computed by quadrature, and minimised by quadrature for comparison.

The picture: the two fits at one distance, and their standard deviations and KLs against the distance. Points are from SVI,
lines from quadrature and closed form.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pyro
import pyro.distributions as dist
import torch
import tyro
from matplotlib.figure import Figure
from pyro.infer import SVI
from pyro.optim import ClippedAdam
from rich.console import Console
from rich.table import Table
from torch import Tensor

import pyro_vi
from pyro_vi.reporting.look import LOOK, legend, looks

NAMES = ("reverse: KL(q ‖ p)", "forward: KL(p ‖ q)")
DISTANCES = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0], dtype=torch.float64)
GRID = torch.linspace(-30, 30, 1501, dtype=torch.float64)


def target(distance: Tensor) -> dist.MixtureSameFamily:
    """½ N(−d/2, 1) + ½ N(d/2, 1), for each distance."""
    loc = torch.stack([-distance / 2, distance / 2], -1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones_like(loc)), dist.Normal(loc, 1.0))


def model(distance: Tensor) -> None:
    """z ~ p, a latent for each distance; no data, so that log evidence is 0 and −ELBO is KL(q ‖ p)."""
    with pyro.plate("data", len(distance)):
        pyro.sample("z", target(distance))


def guide(distance: Tensor) -> None:
    """q(z) = N(m, s²) for each distance; the first half starts in the middle, the second at the upper mode."""
    half = len(distance) // 2
    loc = pyro.param("loc", torch.cat([torch.zeros_like(distance[:half]), distance[half:] / 2]))
    log_scale = pyro.param("log_scale", torch.cat([(1 + distance[:half] ** 2 / 4).log() / 2, 0 * distance[half:]]))
    with pyro.plate("data", len(distance)):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def divergences(distance: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q ‖ p) and KL(p ‖ q) by quadrature, in nats."""
    z = GRID.unsqueeze(-1)
    log_p, log_q = target(distance).log_prob(z), dist.Normal(loc, scale).log_prob(z)
    width = float(GRID[1] - GRID[0])
    return tuple((a.exp() * (a - b)).sum(0) * width for a, b in ((log_q, log_p), (log_p, log_q)))


def better(distance: Tensor, loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Of the fits from two starts the one with the smaller KL(q ‖ p), at each distance: its |m| and s."""
    loc, scale = loc.detach().reshape(2, -1), log_scale.detach().exp().reshape(2, -1)
    best = divergences(distance, loc.reshape(-1), scale.reshape(-1))[0].reshape(2, -1).argmin(0, keepdim=True)
    return loc.gather(0, best)[0].abs(), scale.gather(0, best)[0]


def by_svi(steps: int) -> tuple[Tensor, Tensor]:
    """|m| and s at each distance from a plain `pyro.infer.SVI`, with an estimator of pyro_vi as the loss."""
    both = DISTANCES.repeat(2)
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(0)
        optimizer = ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / steps)})
        svi = SVI(model, guide, optimizer, loss=pyro_vi.estimators.get("stl", num_particles=50))
        for _ in range(steps):
            svi.step(both)
        return better(both, pyro.param("loc"), pyro.param("log_scale"))


def by_quadrature(distance: Tensor) -> tuple[Tensor, Tensor]:
    """The same by minimising the integral itself."""
    both = distance.repeat(2)
    upper = torch.arange(len(both)) >= len(distance)
    loc = torch.where(upper, both / 2, 0.01).requires_grad_()
    log_scale = torch.where(upper, 0.0, (1 + both**2 / 4).log() / 2).requires_grad_()
    optimizer = torch.optim.LBFGS([loc, log_scale], max_iter=400, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = divergences(both, loc, log_scale.exp())[0].sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return better(both, loc, log_scale)


@dataclass(frozen=True)
class Numbers:
    """Fits at the distances of the points and of the lines: |m|, s, KL(q ‖ p) and KL(p ‖ q), each of shape (4, distances)."""

    svi: Tensor
    reverse: Tensor
    forward: Tensor
    at: Tensor
    reverse_line: Tensor
    forward_line: Tensor


def measure(steps: int = 1500) -> Numbers:
    """Fit in both directions at all distances."""

    def described(distance: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        return torch.stack([loc, scale, *divergences(distance, loc, scale)]).detach()

    at = torch.linspace(0.05, 8, 160, dtype=torch.float64)
    forward = [described(d, 0 * d, (1 + d**2 / 4).sqrt()) for d in (DISTANCES, at)]
    reverse = [described(d, *by_quadrature(d)) for d in (DISTANCES, at)]
    return Numbers(described(DISTANCES, *by_svi(steps)), reverse[0], forward[0], at, reverse[1], forward[1])


@matplotlib.rc_context(LOOK)
def draw(numbers: Numbers, shown: float = 6.0) -> Figure:
    """Densities at one distance, then standard deviations and KLs against the distance."""
    figure, styles = Figure(figsize=(10.5, 3.9), layout="constrained"), looks(NAMES)
    one, two, three = figure.subplots(1, 3)
    i = DISTANCES.tolist().index(shown)
    z = torch.linspace(-9, 9, 400, dtype=torch.float64)
    one.fill_between(z, target(DISTANCES[i]).log_prob(z).exp(), color="0.88", label="target p")
    two.plot(numbers.at, numbers.forward_line[1], color="0.5", linestyle="--", linewidth=3, label="sd of the target")
    for name, points, line in zip(
        NAMES, (numbers.svi, numbers.forward), (numbers.reverse_line, numbers.forward_line), strict=True
    ):
        look = styles[name]
        one.plot(z, dist.Normal(points[0, i], points[1, i]).log_prob(z).exp(), color=look.colour, label=name)
        two.plot(numbers.at, line[1], color=look.colour, linewidth=1.2)
        for row, axes, style in ((1, two, "-"), (2, three, "-"), (3, three, ":")):
            axes.plot(numbers.at, line[row], color=look.colour, linewidth=1.2, linestyle=style)
            if points is numbers.svi:
                axes.plot(DISTANCES, points[row], look.marker, color=look.colour, markersize=4)
    three.axhline(math.log(2), color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    three.annotate("log 2", (0.1, math.log(2)), (0, 3), textcoords="offset points", color="0.4")
    one.set(title=f"Densities at d = {shown:g}", xlabel="z", ylabel="density", ylim=(0, None))
    two.set(title="Standard deviation of the fit", xlabel="distance d of the modes", ylabel="sd", ylim=(0, None))
    three.set(title="KL(q ‖ p) (lines) and KL(p ‖ q) (dotted)", xlabel="distance d of the modes", ylabel="nats")
    three.set(yscale="log", ylim=(1e-3, 30))
    one.plot([], [], "o", color=styles[NAMES[0]].colour, markersize=4, label="reverse, by SVI")
    legend(figure)
    return figure


def main(out: Path = Path("runs/study_kl_direction"), steps: int = 1500) -> None:
    """Fit one Gaussian to two modes in both directions of the KL, at several distances of the modes.

    Args:
        out: folder for the picture.
        steps: steps of SVI.
    """
    numbers = measure(steps)
    table = Table(title="One Gaussian fitted to p = ½ N(−d/2, 1) + ½ N(d/2, 1); KLs in nats", title_justify="left")
    columns = (
        "d",
        "sd of p",
        "reverse: |m|",
        "s",
        "KL(q‖p)",
        "least KL(q‖p)",
        "KL(p‖q)",
        "forward: s",
        "KL(q‖p)",
        "KL(p‖q)",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for i, d in enumerate(DISTANCES.tolist()):
        (m, s, reverse, forward), (_, sd, other, least) = numbers.svi[:, i], numbers.forward[:, i]
        row = (math.sqrt(1 + d**2 / 4), m, s, reverse, numbers.reverse[2, i], forward, sd, other, least)
        table.add_row(f"{d:g}", *(f"{float(value):.3f}" for value in row))
    Console(highlight=False, width=130).print(table)
    split = float(numbers.at[numbers.reverse_line[0] > 0.3][0])
    ratio = float(numbers.svi[1, -1] / numbers.forward[1, -1])
    print(
        f"The reverse fit moves from the middle to one mode at d = {split:.2f}. At d = {DISTANCES[-1]:g} its sd is "
        f"{ratio:.2f} of the target's, and its KL is {float(numbers.svi[2, -1]):.4f} (log 2 = {math.log(2):.4f}).\n"
        f"At every d, SVI is within {float((numbers.svi[2] - numbers.reverse[2]).abs().max()):.1e} nats of the least KL(q ‖ p)."
    )
    out.mkdir(parents=True, exist_ok=True)
    draw(numbers).savefig(out / "kl_direction.png", dpi=150)
    print(out / "kl_direction.png")


if __name__ == "__main__":
    tyro.cli(main)
