"""`OpenedRun`: a fit that returns posteriors, reconstructions, samples and evidence, for its own data or for new rows."""

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from pyro_vi.afterwards.continuing import continued
from pyro_vi.afterwards.generating import latent_means, new_rows, predictive_means
from pyro_vi.afterwards.storing import store
from pyro_vi.data import Batch, Data, length_of, rows_like, tensors_in
from pyro_vi.diagnostics import evidence_of_pair
from pyro_vi.errors import InputError, naming_programs
from pyro_vi.fitting import Best, Plan, Run, described
from pyro_vi.programs import Pair, evaluating, isolated
from pyro_vi.reporting.datatree import datatree_of_pair
from pyro_vi.reporting.exported import exported
from pyro_vi.reporting.of_pairs import posterior_of
from pyro_vi.support import Real, Whole, seed_from, whole

LARGEST = 2 * 10**9
"""Most bytes of the draws that `OpenedRun.posterior` returns."""


class OpenedRun:
    """A finished fit, in memory or from its folder: `pyro_vi.open` makes it.

    The methods take new rows ``x``, and use all of them: an array or a tensor, (rows, *event_shape); a tuple of columns; a
    DataFrame with the columns of the data; a file, the name of a data set, or a `Data`. New rows have the units of the raw
    data. If the fit standardised its data, they are standardised by the mean and the standard deviation of the training rows.
    Without ``x``, the methods use the held-out rows; or all rows, if none are held out or if all data share a latent.

    Args:
        run: the fit.
        plan: the pair, the data and the batch size of the fit; by default those of the run.

    Attributes:
        run: the fit, see `pyro_vi.Run`.

    Example:
        >>> import pyro_vi
        >>> run = pyro_vi.fit("linear_gaussian(latent_dim=2)", "exact", torch.randn(50, 3), steps=2, progress=False)
        >>> opened = pyro_vi.open(run)
        >>> opened.embed(np.zeros((4, 3))).shape, opened.sample(7).shape
        ((4, 2), (7, 3))
    """

    def __init__(self, run: Run, plan: Plan | None = None) -> None:
        self.run = run
        size = run.config.get("batch_size", run.data.spec.num_data)
        rows = run.data.spec.num_data + run.data.num_heldout
        self.plan = plan or Plan(
            run.pair, run.data, size, "" if size < run.data.spec.num_data else "as in the fit", rows
        )

    @property
    def pair(self) -> Pair:
        """The fitted model and guide."""
        return self.run.pair

    @property
    def model(self) -> torch.nn.Module:
        """The fitted model."""
        return self.run.model

    @property
    def guide(self) -> torch.nn.Module:
        """The fitted guide."""
        return self.run.guide

    @property
    def data(self) -> Data:
        """The data of the fit."""
        return self.run.data

    @property
    def config(self) -> Mapping[str, Any]:
        """Everything that is needed to repeat the fit."""
        return self.run.config

    @property
    def parent(self) -> Mapping[str, Any] | None:
        """The run from whose parameters the fit started: its name, folder and number of steps; None if there is none."""
        return self.run.config.get("parent")

    @property
    def best(self) -> Best | None:
        """The record with the highest held-out number: its step, that number, and the number's key; None if there is none."""
        return self.run.best

    def at(self, step: Whole | Best) -> Pair:
        """Return a copy of the pair with the parameters of a snapshot, or of the record `best`; see `pyro_vi.Run.at`."""
        return self.run.at(step)

    @cached_property
    def history(self) -> Any:
        """The records of the fit as a pandas frame, by step; see `pyro_vi.Run`."""
        import pandas as pd

        return pd.DataFrame(self.run.history, columns=None if self.run.history else ["step"]).set_index("step")

    def rows(self, x: Any = None) -> Batch:
        """Return the arguments of the programs for the rows ``x``.

        Raises:
            InputError: columns, shapes or values do not match those of the data.
        """
        if x is not None:
            return rows_like(self.data, x)
        if not self.data.num_heldout or self._undivided:
            return self.data.example(self.data.spec.num_data)
        return self.data.heldout

    def named(self, x: Any = None) -> str:
        """Return a phrase that names the rows ``x``: their number, and their data."""
        count = length_of(self.rows(x))
        if x is not None:
            name = f" of {x}" if isinstance(x, (str, Path)) else ""
            return f"all {count} new rows{name}"
        held = self.data.num_heldout and not self._undivided
        return f"the {count} held-out rows" if held else f"all {count} training rows"

    @cached_property
    def _undivided(self) -> bool:
        layout = self.pair.layouts(self.data.example(self.plan.batch_size))[0]
        return bool(layout.shared) or layout.data_plate is None

    def posterior(self, x: Any = None, draws: Whole = 1000, seed: Whole = 0) -> xr.DataTree:
        """Return draws z ~ q(z | x), predictions and log-likelihoods as ArviZ's DataTree: see `pyro_vi.to_datatree`.

        Raises:
            InputError: rows that cannot be used, or too many draws for the memory.
        """
        args, draws = self.rows(x), whole("draws", draws, 1)
        with naming_programs("the pair fails in the export"):
            size = bytes_of(self.pair, args) * draws
            if size > LARGEST:
                fit = max(1, math.floor(LARGEST / bytes_of(self.pair, args)))
                raise InputError(
                    f"{draws} draws of {length_of(args)} rows take {size / 1e9:.0f} GB; ask for {fit} draws, or for fewer rows"
                )
            return datatree_of_pair(self.pair, args, draws=draws, seed=seed, features=self.data.spec.features)

    def embed(self, x: Any = None, *, draws: Whole = 100, seed: Whole = 0) -> np.ndarray | dict[str, np.ndarray]:
        """Return posterior means E_q[z | x] of the latents of each row, ``(rows, *shape of z)``: an array, or several by site.

        For a discrete latent, the result is the probabilities of its states. If the distribution of a latent depends on other
        latents, it is averaged over ``draws`` draws of those.

        Raises:
            InputError: rows that cannot be used, or a model without local latents.
        """
        args = self.rows(x)
        with naming_programs("the pair fails on these rows"):
            found = latent_means(self.pair, args, draws=whole("draws", draws, 1), seed=seed_from(seed))
        return next(iter(found.values())) if len(found) == 1 else found

    def reconstruct(self, x: Any = None, *, draws: Whole = 100, seed: Whole = 0) -> np.ndarray:
        """Return the posterior predictive mean E_q[E[x | z]] of each row, from ``draws`` draws of z, in the shape of x.

        For a regression, it is the prediction of the target. Numbers are in the units of the raw data.

        Raises:
            InputError: rows that cannot be used, or a model that observes nothing.
        """
        args = self.rows(x)
        with naming_programs("the pair fails on these rows"):
            found, first = predictive_means(self.pair, args, draws=whole("draws", draws, 1), seed=seed_from(seed))
        return self._in_units(found) if first else found

    def sample(self, n: Whole, seed: Whole = 0) -> np.ndarray:
        """Return n draws of new data from the model: z ~ p(z), x ~ p(x | z), with shared latents drawn from the guide.

        Other inputs of the model, such as those of a regression, are taken from the first rows, in turn. If the rows belong
        together, as in a time series, the result is n data sets.

        Raises:
            InputError: the model observes nothing, or does not run without its observations.
        """
        with naming_programs("the model fails where it draws new data", always=True):
            found, first = new_rows(self.pair, self.data, whole("n", n, 1), seed=seed_from(seed))
        return self._in_units(found) if first else found

    def log_evidence(
        self, x: Any = None, method: Any = None, particles: Whole = 5000, seed: Whole = 0, **options: Any
    ) -> xr.Dataset:
        """Return log p(x) of each row, exactly, by importance sampling or by annealing: see `pyro_vi.evidence`.

        Args:
            x: rows; by default those that the fit held out.
            method: as in `pyro_vi.evidence`.
            particles: draws of importance sampling.
            seed: seed of the draws.
            options: further ones, such as ``start``, ``chains`` and ``steps``.

        Raises:
            InputError: rows that cannot be used, or a pair that has no evidence.
        """
        args = self.rows(x)
        with naming_programs("the pair fails in the evidence"):
            return evidence_of_pair(self.pair, args, method=method, particles=particles, seed=seed, **options)

    def more(
        self,
        *,
        epochs: Whole | None = None,
        steps: Whole | None = None,
        lr: Real | Any = None,
        out: str | Path | None = None,
        **options: Any,
    ) -> "OpenedRun":
        """Continue the fit from these parameters, as a new run whose parent is this one; this run does not change.

        Data, split, batches and seed stay the same. The optimizer starts anew, and so does the schedule of the learning rate.

        Args:
            epochs: passes over the data.
            steps: optimisation steps, instead of ``epochs``.
            lr: learning rate; by default that of this run.
            out: folder of the new run.
            options: those of `pyro_vi.fit`, except ``seed``, ``heldout``, ``batch_size``, ``shuffle``, ``drop_last`` and
                ``device``; by default those of this run, without its warm-up.

        Raises:
            UsageError: an unknown option, or neither ``epochs`` nor ``steps``.
            InputError: an option of this run was a Python object that its folder does not hold.
        """
        asked = {"epochs": epochs, "steps": steps, "out": out, **({} if lr is None else {"lr": lr}), **options}
        run = continued(self.run, self.plan, asked)
        return OpenedRun(run, dataclasses.replace(self.plan, pair=run.pair, data=run.data))

    def report(self, *, out: str | Path | None = None, rows: Whole = 500, seed: Whole = 0) -> Path:
        """Write the page that says whether this posterior can be used, and why; return its path: see `pyro_vi.report`.

        Raises:
            InputError: the page cannot be written, or ``out`` is not given and the run has no folder.
        """
        from pyro_vi.afterwards.reported import report  # that module imports this one

        return report(self, out=out, rows=rows, seed=seed)

    def save(self, folder: str | Path) -> Path:
        """Write the run into a folder, from which `pyro_vi.open` opens it; return the folder.

        Data that were given as Python objects are written as well. Programs that were given as Python objects are not: `open`
        asks for them.

        Raises:
            UsageError: the folder holds a run already.
            InputError: it cannot be written.
        """
        return store(self.run, folder)

    def _in_units(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(self.data.in_units(torch.as_tensor(values)).numpy())

    def __repr__(self) -> str:
        lines = described(self.run)
        return "\n".join(["Opened " + lines[0][0].lower() + lines[0][1:], *lines[1:], f"  asked      {_METHODS}"])

    def _repr_html_(self) -> str:
        return self.run._repr_html_()


_METHODS = ".posterior() .embed() .reconstruct() .sample(n) .log_evidence() .history .more() .report() .save(folder)"


def bytes_of(pair: Pair, args: Batch) -> int:
    """Estimate the bytes of one draw of all sites in an export. Latents count twice, and data with their log-densities."""
    with evaluating(pair), isolated(0, validation=False), torch.no_grad():
        sites = exported(posterior_of(pair, args))
    size = next((t.element_size() for t in tensors_in(args) if t.is_floating_point()), 4)
    total = 0
    for site in sites.values():
        numbers, densities = math.prod(site.shape), math.prod(site.shape[: site.rank])
        total += numbers * (1 if site.boolean else size) * (1 if site.kind == "data" else 2)
        total += densities * size if site.kind == "data" else 0
    return max(1, total)
