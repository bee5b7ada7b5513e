"""A deep Markov model of the simulated arm: its prediction of the next step beside the last value.

    python scripts/robot.py --steps 5000

The model is `deep_markov`, the guide `structured` with a bidirectional GRU: z_t depends on z_{t−1}. The prediction of x_{t+1}
sees x_1, …, x_t only: the guide reads these t steps as a sequence of length t and gives q(z_1, …, z_t | x_1, …, x_t), z_{t+1}
comes from the transition, and the prediction is the mean of E[x_{t+1} | z_{t+1}] over draws. So that the guide knows sequences
that end anywhere, the model is fitted to the training sequences cut at a random step. The errors are of the held-out sequences,
over t = 2, 3, …; beside them are those of the last value, x_t, and of the line through the last two, 2 x_t − x_{t−1}.
"""

import time
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

import pyro_vi
from pyro_vi.data import Data, load


@dataclass(frozen=True)
class Options:
    """Sizes of the data and the networks, and the length of the fit."""

    data: str = "robot"
    """The trajectories, with options in parentheses."""
    steps: int = 5000
    """Optimisation steps."""
    guide: str = "structured"
    """A guide with an encoder; with "diag_normal", the steps are independent given the data."""
    latent_dim: int = 8
    """Dimension of z_t."""
    hidden: int = 64
    """Width of the networks."""
    batch_size: int = 100
    """Sequences in a batch."""
    lr: float = 5e-3
    """Learning rate at the start; it falls to 0 along a cosine."""
    cuts: int = 9
    """Copies of each training sequence, each cut at a random step; one more is whole."""
    draws: int = 50
    """Draws for each prediction."""
    seed: int = 0
    """Seed of everything."""


def main(options: Options) -> None:
    """Fit, and print the errors."""
    data = load(options.data, seed=options.seed)
    width = options.hidden
    model = f"deep_markov(latent_dim={options.latent_dim}, transition_dim={width}, hidden=({width},), scale=0.1)"
    start = time.perf_counter()
    run = pyro_vi.fit(
        model, f"{options.guide}(hidden=({width},), init_scale=0.1)", cut(data, options.cuts, options.seed), elbo="trace",
        steps=options.steps, batch_size=options.batch_size, lr=options.lr, schedule="cosine", warmup=options.steps // 5,
        seed=options.seed, compile=False, progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    errors = compared(run, *data.heldout, draws=options.draws, seed=options.seed)
    print(
        f"{options.steps} steps in {seconds:.0f} s, {torch.get_num_threads()} threads; mean squared error of x_(t+1):"
    )
    for name, error in errors.items():
        print(f"{name:24s} {error:.5f}")


def cut(data: Data, cuts: int, seed: int) -> Data:
    """The training sequences, whole and cut at a random step, as data without a held-out part."""
    (x, lengths), noise = data.train(), torch.Generator().manual_seed(seed)
    every = [lengths] + [2 + (torch.rand(len(x), generator=noise) * (lengths - 1)).long() for _ in range(cuts)]
    pieces = [row[: int(n)] for part in every for row, n in zip(x, part, strict=True)]
    return load(pieces, heldout=0.0, seed=seed)


def compared(run: pyro_vi.Run, x: Tensor, lengths: Tensor, *, draws: int, seed: int) -> dict[str, float]:
    """The mean squared errors of the predictions of x_{t+1}, t = 2, 3, …, of sequences (B, T, D)."""
    torch.manual_seed(seed)
    inside = torch.arange(x.shape[1]) < lengths.unsqueeze(1)
    found: dict[str, list[Tensor]] = {"deep Markov model": [], "last value": [], "line through the last two": []}
    for t in range(2, x.shape[1]):
        rows = inside[:, t]  # step t + 1 is part of the sequence
        if not rows.any():
            break
        past, truth = x[rows, :t], x[rows, t]
        guesses = (next_step(run, past, draws), past[:, -1], 2 * past[:, -1] - past[:, -2])
        for errors, guess in zip(found.values(), guesses, strict=True):
            errors.append((guess - truth).square().flatten())
    return {name: float(torch.cat(errors).mean()) for name, errors in found.items()}


@torch.no_grad()
def next_step(run: pyro_vi.Run, past: Tensor, draws: int) -> Tensor:
    """E[x_{t+1} | x_1, …, x_t] of sequences (B, t, D), by draws of z_t from the guide and of z_{t+1} from the transition."""
    total: Tensor = torch.zeros_like(past[:, 0])
    for _ in range(draws):
        z = run.guide(past, torch.full((len(past),), past.shape[1]))["z"][:, -1]
        mean, scale = run.model.transition(z)  # type: ignore[operator]
        total = total + run.model.decode(mean + scale * torch.randn_like(scale))  # type: ignore[operator]
    return total / draws


if __name__ == "__main__":
    main(tyro.cli(Options))
