"""Records of a fit: the ELBO of training and held-out data at a step, and numbers of the steps since the last record."""

import math
from typing import Any

from pyro_vi.data import Batch, Data, length_of, part
from pyro_vi.elbo import evaluate
from pyro_vi.errors import FitError
from pyro_vi.estimators.objective import Objective
from pyro_vi.estimators.traits import traits_of
from pyro_vi.fitting.failures import failing, overflow
from pyro_vi.fitting.settings import Position
from pyro_vi.programs import evaluating, isolated, kept_buffers

ROWS = 1000
"""Most training rows and held-out rows that a record evaluates: the first ones, the same for every record."""


class Records:
    """The maker of the records of one fit; a record changes neither the fit nor its generators.

    Args:
        objective: the function that the fit minimises.
        data: the data of the fit.
        example: a batch, for a run that finds the sites.

    Raises:
        InputError: the programs draw their own minibatch, so that no record can be made.
    """

    def __init__(self, objective: Objective, data: Data, example: Batch) -> None:
        self.objective = objective
        rows = data.spec.num_data
        self.train = data.example(rows if length_of(example) == rows else min(ROWS, rows))
        self.heldout = part(data.heldout, 0, ROWS) if data.num_heldout else None
        layout, guide_layout = objective.pair.layouts(example)
        # The estimator sums over a latent site that the guide lacks. The ELBO then does not split into reconstruction and KL.
        self.summed = not set(layout.latents) <= set(guide_layout.sites)

    def make(self, now: Position, *, weight: float, lr: float, norm: float) -> dict[str, Any]:
        """Return the record of a step, with the keys of `pyro_vi.Run.history`; losses and ELBOs are in nats per datum.

        Args:
            now: the position of the fit.
            weight: weight of the KL in the last step.
            lr: learning rate of the last step.
            norm: norm of the gradient in the last step.

        Raises:
            FitError: a parameter is not finite, or a program fails.
        """
        pair = self.objective.pair
        found = overflow(pair)  # after the last step, no further step would find it
        if found:
            raise FitError(f"the fit ends after step {now.step}: {found}")
        with failing(pair, f"after step {now.step}"), kept_buffers(pair):
            train = self._elbo(self.train, now.step)
            heldout = None if self.heldout is None else self._elbo(self.heldout, now.step)
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
        """Return the ELBO without annealing and its two parts, from one draw for each datum."""
        pair, elbo = self.objective.pair, self.objective.elbo
        if not self.summed:
            found = evaluate(pair, rows, draws=1, kl=traits_of(elbo).kl, seed=seed)
            parts = {"elbo": found.elbo_per_datum, "reconstruction": found.reconstruction, "kl": found.kl}
            return {name: float(part.mean()) for name, part in parts.items()}
        with evaluating(pair), isolated(seed, validation=False):
            estimator: Any = elbo
            loss = float(estimator.loss(pair.model, pair.guide, *rows))
        return {"elbo": -loss / pair.rows(rows)[1], "reconstruction": math.nan, "kl": math.nan}
