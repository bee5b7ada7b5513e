"""Comparisons with made-up numbers, for the pictures."""

from typing import Any

import numpy as np
import torch
import xarray as xr

from pyro_vi.comparing import Comparison, Result
from pyro_vi.data.dataset import Data
from pyro_vi.data.loading import load
from pyro_vi.elbo.heldout import Evaluation
from pyro_vi.fitting.runs import Run
from pyro_vi.programs.build import build_pair

NAMES = ("trace", "mean_field", "stl", "iwae", "dreg", "score")


def history(shift: float, steps: int = 100) -> list[dict[str, Any]]:
    """A fit that starts at −10 000 nats, rises to about −20, and was evaluated at every tenth step."""
    records = []
    for step in range(1, steps + 1):
        reconstruction, kl = -18 + shift - 1e4 * float(np.exp(-step)), 3.0 - 1 / step
        record = {"step": step, "reconstruction": reconstruction, "kl": kl, "elbo": reconstruction - kl}
        record |= {"term_x": reconstruction, "kl_z": kl}
        records.append(record | ({"heldout_elbo": record["elbo"] - 1} if step % 10 == 0 else {"heldout_elbo": None}))
    del records[-1]["heldout_elbo"]  # a record may also lack it
    return records


def moments(names: tuple[str, ...], step: int) -> xr.Dataset:
    """Made-up moments as `audit` gives them; the model's are those of the first estimator for all."""
    draws = np.random.default_rng(step)
    variance = draws.uniform(0.1, 10, (len(names), 2))
    variance[:, 0] = variance[0, 0]
    return xr.Dataset(
        {
            "value_sd": ("elbo", draws.uniform(0.01, 1, len(names))),
            "part_grad_var": (("elbo", "part"), variance),
            "part_grad_var_se": (("elbo", "part"), variance / 20),
        },
        coords={"elbo": list(names), "part": ["model", "guide"]},
    )


def data() -> Data:
    return load(np.random.default_rng(0).normal(size=(30, 2)).astype("float32"))


def comparison(names: tuple[str, ...] = NAMES[:2], steps: tuple[int, ...] = (0, 50, 100)) -> Comparison:
    """A comparison with made-up numbers."""
    made = data()
    pair = build_pair("linear_gaussian(latent_dim=1)", "diag_normal", made)
    results = {
        name: Result(
            Run(pair, name, made, history(0.5 * k), {}, 100, 1.0, {"z": "analytic"}),
            "ELBO",
            "elbo",
            {"z": "analytic"},
            Evaluation(torch.zeros(3), torch.zeros(3)),
            None,
        )
        for k, name in enumerate(names)
    }
    return Comparison("a model", "a guide", made, 0, results, {step: moments(names, step) for step in steps})
