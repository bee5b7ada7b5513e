"""Guides on posteriors with known answers: the best ELBO of the family, from a start at the prior; moments of regressions."""

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from targets import TARGETS, Target, needs_folder
from torch import Tensor

from pyro_vi import Run, fit

FILES = [name for name, target in TARGETS.items() if target.folder]
PLAIN = [name for name in TARGETS if name not in FILES]
REGRESSIONS = ["sblrc", "arK", "kidiq"]


def fitted(target: Target, guide: str, steps: int = 500, draws: int = 8) -> Run:
    """Fit a guide; each school has parameters of its own, as in the published bounds."""
    return fit(
        target.model,
        f"{guide}(amortized=False)",
        target.data,
        elbo=f"stl(num_particles={draws}, vectorize_particles=True)",
        steps=steps,
        lr=0.01,
        compile=False,
        progress=False,
    )


def reaches(run: Run, target: Target, best: float) -> None:
    """Check that the ELBO is the best one within .02 nats, by Pyro's estimator with a standard error below .004."""
    estimator = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
    means: list[float] = []
    while len(means) < 10 or torch.tensor(means).std() > 0.004 * len(means) ** 0.5:
        assert len(means) < 250
        with pyro.get_param_store().scope(), torch.no_grad():
            means.append(-estimator.loss(run.model, run.guide, *target.columns()))
    assert float(torch.tensor(means).mean()) == pytest.approx(best, abs=0.02)


@pytest.mark.slow
@needs_folder
@pytest.mark.parametrize("name", FILES)
def test_diag_normal_reaches_the_best_mean_field_bound(name: str) -> None:
    reaches(fitted(TARGETS[name], "diag_normal"), TARGETS[name], TARGETS[name].mean_field)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_diag_normal_reaches_the_best_mean_field_bound_without_data(name: str) -> None:
    reaches(fitted(TARGETS[name], "diag_normal", steps=60, draws=32), TARGETS[name], TARGETS[name].mean_field)


@pytest.mark.slow
@needs_folder
@pytest.mark.parametrize("name", FILES)
def test_full_normal_reaches_the_best_full_rank_bound_and_the_moments_of_regressions(name: str) -> None:
    """Means within .2 posterior standard deviations, standard deviations within 15 %."""
    target = TARGETS[name]
    run = fitted(target, "full_normal")
    assert target.full_rank is not None
    assert target.read is not None
    reaches(run, target, target.full_rank)
    if name in REGRESSIONS:
        (mean, sd), values = target.reference(), target.read(drawn(run, target))
        assert float(((values.mean(0) - mean) / sd).abs().max()) < 0.2
        assert float((values.std(0) / sd - 1).abs().max()) < 0.15


def drawn(run: Run, target: Target, count: int = 20_000) -> dict[str, Tensor]:
    with pyro.get_param_store().scope(), torch.no_grad(), pyro.plate("draws", count, dim=-2):
        found: dict[str, Any] = run.guide(*target.columns())
    return found
