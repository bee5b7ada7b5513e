"""Active units with a warm-up, cycles and free bits: `python scripts/collapsed_units.py`.

A latent dimension has collapsed if q(z_j | x) does not depend on x. It is active if the variance of its posterior mean over the
data is above .01 (Burda et al. 2015, arXiv:1509.00519). The script fits one pair on digits with each option. It prints the
active units and the KL of each site, the ELBO of the held-out data (100 draws of each datum), and what it gains over
the plain fit, ± the standard error of the mean over the data.
"""

from collections.abc import Mapping
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

import pyro_vi
from pyro_vi.elbo import draw_traces, evaluate, from_run, units_of
from pyro_vi.programs import evaluating, isolated

ACTIVE = 0.01


def variants(steps: int) -> dict[str, dict[str, Any]]:
    """The options that are compared."""
    return {
        "plain": {},
        f"warmup={steps // 4}": {"warmup": steps // 4},
        "cycles=4": {"cycles": 4},
        "free_bits=0.05": {"free_bits": 0.05},
        "free_bits=0.2": {"free_bits": 0.2},
    }


def units(run: pyro_vi.Run) -> dict[str, tuple[int, int, float]]:
    """By site: active units, all units, and the KL in nats per datum, over the training data."""
    x = run.data.train()
    with torch.no_grad(), evaluating(run.pair), isolated(0, validation=False):
        drawn = draw_traces(run.pair.model, run.pair.guide, x)
    terms = from_run(drawn, len(x[0]))
    found = {}
    for name, site in terms.sites.items():
        if site.latent:
            variance = drawn.guide_trace.nodes[name]["fn"].mean.var(0)
            kl = units_of(drawn, terms, name).kl
            found[name] = int((variance > ACTIVE).sum()), len(kl), float(kl.sum())
    return found


def measure(
    model: str, guide: str, steps: int, lr: float, options: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[dict[str, tuple[int, int, float]], torch.Tensor]]:
    """By option: `units`, and the ELBO of each held-out datum."""
    results = {}
    for name, option in options.items():
        run = pyro_vi.fit(model, guide, "digits", steps=steps, lr=lr, progress=False, **option)
        results[name] = units(run), evaluate(run.pair, run.data.heldout, draws=100).elbo_per_datum
    return results


def main(
    model: str = "vae(latent_dim=20, hidden=(128, 128))",
    guide: str = "diag_normal(hidden=(128, 128))",
    steps: int = 1000,
    lr: float = 1e-2,
) -> None:
    """Fit with each option, and print the table."""
    results = measure(model, guide, steps, lr, variants(steps))
    _, plain = results["plain"]
    shown = Table(title=f"{model}, {guide}, digits, {steps} steps", title_justify="left")
    for column in ("option", "active units", "KL", "held-out ELBO", "gain over plain"):
        shown.add_column(column)
    for name, (sites, elbo) in results.items():
        difference = elbo - plain
        shown.add_row(
            name,
            ", ".join(f"{site}: {active} of {count}" for site, (active, count, _) in sites.items()),
            ", ".join(f"{kl:.2f}" for _, _, kl in sites.values()),
            f"{elbo.mean():.2f}",
            f"{difference.mean():+.2f} ± {difference.std() / len(difference) ** 0.5:.2f}",
        )
    Console(highlight=False, width=120).print(shown)


if __name__ == "__main__":
    tyro.cli(main)
