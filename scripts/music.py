"""A deep Markov model of the JSB chorales: the held-out bound per time step.

    PYRO_VI_DATA=folder python scripts/music.py --minutes 10

The model is `deep_markov`, the guide `structured` with a bidirectional GRU: z_t depends on z_{t−1}. The weight of the KL rises
over the first tenth of the steps. The bound is the ELBO of all held-out sequences, divided by their number of steps; a bound by
importance weighting of whole paths is beside it. The published number is 6.87, of 600 units and 5000 epochs (Pyro's example of
the deep Markov model).
"""

import time
from dataclasses import dataclass, replace

import torch
import tyro

import pyro_vi
from pyro_vi.data import load
from pyro_vi.elbo import facts_of, measure


@dataclass(frozen=True)
class Options:
    """Sizes of the networks, and the length of the fit."""

    minutes: float = 10.0
    """Time of the fit, from the time of the first steps."""
    steps: int | None = None
    """Optimisation steps, instead of minutes."""
    guide: str = "structured"
    """A guide with an encoder; with "diag_normal", the steps are independent given the notes."""
    latent_dim: int = 64
    """Dimension of z_t."""
    transition_dim: int = 128
    """Width of the transition's networks."""
    hidden: int = 128
    """Width of the emission."""
    encoder: int = 64
    """Width of the encoder in each direction."""
    batch_size: int = 20
    """Sequences in a batch."""
    lr: float = 1e-2
    """Learning rate at the start; it falls to 0 along a cosine."""
    part: str = "test"
    """The part that is held out: "test" or "valid"."""
    particles: int = 100
    """Draws of each path for the bound by importance weighting; 0 leaves it out."""
    seed: int = 0
    """Seed of everything."""


def main(options: Options) -> None:
    """Fit, and print the bounds."""
    data = load(f"jsb(heldout_part={options.part!r})", seed=options.seed)
    # The held-out part has longer sequences; model and encoder take any number of steps.
    x, lengths = data.columns
    longest = int(lengths.max())
    spec = replace(data.spec, event_shape=(longest, *data.spec.event_shape[1:]))
    data = replace(data, spec=spec, columns=(x[:, :longest].contiguous(), lengths))
    model = f"deep_markov(latent_dim={options.latent_dim}, transition_dim={options.transition_dim}, hidden=({options.hidden},))"
    # The prior's spread, at which an encoder starts by default, grows along a chain; so wide a start is slow.
    guide = f"{options.guide}(hidden=({options.encoder},), init_scale=0.1)"

    def fitted(steps: int) -> pyro_vi.Run:
        return pyro_vi.fit(
            model, guide, data, elbo="trace", steps=steps, batch_size=options.batch_size, lr=options.lr, clip_norm=None,
            schedule="cosine", warmup=steps // 10, seed=options.seed, compile=False, progress=False,
        )  # fmt: skip

    steps = options.steps
    if steps is None:
        start = time.perf_counter()
        few = -(-data.spec.num_data // options.batch_size)
        fitted(few)
        steps = max(few, int(options.minutes * 60 * few / (time.perf_counter() - start)))
    start, cpu = time.perf_counter(), time.process_time()
    run = fitted(steps)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    args = run.data.heldout
    per_step = len(args[0]) / int(args[1].sum())
    found = measure(run.pair, args, facts_of(run.pair, args), num_data=len(args[0]), draws=10, seed=1, rows=20)
    print(
        f"{steps} steps of {options.batch_size} sequences, {seconds:.0f} s, of which {cpu:.0f} s on the processor, "
        f"{torch.get_num_threads()} threads\n"
        f"{options.part}: ELBO {found.elbo_mean * per_step:.3f} nats a time step (published: -6.87)"
    )
    if options.particles:
        better = pyro_vi.evidence(run.model, run.guide, args, method="iw", particles=options.particles, seed=1)
        value = float(better["log_evidence"].mean()) * per_step
        print(f"{options.part}: importance weighting, {options.particles} paths: {value:.3f} nats a time step")


if __name__ == "__main__":
    main(tyro.cli(Options))
