"""The average of the iterates beside the last one, and optimizers without a rate beside Adam, on two pairs.

    python scripts/study_averaging.py

Each row is one fit: the optimizer, the ELBO of its last iterate, that of the average, and their difference, with standard
errors. The rows of the VAE are held out; its ELBO is per datum, and its errors are over the rows. The ELBO of the regression is
that of all data together, and its errors are over 1000 draws. The difference is on the same rows and draws.
"""

from typing import Any

import torch
import tyro
from torch import Tensor

import pyro_vi
from pyro_vi.elbo import facts_of, measure
from pyro_vi.programs import Pair

PAIRS = (
    ("vae", "diag_normal", "digits", 3000),
    ("regression", "diag_normal", "diabetes(standardize=True, target=True)", 2000),
)
FITS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("adam, cosine", {}),
    ("adam, constant", {"schedule": "constant"}),
    ("dog", {"optimizer": "dog"}),
    ("dowg", {"optimizer": "dowg"}),
    ("prodigy, cosine", {"optimizer": "prodigy"}),
    ("prodigy, constant", {"optimizer": "prodigy", "schedule": "constant"}),
    ("schedule_free", {"optimizer": "schedule_free"}),
)


def elbos_of(pair: Pair, data: pyro_vi.Data) -> Tensor:
    """The ELBO of each held-out row, or of all data in each draw."""
    rows = data.spec.num_data
    example = data.example(rows)
    facts = facts_of(pair, example)
    if not facts.shared:
        return measure(pair, data.heldout, facts, num_data=rows, draws=50, kl="sampled", seed=1).elbo_per_datum
    found = measure(pair, example, facts, draws=1000, kl="sampled", seed=1)
    assert found.of_draws is not None
    return rows * found.of_draws


def shown(values: Tensor) -> str:
    """The mean with its standard error."""
    return f"{float(values.mean()):9.3f} ± {float(values.std()) / len(values) ** 0.5:.3f}"


def main(seed: int = 0) -> None:
    """Print a line for each fit."""
    for model, guide, data, steps in PAIRS:
        print(f"{model} with {guide} on {data}, {steps} steps")
        for title, options in FITS:
            average = None if title == "schedule_free" else "polynomial"
            asked = {**options, "average": average, "steps": steps, "seed": seed, "compile": False}
            run = pyro_vi.fit(model, guide, data, progress=False, **asked)
            last, average_of = elbos_of(run.last, run.data), elbos_of(run.pair, run.data)
            parts = (shown(last), shown(average_of), shown(average_of - last))
            print(f"  {title:18s} last {parts[0]}, average {parts[1]}, difference {parts[2]}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
