"""Records of a fit: the ELBO of training and held-out data at a step, and what the steps since the last record did."""

import math
from typing import Any

from pyro_vi.data import Batch, Data
from pyro_vi.elbo import evaluate
from pyro_vi.errors import FitError
from pyro_vi.estimators.objective import Objective
from pyro_vi.estimators.traits import traits_of
from pyro_vi.fitting.failures import failing, overflow
from pyro_vi.fitting.settings import Position
from pyro_vi.programs import evaluating, isolated, kept_buffers

ROWS = 1000
"""Training rows and held-out rows that a record evaluates: the first ones, the same for every record."""


class Records:
    """Makes the records of one fit; what they evaluate changes neither the fit nor its generators.

    Args:
        objective: what the fit descends.
        data: what it is fitted to.
        example: a batch, from which the sites are read.
    """

    def __init__(self, objective: Objective, data: Data, example: Batch) -> None:
        self.objective = objective
        self.train = data.example(min(ROWS, data.spec.num_data))
        self.heldout = tuple(column[:ROWS] for column in data.heldout)
        layout, guide_layout = objective.pair.layouts(example)
        # A latent site that the guide lacks is summed out by the estimator: the ELBO then has no two parts.
        self.summed = not set(layout.latents) <= set(guide_layout.sites)

    def make(self, now: Position, *, weight: float, lr: float, norm: float) -> dict[str, Any]:
        """The record of a step; its keys are those of `pyro_vi.Run.history`, in nats per datum.

        Args:
            now: where the fit stands.
            weight: weight of the KL in the last step.
            lr: learning rate of the last step.
            norm: norm of its gradient.

        Raises:
            FitError: a parameter is not finite, or a program fails.
        """
        pair = self.objective.pair
        found = overflow(pair)  # the last step has no next one to find it
        if found:
            raise FitError(f"the fit ends after step {now.step}: {found}")
        with failing(pair, f"after step {now.step}"), kept_buffers(pair):
            train = self._elbo(self.train, now.step)
            heldout = self._elbo(self.heldout, now.step) if len(self.heldout[0]) else None
        record = {
            "step": now.step,
            "epoch": now.epoch,
            "loss": sum(now.losses) / len(now.losses),
            **train,
            "beta": weight,
            "lr": lr,
            "grad_norm": norm,
            "seconds": now.seconds,
        }
        return record if heldout is None else {**record, "heldout_elbo": heldout["elbo"]}

    def _elbo(self, rows: Batch, seed: int) -> dict[str, float]:
        """The unannealed ELBO of some data and its two parts, from one draw for each datum."""
        pair, elbo = self.objective.pair, self.objective.elbo
        if not self.summed:
            found = evaluate(pair, rows, draws=1, kl=traits_of(elbo).kl, seed=seed)
            parts = {"elbo": found.elbo_per_datum, "reconstruction": found.reconstruction, "kl": found.kl}
            return {name: float(part.mean()) for name, part in parts.items()}
        with evaluating(pair), isolated(seed, validation=False):
            estimator: Any = elbo
            loss = float(estimator.loss(pair.model, pair.guide, *rows))
        return {"elbo": -loss / (self.objective.num_data or len(rows[0])), "reconstruction": math.nan, "kl": math.nan}
