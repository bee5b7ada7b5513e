"""Annealed importance sampling of a pair, for all data at once: from its guide, or from the prior, to the posterior.

* `Annealing` holds the settings; `log_weights` gives the log-weights of the chains of each row.
* `bounds` gives those of forward and reverse chains, on data that are drawn from the model for it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pyro_vi.data import Batch, length_of, tensors_in
from pyro_vi.diagnostics.annealing.annealed import forward, reverse
from pyro_vi.diagnostics.annealing.positions import Positions
from pyro_vi.diagnostics.annealing.transitions import DENSE, Plan, moves_of, pilot
from pyro_vi.diagnostics.simulating import simulated
from pyro_vi.elbo import MEMORY, at_once, blocks, facts_of
from pyro_vi.programs import Pair, isolated

Start = Literal["guide", "prior"]


@dataclass(frozen=True)
class Annealing:
    """Settings of annealed importance sampling.

    Attributes:
        chains: K, for each row.
        steps: T, the temperatures.
        start: what the guide of the pair is, for the messages: where the path starts.
        seed: seed of the draws.
        rows: most data at a time.
    """

    chains: int
    steps: int
    start: Start
    seed: int
    rows: int


@dataclass(frozen=True)
class Bounds:
    """Log-weights on data that were drawn from the model.

    Attributes:
        args: the data, a block of them.
        lower: log-weights of forward chains, (K, rows).
        upper: log-weights of reverse chains, (K, rows).
        plan: what the pilot run fixed.
    """

    args: Batch
    lower: Tensor
    upper: Tensor
    plan: Plan


def log_weights(pair: Pair, args: Batch, whole: bool, settings: Annealing) -> tuple[Tensor, Tensor]:
    """Return the log-weights of forward chains, (K, rows), and the mean acceptance of each row, for a pair in evaluation mode.

    Step sizes, scales and temperatures are fixed in a run before, whose draws do not count (see `pilot`).
    """
    found = []
    for number, block in enumerate(_blocks(pair, args, whole, settings)):
        positions, plan = _planned(pair, block, whole, settings, number)
        with isolated(_seed(settings.seed, number, 1), validation=False):
            found.append((forward(positions, plan.betas, moves_of(positions, plan), settings.chains), plan.accepted))
    weights, accepted = zip(*found, strict=True)
    return torch.cat(weights, -1), torch.cat(accepted)


def bounds(pair: Pair, args: Batch, whole: bool, settings: Annealing) -> Iterator[Bounds]:
    """Yield forward and reverse log-weights for blocks of data drawn from the model, for a pair in evaluation mode.

    The reverse chains start at the latents that made the data, an exact draw of their posterior.
    """
    for number, block in enumerate(_blocks(pair, args, whole, settings)):
        with isolated(_seed(settings.seed, number, 2), validation=False):
            made = simulated(pair, block)
        positions, plan = _planned(pair, made.args, whole, settings, number)
        exact = positions.of(made.values).expand(settings.chains, -1, -1)
        with isolated(_seed(settings.seed, number, 1), validation=False):
            lower = forward(positions, plan.betas, moves_of(positions, plan), settings.chains)
        with isolated(_seed(settings.seed, number, 3), validation=False):
            upper = reverse(positions, plan.betas, moves_of(positions, plan), exact)
        yield Bounds(made.args, lower, upper, plan)


def _planned(pair: Pair, args: Batch, whole: bool, settings: Annealing, number: int) -> tuple[Positions, Plan]:
    facts = facts_of(pair, args)
    positions = Positions(pair, args, facts, whole, at_once(pair, args, facts))
    active = positions.active
    chains = settings.chains
    if whole and active.shape[-1] <= DENSE:
        chains = max(chains, 4 * active.shape[-1])  # enough for a covariance
    with isolated(_seed(settings.seed, number, 0), validation=False):
        plan = pilot(positions, settings.steps, max(chains, 8), active, 2 * settings.steps + 20)
    return positions, plan


def _blocks(pair: Pair, args: Batch, whole: bool, settings: Annealing) -> list[Batch]:
    """The data in blocks whose chains fit into bounded memory."""
    if whole:
        return [args]
    length = max(1, length_of(args))
    layouts = pair.layouts(args)
    sites = [site.numel for layout in layouts for site in layout.sites.values()]
    widest = max([a.numel() for a in tensors_in(args)] + sites) / length
    rows = max(1, min(settings.rows, int(4 * MEMORY / max(1.0, widest * settings.chains))))
    return blocks(pair, args, math.ceil(length / math.ceil(length / rows)))


def _seed(seed: int, number: int, purpose: int) -> int:
    """The seed of a run: pilot, counted, simulated data, reverse."""
    return int(np.random.SeedSequence(seed, spawn_key=(number, purpose)).generate_state(1)[0])
