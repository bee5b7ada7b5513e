"""The guide lifts the floor, the model lifts the ceiling: `python scripts/study_floor_and_ceiling.py`.

ELBO = log p(x) − KL(q ‖ posterior) is the floor, and log p(x) is the ceiling. At a fixed model, the best guide closes the
gap (E step). At a fixed guide, a better model raises the ELBO. If the gap was closed before, it also raises log p(x), by at
least as much (M step): Dempster, Laird and Rubin (1977); Neal and Hinton (1998). The claim: SVI that alternates guide steps
and model steps is EM, and reaches the maximum of the likelihood. SVI that takes both at once (Kingma and Welling 2014,
arXiv:1312.6114) reaches the same point. The ELBO of a linear VAE has no local maxima that the likelihood lacks (Lucas et
al. 2019, arXiv:1911.02469), so this point is probabilistic PCA, a closed form (Tipping and Bishop 1999). scikit-learn's
`PCA.score` is 1e-4 nats below it, because it divides the variances by n − 1 and not by n.

The data are scikit-learn's wines (178 × 13, standardised). The model is z ∈ R², x | z ~ N(A z + b, σ² I).

The picture. Left: evidence and ELBO over the first steps of alternating SVI, with the E steps shaded. An M step raises the
ELBO; the evidence may fall again within it. Right: how far each method is below the maximum likelihood.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import pyro_vi
from pyro_vi.data import Data, DataSpec
from pyro_vi.models.linear_gaussian import LinearGaussian
from pyro_vi.programs import data_plate
from pyro_vi.reporting.look import LOOK, legend, looks

METHODS, LATENT_DIM = ("EM, closed form", "SVI, alternating", "SVI, joint"), 2


class Guide(nn.Module):
    """q(z | x) = N(B x + c, L Lᵀ): linear with one covariance, it holds the exact posterior of every linear-Gaussian model."""

    def __init__(self, model: LinearGaussian, batch: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.num_data, dtype = model.data.num_data, batch[0].dtype
        self.loc = nn.Linear(batch[0].shape[1], model.latent_dim, dtype=dtype)
        self.log_scale = nn.Parameter(torch.zeros(model.latent_dim, dtype=dtype))
        self.lower = nn.Parameter(torch.zeros(model.latent_dim, model.latent_dim, dtype=dtype))

    def distribution(self, x: Tensor) -> MultivariateNormal:
        """q(z | x) of each row."""
        return dist.MultivariateNormal(self.loc(x), scale_tril=self.lower.tril(-1) + self.log_scale.exp().diag())

    def forward(self, x: Tensor) -> None:
        with data_plate(self.num_data, x):
            pyro.sample("z", self.distribution(x))


@dataclass(frozen=True)
class Course:
    """Evidence and ELBO in nats per datum after so many passes over the data, and for alternating steps which they were."""

    passes: np.ndarray
    evidence: np.ndarray
    elbo: np.ndarray
    guide_step: np.ndarray


def course(passes: list[int], values: list[tuple[float, float]], guide_step: list[bool] | None = None) -> Course:
    """A course from lists."""
    steps = guide_step if guide_step is not None else [False] * len(passes)
    return Course(np.array(passes), *np.array(values).T, np.array(steps))


def levels(model: LinearGaussian, guide: Guide, x: Tensor) -> tuple[float, float]:
    """Evidence and ELBO, without a draw: the one less the KL to the posterior, both closed forms."""
    with torch.no_grad():
        evidence = model.log_evidence(x)
        gap = kl_divergence(guide.distribution(x), model.posterior(x)["z"])
    return float(evidence.mean()), float((evidence - gap).mean())


def start(data: Data) -> tuple[LinearGaussian, Guide]:
    """The pair from which all three set out: a small random A, unit noise."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LinearGaussian(data.spec, latent_dim=LATENT_DIM, weight=0.3 * torch.randn(13, LATENT_DIM))
        return model, Guide(model, data.train())


def em(data: Data, passes: int) -> Course:
    """EM with the posterior's moments (Tipping and Bishop 1999, section 3.3): a pass is an E and an M step."""
    (model, _), x = start(data), data.train()[0]
    weight, bias, variance = model.weight.detach(), x.mean(0), (2 * model.log_scale.detach()).exp()
    centred, eye, values = x - bias, torch.eye(LATENT_DIM, dtype=x.dtype), []
    for _ in range(passes + 1):
        marginal = dist.LowRankMultivariateNormal(bias, weight, variance.expand(len(bias)))
        values.append((float(marginal.log_prob(x).mean()),) * 2)
        covariance = torch.linalg.inv(eye + weight.mT @ weight / variance)
        mean = centred @ weight @ covariance / variance
        second = len(x) * covariance + mean.mT @ mean
        weight = torch.linalg.solve(second, mean.mT @ centred).mT
        residual = (
            centred.square().sum() - 2 * (mean @ weight.mT * centred).sum() + (second @ weight.mT @ weight).trace()
        )
        variance = residual / x.numel()
    return course(list(range(passes + 1)), values)


def alternating(data: Data, rounds: int, steps: int) -> Course:
    """``steps`` guide steps, then ``steps`` model steps, and again, each by Adam on draws of the ELBO."""
    (model, guide), x = start(data), data.train()[0]
    # The path derivative: its noise goes as the guide nears the posterior, so that the gap does close.
    elbo = pyro_vi.estimators.get("stl", num_particles=10)
    values, which = [levels(model, guide, x)], [True]
    torch.manual_seed(0)
    for number in range(rounds):
        for program, rate in ((guide, 0.03), (model, 0.02)):
            optimizer = torch.optim.Adam(program.parameters(), rate * 0.85**number)
            fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in range(steps):
                model.zero_grad(), guide.zero_grad()
                (elbo.differentiable_loss(model, guide, x) / len(x)).backward()
                optimizer.step(), fall.step()
                values.append(levels(model, guide, x))
                which.append(program is guide)
    return course(list(range(len(values))), values, which)


def joint(data: Data, passes: int) -> Course:
    """`pyro_vi.fit`: both at once."""
    kept = np.unique(np.geomspace(1, passes, 120).round().astype(int))
    run = pyro_vi.fit(
        *start(data), data, elbo="stl", steps=passes, batch_size=data.spec.num_data, lr=0.02, schedule="cosine",
        progress=False, snapshots=[0, *(kept / passes)],
    )  # fmt: skip
    pairs = [run.at(step) for step in run.snapshots]
    return course(list(run.snapshots), [levels(pair.model, pair.guide, data.train()[0]) for pair in pairs])


def maximum(x: Tensor, count: int | None = None) -> float:
    """The likelihood's maximum in nats per datum, or its value where the variances are divided by ``count`` and not by n."""
    variances = torch.linalg.eigvalsh(x.mT @ x / (count or len(x))).flip(0)
    noise = variances[LATENT_DIM:].mean()
    log_det = variances[:LATENT_DIM].log().sum() + (x.shape[1] - LATENT_DIM) * noise.log()
    return -0.5 * float(x.shape[1] * (math.log(2 * math.pi) + (count or len(x)) / len(x)) + log_det)


def measure(rounds: int = 12, steps: int = 50) -> tuple[dict[str, Course], float, float]:
    """The course of each method over as many passes, the maximum of the likelihood, and what scikit-learn's PCA says."""
    x = StandardScaler().fit_transform(load_wine().data)
    rows = torch.tensor(x)
    # All rows are fitted; the held-out ones are there because a `Data` has some.
    data = Data(DataSpec("wine", len(x), (13,), "real", torch.float64, "scikit-learn"), 0, (rows[:10],), (rows,))
    passes = 2 * rounds * steps
    found = (em(data, passes), alternating(data, rounds, steps), joint(data, passes))
    return dict(zip(METHODS, found, strict=True)), maximum(rows), float(PCA(LATENT_DIM).fit(x).score(x))


def ends(found: Course) -> tuple[np.ndarray, np.ndarray]:
    """The end points of the E steps and M steps in an alternating course."""
    last = np.append(np.flatnonzero(np.diff(found.guide_step.astype(int))), len(found.passes) - 1)
    return last[::2], last[1::2]


@matplotlib.rc_context(LOOK)
def draw(courses: dict[str, Course], most: float, steps: int) -> Figure:
    """Floor and ceiling of the first rounds, and the way to the maximum of all methods."""
    figure, styles = Figure(figsize=(10.4, 4.3), layout="constrained"), looks(METHODS)
    left, right = figure.subplots(1, 2)
    found, shown = courses["SVI, alternating"], 8 * steps
    left.axhline(most, color="0.2", linestyle="--", linewidth=1, label="maximum likelihood")
    left.plot(found.passes, found.evidence, color="0.2", linewidth=1.6, label="evidence: ceiling")
    left.plot(found.passes, found.elbo, color=styles["SVI, alternating"].colour, linewidth=1.6, label="ELBO: floor")
    left.fill_between(
        found.passes,
        found.elbo,
        found.evidence,
        color=styles["SVI, alternating"].colour,
        alpha=0.15,
        label="gap: KL(q ‖ posterior)",
    )
    for i in range(0, 8, 2):
        left.axvspan(i * steps, (i + 1) * steps, color="0.94", linewidth=0, zorder=0)
        for k, step in enumerate("EM"):
            left.annotate(
                step, ((i + k + 0.5) * steps, 1), (0, -10), left.get_xaxis_transform(), textcoords="offset points"
            )
    low = float(np.quantile(found.elbo[:shown], 0.03))
    left.set(xlim=(0, shown), ylim=(low, most + 0.15 * (most - low)), xlabel="steps", ylabel="nats per datum")
    left.set_title("SVI, alternating guide steps (E) and model steps (M)")
    for name, course in courses.items():
        look = styles[name]
        right.plot(course.passes, most - course.evidence, color=look.colour, linewidth=1.6, label=f"{name}")
        if name != METHODS[0]:
            right.plot(course.passes, most - course.elbo, color=look.colour, linewidth=0.8, linestyle=":")
    right.set(xscale="symlog", yscale="log", xlabel="passes over the data (steps; iterations of EM)")
    right.set(xlim=(0, None), ylim=(1e-6, 30), ylabel="nats per datum below the maximum")
    right.set_title("Distance from the maximum: evidence (lines), ELBO (dotted)")
    legend(figure)
    return figure


def main(out: Path = Path("runs/study_floor_and_ceiling"), rounds: int = 12, steps: int = 50) -> None:
    """Compare alternating SVI, joint SVI and EM: where do they end?

    Args:
        out: folder for the picture.
        rounds: rounds of one E step and one M step.
        steps: steps of SVI in each E step and each M step.
    """
    courses, most, score = measure(rounds, steps)
    table = Table(
        title=f"Wine, {LATENT_DIM} latent dimensions; maximum likelihood {most:.4f} nats", title_justify="left"
    )
    for column in ("method", "passes", "evidence at the end", "ELBO at the end", "below the maximum"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, found in courses.items():
        last = (found.evidence[-1], found.elbo[-1])
        table.add_row(name, str(found.passes[-1]), *(f"{value:.5f}" for value in last), f"{most - last[0]:.1e}")
    Console(highlight=False, width=110).print(table)
    found = courses["SVI, alternating"]
    guide_ends, model_ends = ends(found)
    gap, rise = (found.evidence - found.elbo)[guide_ends], found.evidence[model_ends] - found.evidence[guide_ends]
    print(
        f"After each E step the gap is {gap.max():.4f} nats or less. {int((rise > 0).sum())} of {rounds} M steps raise the "
        f"evidence (the largest fall is {max(0.0, -rise.min()):.1e}).\nThe ELBO was above the evidence at "
        f"{sum(int((f.elbo > f.evidence + 1e-9).sum()) for f in courses.values())} of all steps. "
        f"scikit-learn's PCA.score is {score:.4f}."
    )
    out.mkdir(parents=True, exist_ok=True)
    draw(courses, most, steps).savefig(out / "floor_and_ceiling.png", dpi=150)
    print(out / "floor_and_ceiling.png")


if __name__ == "__main__":
    tyro.cli(main)
