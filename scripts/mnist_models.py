"""Models on static binarised MNIST: does a learned prior, or a second stochastic layer, beat a VAE at equal steps?

    PYRO_VI_DATA=folder python scripts/mnist_models.py --steps 3000

Each model has hidden layers of the same width, and takes the same number of steps of Adam at the same rate, which falls
to 0 on a cosine. The bound and the evidence are means over the same test images, in nats: the bound of some draws, and
log (1/K) Σ p(x, z_k)/q(z_k | x) of K draws. The differences are paired: from `vae`, image by image, with their standard error.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
import tyro

import pyro_vi
from pyro_vi.data import load
from pyro_vi.elbo import facts_of, measure

Z = 40


@dataclass(frozen=True)
class Options:
    """The models to fit, and for how long."""

    models: tuple[str, ...] = ("vae", "vamp", "burda", "ladder")
    """Keys of the table of models in this script; the first is what the others are compared with."""
    steps: int = 3000
    """Steps of each fit."""
    batch_size: int = 128
    """Rows of a step."""
    lr: float = 3e-3
    """Learning rate at the start."""
    hidden: int = 200
    """Width of every hidden layer."""
    components: int = 200
    """Pseudo-inputs of the VampPrior."""
    draws: int = 10
    """Draws of the bound of each test image."""
    particles: int = 100
    """Draws of the evidence of each test image."""
    rows: int = 2000
    """Test images, evenly spaced: the file has them sorted by digit."""
    seed: int = 0
    """Seed of the fits."""


def pairs(options: Options) -> dict[str, tuple[str, str]]:
    """The models and their guides by name."""
    width = f"hidden=({options.hidden},), activation='relu'"
    deep, two = f"hierarchical_vae(latent_dims=({Z}, {Z // 2}), {width}", f"structured({width})"
    vae, one = f"vae(latent_dim={Z}, {width}", f"diag_normal({width})"
    return {
        "vae": (f"{vae})", one),
        "mixture": (f"{vae}, prior='mixture', components={options.components})", one),
        "vamp": (f"{vae}, prior='vamp', components={options.components})", one),
        "flow": (f"{vae}, prior='flow')", one),
        "burda": (f"{deep})", two),
        "ladder": (f"{deep}, structure='ladder')", two),
        "burda_diag": (f"{deep})", one),
        "conv": (f"conv_vae(latent_dim={Z})", "diag_normal"),
    }


def main(options: Options) -> None:
    """Fit each model, and print a line for each."""
    data = load("mnist_static")
    whole = data.heldout[0]
    test = whole[torch.linspace(0, len(whole) - 1, min(options.rows, len(whole))).long()]
    print(
        f"{options.steps} steps of {options.batch_size}, lr {options.lr}, {len(test)} test images, in nats", flush=True
    )
    first: tuple[np.ndarray, np.ndarray] | None = None
    for name in options.models:
        model, guide = pairs(options)[name]
        start = time.perf_counter()
        run = pyro_vi.fit(
            model, guide, data, elbo="mean_field", steps=options.steps, batch_size=options.batch_size, lr=options.lr,
            seed=options.seed, progress=False,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        elbo, evidence = measured(run, test, options)
        first = first or (elbo, evidence)
        print(
            f"{name:11s} bound {elbo.mean():8.2f} ({against(elbo, first[0])})  evidence {evidence.mean():8.2f} "
            f"({against(evidence, first[1])})  {seconds:5.0f} s  {run.choice.note}",
            flush=True,
        )


def measured(run: pyro_vi.Run, test: torch.Tensor, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Return the bound and the evidence of each test image."""
    args = (test,)
    bound = measure(run.pair, args, facts_of(run.pair, args), num_data=len(test), draws=options.draws, seed=1)
    found = pyro_vi.evidence(run.pair.model, run.pair.guide, test, method="iw", particles=options.particles, seed=1)
    return bound.elbo_per_datum.numpy(), found.log_evidence.to_numpy()


def against(values: np.ndarray, first: np.ndarray) -> str:
    """The mean paired difference and its standard error."""
    difference = values - first
    return f"{difference.mean():+6.2f} ± {difference.std(ddof=1) / len(values) ** 0.5:.2f}"


if __name__ == "__main__":
    main(tyro.cli(Options))
