"""Records of a fit: the ELBO of training and held-out data at a step, and numbers of the steps since the last record."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_vi.data import Batch, Data, length_of, part
from pyro_vi.elbo import Facts, at_once, facts_of, log_predictive, measure, predictable
from pyro_vi.errors import InputError
from pyro_vi.estimators.objective import Objective
from pyro_vi.estimators.traits import traits_of
from pyro_vi.fitting.captured_records import Numbers, Replayed, replayed
from pyro_vi.fitting.failures import failing
from pyro_vi.fitting.settings import Position
from pyro_vi.fitting.sites import columns_of
from pyro_vi.programs import evaluating, isolated, kept_buffers

ROWS = 1000
"""Most training rows and held-out rows that a record evaluates: the first ones, the same for every record."""

PREDICTIVE_DRAWS = 20
"""Draws for the held-out log predictive density of a record: with few the number is lower, and the same few compare steps."""


class Records:
    """The maker of the records of one fit; a record changes neither the fit nor its generators.

    Args:
        objective: the function that the fit minimises.
        data: the data of the fit.
        example: a batch, for a run that finds the sites.
        seed: seed of the draws of every record; by default the number of its step.

    Attributes:
        replaying: take the numbers from replayed graphs where there are any; they are those of the programs.

    Raises:
        InputError: the programs draw their own minibatch, so that no record can be made.
    """

    def __init__(self, objective: Objective, data: Data, example: Batch, seed: int | None = None) -> None:
        self.objective, self.seed = objective, seed
        self.replaying = False
        self.heldout_at_once: bool | None = None
        self._graphs: dict[tuple[bool, str], Replayed | None] = {}
        rows = data.spec.num_data
        self.train = data.example(rows if length_of(example) == rows else min(ROWS, rows))
        self.heldout = part(data.heldout, 0, ROWS) if data.num_heldout else None
        # A batch that is a part of the data may have a plate of its own length.
        size = objective.pair.rows(example)[1]
        self.num_data = size if length_of(example) >= rows else max(size, rows)
        self.facts: Facts | None
        try:
            self.facts = facts_of(objective.pair, example)
        except InputError:
            self.facts = None  # the guide lacks a latent that only the estimator can do something about

    @property
    def scored(self) -> bool:
        """True if records have a held-out number."""
        return self.heldout is not None and scored(self.facts)

    @property
    def units(self) -> tuple[int, int]:
        """Factors that turn training and held-out numbers into nats for all data if they share latents; else 1."""
        if self.facts is None or not self.facts.shared:
            return 1, 1
        return self.num_data, 0 if self.heldout is None else length_of(self.heldout)

    def make(self, now: Position, *, weight: float, lr: float, norm: float) -> dict[str, Any]:
        """Return the record of a step, with the keys of `pyro_vi.Run.history`; losses and ELBOs are in nats per datum.

        Args:
            now: the position of the fit.
            weight: weight of the KL in the last step.
            lr: learning rate of the last step.
            norm: norm of the gradient in the last step.

        Raises:
            FitError: a program fails.
        """
        pair = self.objective.pair
        with failing(pair, f"after step {now.step}"), kept_buffers(pair):
            seed = now.step if self.seed is None else self.seed
            train = self._elbo(self.train, seed)
            heldout = {} if self.heldout is None else self._heldout(self.heldout, seed)
        record = {
            "step": now.step,
            "epoch": now.epoch,
            "loss": sum(now.losses) / len(now.losses) if now.losses else math.nan,
            **train,
            "beta": weight,
            "lr": lr,
            "grad_norm": norm,
            "seconds": now.seconds,
        }
        return {**record, **heldout}

    def last(self, now: Position) -> dict[str, float]:
        """Return the ELBOs of the last iterate, for the record of a fit whose result is an average."""
        pair, seed = self.objective.pair, now.step if self.seed is None else self.seed
        with failing(pair, f"after step {now.step}"), kept_buffers(pair):
            train = self._elbo(self.train, seed)
            heldout = {} if self.heldout is None else self._heldout(self.heldout, seed)
        found = {name: train[name] for name in ("elbo", "log_joint") if name in train} | heldout
        return {f"last_{name}": value for name, value in found.items()}

    def elbo_of(self, rows: Batch, seed: int) -> dict[str, float]:
        """Return the ELBO of rows from one draw for each datum, as in a record; of a point log p(x, z) too."""
        with kept_buffers(self.objective.pair):
            return self._elbo(rows, seed)

    def _heldout(self, rows: Batch, seed: int) -> dict[str, float]:
        """Return the held-out ELBO; where latents are shared by all data, the log predictive density of new data instead."""
        facts = self.facts
        if facts is None or not facts.shared:
            found = self._elbo(rows, seed)
            return {f"heldout_{name}": found[name] for name in ("elbo", "log_joint") if name in found}
        if self.heldout_at_once is None and predictable(facts):
            self.heldout_at_once = at_once(self.objective.pair, rows, facts)
        return {name: float(value) for name, value in self._numbers(self._density, rows, seed).items()}

    def _density(self, rows: Batch, seed: int | None) -> dict[str, Tensor]:
        assert self.facts is not None
        draws, many = PREDICTIVE_DRAWS, self.heldout_at_once
        density = log_predictive(self.objective.pair, rows, self.facts, draws=draws, seed=seed, vectorized=many)
        return {} if density is None else {"heldout_lpd": density.mean()}

    def _elbo(self, rows: Batch, seed: int) -> dict[str, float]:
        """Return the ELBO without annealing, its two parts and its terms by site, from one draw for each datum; of a point
        log p(x, z) too."""
        pair, elbo = self.objective.pair, self.objective.elbo
        if self.facts is not None:
            found = self._numbers(self._means, rows, seed)
            sites = [
                {name.removeprefix(kind): value for name, value in found.items() if name.startswith(kind)}
                for kind in (_OBSERVED, _LATENT)
            ]
            means = {name: float(value) for name, value in found.items() if not name.startswith((_OBSERVED, _LATENT))}
            return {**means, **columns_of(*sites)}
        with evaluating(pair), isolated(seed, validation=False):
            estimator: Any = elbo
            loss = float(estimator.loss(pair.model, pair.guide, *rows))
        return {"elbo": -loss / pair.rows(rows)[1], "reconstruction": math.nan, "kl": math.nan}

    def _means(self, rows: Batch, seed: int | None) -> dict[str, Tensor]:
        """Return the ELBO, its parts, and the terms of the sites, averaged over rows."""
        pair, facts, kl = self.objective.pair, self.facts, traits_of(self.objective.elbo).kl
        assert facts is not None
        found = measure(pair, rows, facts, num_data=self.num_data, draws=1, kl=kl, seed=seed, rows=length_of(rows))
        parts = {"elbo": found.elbo_per_datum, "reconstruction": found.reconstruction, "kl": found.kl}
        parts |= {} if found.log_joint is None else {"log_joint": found.log_joint}
        means = {name: part.mean() for name, part in parts.items()}
        means |= {_OBSERVED + name: value for name, value in found.observed.items()}
        return means | {_LATENT + name: value for name, value in found.latents.items()}

    def _numbers(self, numbers: Numbers, rows: Batch, seed: int) -> Mapping[str, Tensor]:
        """Return numbers of rows from a replayed graph, if `replaying` is set and there is one, else from the programs."""
        if not self.replaying or not (rows is self.train or rows is self.heldout):
            return numbers(rows, seed)
        key = (rows is self.train, numbers.__name__)
        if key not in self._graphs:
            self._graphs[key] = replayed(self.objective.pair, rows, numbers)
        graph = self._graphs[key]
        found = None if graph is None else graph(seed)
        return numbers(rows, seed) if found is None else found


_OBSERVED, _LATENT = "term of ", "kl of "


def scored(facts: Facts | None) -> bool:
    """True if held-out rows have a number under a pair with these facts."""
    return facts is None or not facts.shared or predictable(facts)
