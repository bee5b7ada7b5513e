"""Gradients for a latent that cannot be reparameterised: `python scripts/study_discrete.py`.

A discrete draw z has no derivative. So the gradient of the ELBO in the guide needs another estimator. The study compares
three:

    enum      sums over all states instead of drawing one: exact, without variance, possible where the states are few
    score     E[(L − baseline) ∂ log q(z)]: unbiased (Mnih and Rezende 2016, arXiv:1602.06725), and noisy
    relaxed   differentiates a softmax in place of the draw (straight-through Gumbel-softmax: Jang et al. 2017,
              arXiv:1611.01144): the higher the temperature, the less variance and the more bias

For a continuous latent, the score function and the derivative through the draw both work. The claim: the variance of score
per dimension grows with the number of dimensions, because its signal has the noise of the whole ELBO. The derivative
through the draw separates the dimensions.

The discrete pair is a mixture of three Gaussians in the plane with a linear guide. Its exact gradient is a sum over the
states. The continuous pair is z ~ N(0, I), x | z ~ N(z, I) with a normal guide. All estimators use 4 draws per datum.

The picture. Left: bias and standard deviation of the whole gradient vector against the temperature, with those of score.
Right: variance per latent dimension, of score and of the derivatives through the draw, against the number of dimensions.
"""

import math
from collections.abc import Callable
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
from pyro_vi.programs import isolated
from pyro_vi.reporting.look import LOOK, legend, looks

TEMPERATURES, DIMENSIONS, DRAWS = (0.1, 0.2, 0.5, 1.0, 2.0), (1, 3, 10, 30), 4
MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], dtype=torch.float64)
LOG_PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()


def mixture(x: Tensor) -> None:
    """z ~ Categorical (one-hot), x | z ~ N(mean of z, I)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(logits=LOG_PRIOR))
        pyro.sample("x", dist.Normal(z @ MEANS, 1.0).to_event(1), obs=x)


class MixtureGuide(nn.Module):
    """q(z | x) = softmax(B x + c), marked so that `enum` sums over its states; the others draw from it."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(2, 3, dtype=torch.float64)
        with torch.no_grad():
            self.logits.weight.copy_(0.4 * MEANS)  # on the way to the posterior, whose weights are the means
            self.logits.bias.zero_()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=self.logits(x)), infer={"enumerate": "parallel"})


def exact_gradient(guide: MixtureGuide, x: Tensor) -> Tensor:
    """∂/∂φ of the mean over data of Σ_z q(z | x) [log p(z) + log p(x | z) − log q(z | x)]."""
    log_q = guide.logits(x).log_softmax(-1)
    log_p = LOG_PRIOR + dist.Normal(MEANS, 1.0).to_event(1).log_prob(x.unsqueeze(1))
    elbo = (log_q.exp() * (log_p - log_q)).sum(-1).mean()
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(elbo, list(guide.parameters()))])


def gradients(name: str, guide: MixtureGuide, x: Tensor, evaluations: int) -> Tensor:
    """Gradients of the ELBO per datum, evaluation by evaluation: an audit gives their norm, and bias needs the vector."""
    elbo, parameters, found = pyro_vi.estimators.get(name), list(guide.parameters()), []
    with isolated(seed=0, validation=False):
        for _ in range(evaluations):
            loss = elbo.differentiable_loss(mixture, guide, x) / len(x)
            found.append(torch.cat([-part.reshape(-1) for part in torch.autograd.grad(loss, parameters)]))
    return torch.stack(found)


def measure_discrete(evaluations: int = 600, rows: int = 32) -> xr.Dataset:
    """Bias (norm) and standard deviation (root of the summed variance) of the gradient, by estimator, with errors.

    ``chance`` is the squared distance of the mean from the exact gradient over what it is without bias: then it is about 1.
    """
    generator = torch.Generator().manual_seed(0)
    state = torch.multinomial(LOG_PRIOR.exp(), rows, replacement=True, generator=generator)
    x = MEANS[state] + torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    guide = MixtureGuide()
    exact = exact_gradient(guide, x)
    # One run a draw: the four draws of a datum must not share their Gumbel noise.
    apart = f"num_particles={DRAWS}, vectorize_particles=False"
    names = {"enum": "enum(max_plate_nesting=1)", "score": f"score(num_particles={DRAWS})"}
    names |= {f"relaxed, {t:g}": f"relaxed(temperature={t}, {apart})" for t in TEMPERATURES}
    rows_of = []
    for name in names.values():
        found = gradients(name, guide, x, evaluations)
        offset, variance = found.mean(0) - exact, found.var(0)
        noise = variance.sum() / evaluations  # what the mean's distance has from chance alone
        bias = (offset.square().sum() - noise).clamp(min=0).sqrt()
        along = offset / offset.norm().clamp(min=1e-12)
        chance = float(offset.square().sum() / noise.clamp(min=1e-20))
        bias_se = float((found @ along).std() / math.sqrt(evaluations))
        rows_of.append((float(bias), bias_se, float(variance.sum().sqrt()), chance))
    columns = dict(zip(("bias", "bias_se", "sd", "chance"), np.array(rows_of).T, strict=True))
    columns["rmse"] = np.hypot(columns["bias"], columns["sd"])
    return xr.Dataset(
        {key: ("elbo", value) for key, value in columns.items()},
        coords={"elbo": list(names)},
        attrs={"exact": float(exact.norm())},
    )


def normal(size: int) -> Callable[[Tensor], None]:
    """z ~ N(0, I), x | z ~ N(z, I) in so many dimensions."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(size), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    return model


class NormalGuide(nn.Module):
    """q(z | x) = N(0.3 x + c, diag(s²)) with c = 0 and s = 0.9."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.log_s = nn.Parameter(torch.full((size,), math.log(0.9), dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x + self.c, self.log_s.exp()).to_event(1))


def measure_continuous(draws: int = 1000, rows: int = 32, sizes: tuple[int, ...] = DIMENSIONS) -> xr.Dataset:
    """Gradient variance per latent dimension, with its error, by estimator and number of dimensions."""
    names, parts = ("score", "trace", "mean_field"), []
    for size in sizes:
        x = 2**0.5 * torch.randn(rows, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
        elbos = [f"{name}(num_particles={DRAWS})" for name in names]
        audit = pyro_vi.audit(normal(size), NormalGuide(size), x, elbos=elbos, draws=draws)
        found = audit[["part_grad_var", "part_grad_var_se"]].sel(part="guide", drop=True) / size
        parts.append(found.assign_coords(elbo=list(names)))
    return xr.concat(parts, xr.DataArray(list(sizes), dims="size", name="size"))


@matplotlib.rc_context(LOOK)
def draw(discrete: xr.Dataset, continuous: xr.Dataset) -> Figure:
    """Bias against variance over the temperature; score against pathwise over the dimension."""
    figure, styles = (
        Figure(figsize=(9.4, 4.1), layout="constrained"),
        looks(("score", "relaxed", "trace", "mean_field")),
    )
    left, right = figure.subplots(1, 2)
    relaxed = discrete.sel(elbo=[f"relaxed, {t:g}" for t in TEMPERATURES])
    colour = styles["relaxed"].colour
    left.plot(TEMPERATURES, relaxed.rmse, color="0.75", linewidth=4, label="relaxed: root mean square error")
    left.errorbar(
        TEMPERATURES,
        relaxed.bias,
        2 * relaxed.bias_se,
        color=colour,
        marker="s",
        capsize=2,
        label="relaxed: bias (±2 se)",
    )
    left.plot(TEMPERATURES, relaxed.sd, color=colour, linestyle="--", marker="s", markersize=4, label="relaxed: sd")
    left.axhline(float(discrete.sd.sel(elbo="score")), color=styles["score"].colour, label="score: sd, no bias")
    left.axhline(discrete.exact, color="0.3", linestyle=":", linewidth=1, label="length of the exact gradient")
    left.set(xscale="log", yscale="log", xlabel="temperature", ylabel="nats per datum, whole gradient vector")
    left.set_xticks(TEMPERATURES, [f"{t:g}" for t in TEMPERATURES])
    left.minorticks_off()
    left.set_ylim(0.04, 1.5)
    left.set_title("Three states (enum: no bias, no variance)")
    for name in continuous.elbo.values:
        found, look = continuous.sel(elbo=name), styles[str(name)]
        bars = {"color": look.colour, "marker": look.marker, "markersize": 5, "capsize": 2, "linewidth": 1.2}
        label = {"score": "score (continuous z)"}.get(str(name), f"{name}, path")
        right.errorbar(continuous["size"], found.part_grad_var, 2 * found.part_grad_var_se, label=label, **bars)
    right.set(xscale="log", yscale="log", xlabel="latent dimensions", ylabel="gradient variance per dimension (nats²)")
    right.set_xticks(continuous["size"].values, [str(size) for size in continuous["size"].values])
    right.minorticks_off()
    right.set_ylim(0.01, 1)
    right.set_title("Normal latent: score against path")
    legend(figure)
    return figure


def main(
    out: Path = Path("runs/study_discrete"),
    evaluations: int = 600,
    draws: int = 1000,
    sizes: tuple[int, ...] = DIMENSIONS,
) -> None:
    """Measure bias and variance of gradients for a discrete latent, and compare score with pathwise gradients for a normal one.

    Args:
        out: folder for the picture.
        evaluations: gradients of each estimator for the discrete latent.
        draws: evaluations of each estimator for the normal one.
        sizes: numbers of dimensions of the normal latent.
    """
    discrete, continuous = measure_discrete(evaluations), measure_continuous(draws, sizes=sizes)
    table = Table(
        title=f"Discrete latent, exact gradient of length {discrete.exact:.4f} nats per datum", title_justify="left"
    )
    for column in ("estimator", "bias ± se", "sd", "root mean square error"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for name in discrete.elbo.values:
        found = discrete.sel(elbo=name)
        bias = f"{float(found.bias):.4f} ± {float(found.bias_se):.4f}"
        table.add_row(str(name), bias, f"{float(found.sd):.4f}", f"{float(found.rmse):.4f}")
    Console(highlight=False, width=110).print(table)
    relaxed = discrete.sel(elbo=[f"relaxed, {t:g}" for t in TEMPERATURES])
    best = relaxed.isel(elbo=int(relaxed.rmse.values.argmin()))
    against = float(best.rmse / discrete.rmse.sel(elbo="score"))
    ratio = continuous.part_grad_var.sel(elbo="score") / continuous.part_grad_var.sel(elbo="trace")
    print(
        f"relaxed has the least error at temperature {best.elbo.item().split()[-1]}: {against:.2f} times that of "
        f"score, with a bias of {float(best.bias) / discrete.exact:.0%} of the gradient.\n"
        f"For {sizes[0]} to {sizes[-1]} continuous dimensions, score has {float(ratio[0]):.1f} to "
        f"{float(ratio[-1]):.1f} times the variance of trace."
    )
    out.mkdir(parents=True, exist_ok=True)
    draw(discrete, continuous).savefig(out / "discrete.png", dpi=150)
    print(out / "discrete.png")


if __name__ == "__main__":
    tyro.cli(main)
