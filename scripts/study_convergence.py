"""False stops and delays of the test for convergence, by simulation, and stops of some fits.

    python scripts/study_convergence.py --first 1000
    python scripts/study_convergence.py --pairs

A fit is simulated by its expected loss and noise of standard deviation 1. The test of `pyro_vi.fitting.convergence` looks at it
100 times. A stop is false if the expected loss falls by more than the tolerance, a quarter of that deviation, over the steps
that follow: half as many as were taken, or a quarter of the budget if that is more. A delay is the number of steps at a stop
divided by the number from which on a stop is right, 512 at least.

    exponential  a fast fall with an end, and autocorrelated noise (coefficient .3 to .8)
    power law    a fall without an end, and noise with heavy tails (Student t, 2.5 degrees of freedom)
    line         a slow fall to the end of the budget, and outliers (one loss in a hundred, thirty deviations up)
    plateau      a fall, a plateau that is shorter than half the time before it, and a second fall; skewed noise (log-normal)
    epochs       an exponential fall, and losses that repeat in each epoch, as data in a fixed order give
    warm-up      a loss that rises with the weight of the KL, and falls after it
"""

import math
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy.signal import lfilter

import pyro_vi
from pyro_vi.elbo import facts_of
from pyro_vi.elbo import measure as evaluated
from pyro_vi.fitting.convergence import DEVIATIONS, LEAST, NATS, Watch
from pyro_vi.programs import Pair

KINDS = ("exponential", "power law", "line", "plateau", "epochs", "warm-up")
LOOKS = 100
AVERAGED = 10
DIABETES = "diabetes(standardize=True, target=True)"
PAIRS = (
    ("vae", "diag_normal", "digits", 12_000),
    ("regression", "full_normal", DIABETES, 6000),
    ("regression", "diag_normal", DIABETES, 6000),
    *(
        ("regression", guide, data, 6000)
        for data in ("kidiq", "arK", "sblrc")
        for guide in ("full_normal", "diag_normal")
    ),
)


def loss(kind: str, steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return the expected loss of twice as many steps, the loss of each, the steps of a warm-up, and those of an epoch."""
    t, warmup, epoch = np.arange(2 * steps), 0, 1
    high = math.exp(rng.uniform(math.log(2), math.log(200)))
    noise, fast = rng.normal(size=2 * steps), high * np.exp(-t / rng.uniform(steps / 160, steps / 8))
    if kind == "exponential":
        correlation = rng.uniform(0.3, 0.8)
        return fast, fast + lfilter([math.sqrt(1 - correlation**2)], [1, -correlation], noise), 0, 1
    if kind == "power law":
        mean = high * (1 + t / rng.uniform(5, 60)) ** -rng.uniform(0.4, 1)
        return mean, mean + rng.standard_t(2.5, size=2 * steps) / math.sqrt(5), 0, 1
    if kind == "line":
        mean = -t / steps * rng.uniform(1.2, 20)
        return mean, mean + noise + (rng.random(2 * steps) < 0.01) * rng.exponential(30, 2 * steps), 0, 1
    if kind == "plateau":
        first = steps * rng.uniform(0.04, 0.2)
        second = first * rng.uniform(1.1, 1.45)
        later = np.exp(-np.clip(t - second, 0, None) / (steps * rng.uniform(0.01, 0.06)))
        mean = high * np.exp(-t / first * math.log(high / 0.1)) + 5 * later
        return mean, mean + np.exp(noise) / math.sqrt(math.e * (math.e - 1)), 0, 1
    if kind == "epochs":
        epoch = int(rng.integers(5, 40))
        repeated = np.tile(rng.normal(size=epoch), 2 * steps // epoch + 1)[: 2 * steps]
        return fast, fast + 0.6 * noise + 0.8 * repeated, 0, epoch
    warmup = int(steps * rng.uniform(0.05, 0.3))
    mean = np.roll(fast, warmup)
    mean[:warmup] = fast[0] * np.linspace(0.5, 1, warmup)
    return mean, mean + noise, warmup, epoch


def simulated(kind: str, steps: int, seed: int) -> tuple[int | None, bool, float]:
    """Return the steps of a simulated fit at its stop, whether that was false, and the delay."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    mean, losses, warmup, epoch = loss(kind, steps, rng)
    watch = Watch(shortest=math.ceil(8 / epoch) * epoch, budget=steps)
    after = np.arange(1, steps)
    ahead = np.minimum(after + np.maximum((after - warmup) / 2, steps / 4).astype(int), 2 * steps - 1)
    wrong = after[mean[after] - mean[ahead] > DEVIATIONS]
    right = max(LEAST + warmup, 1 + int(wrong[-1]) if len(wrong) else 0)
    every = max(1, steps // LOOKS)
    for start in range(0, steps, every):
        weights = [min(1.0, step / warmup) if warmup else 1.0 for step in range(start, start + every)]
        watch.add(losses[start : start + every].tolist(), [(weight, 1.0) for weight in weights])
        now = start + every
        if watch.verdict().converged and now < steps:
            return now, bool(mean[now] - mean[ahead[now - 1]] > DEVIATIONS), now / right
    return None, False, math.nan


def measure(fits: int = 100, steps: int = 8000, first: int = 0) -> dict[str, dict[str, float]]:
    """Return, by kind of loss, the fractions of false stops and of fits that do not stop, and quantiles of the delay."""
    found = {}
    for kind in KINDS:
        stops, false, delays = zip(*(simulated(kind, steps, first + seed) for seed in range(fits)), strict=True)
        known = [delay for delay, wrong in zip(delays, false, strict=True) if not (math.isnan(delay) or wrong)] or [
            math.nan
        ]
        found[kind] = {
            "false stops": sum(false) / fits,
            "no stop": sum(stop is None for stop in stops) / fits,
            "median delay": float(np.median(known)),
            "95 % delay": float(np.quantile(known, 0.95)),
        }
    return found


def fitted(model: str, guide: str, data: str, steps: int) -> str:
    """Fit a pair at a constant rate, and return when the test would have stopped it, with the ELBO there and at the end.

    Also the step from which on the ELBO is near its end: of latents that all data share by 1000 draws, the same at each record;
    else that of the records, averaged over `AVERAGED` of them.
    """
    options: dict[str, Any] = {"schedule": "constant", "progress": False}
    run = pyro_vi.fit(model, guide, data, steps=steps, snapshots=[i / LOOKS for i in range(LOOKS + 1)], **options)
    stop = next((record["step"] for record in run.history if record["converged"]), None)
    if shared := bool(facts_of(run.pair, run.data.example(run.data.spec.num_data)).shared):
        at, elbo = [*run.snapshots], np.array([elbo_of(run.at(step), run.data)[0] for step in run.snapshots])
    else:
        records = [record["elbo"] for record in run.history]
        at = [record["step"] for record in run.history][AVERAGED - 1 :]
        elbo = np.convolve(records, np.ones(AVERAGED) / AVERAGED, mode="valid")
    far = np.flatnonzero(np.abs(elbo - (elbo[-AVERAGED:].mean() if shared else elbo[-1])) > NATS)
    near = at[min(len(at) - 1, int(far[-1]) + 1)] if len(far) else at[0]
    text = f"{model} with {guide} on {data}: within {NATS} nats of its end from step {near} on; the test stops "
    if stop is None:
        return f"{text}at no step of {steps}"
    stopped = pyro_vi.fit(model, guide, data, steps=steps, stop="converged", **options)
    assert stopped.steps == stop
    there, end = (elbo_of(found.pair, found.data) for found in (stopped, run))
    numbers = [f"{value:.2f} ± {error:.2f}" for value, error in (there, end)]
    return f"{text}at step {stop} of {steps}; ELBO {numbers[0]} there, {numbers[1]} at the end"


def elbo_of(pair: Pair, data: pyro_vi.Data) -> tuple[float, float]:
    """The ELBO of the training data and its error: of all over 1000 draws if they share latents, else per datum."""
    args = data.example(data.spec.num_data)
    facts, (_, count) = facts_of(pair, args), pair.rows(args)
    found = evaluated(pair, args, facts, draws=1000 if facts.shared else 10, kl="sampled", seed=1)
    if not facts.shared:
        return found.elbo_mean, found.elbo_se
    assert found.of_draws is not None
    return count * found.elbo_mean, count * float(found.of_draws.std()) / math.sqrt(1000)


def main(fits: int = 100, steps: int = 8000, first: int = 0, pairs: bool = False) -> None:
    """Print the table.

    Args:
        fits: simulated fits of each kind.
        steps: steps of each.
        first: seed of the first one.
        pairs: fit some pairs instead, and print when the test would have stopped them.
    """
    if pairs:
        for pair in PAIRS:
            print(fitted(*pair), flush=True)
        return
    found = measure(fits, steps, first)
    table = Table(title=f"{fits} fits of {steps} steps of each kind", title_justify="left")
    for name in ("loss", *found[KINDS[0]]):
        table.add_column(name)
    for kind, numbers in found.items():
        table.add_row(kind, *(f"{value:.3g}" for value in numbers.values()))
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
