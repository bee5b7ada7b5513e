"""The comparison of several ELBO estimators on one pair.

Each estimator fits the same pair, from the same start and on the same batches. All estimators are audited at the same
parameters: those at the start, middle and end of the first fit. Each fit is evaluated on held-out data.
"""

import copy
import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from pyro.infer import ELBO

from pyro_vi.auditing import audit_pair
from pyro_vi.data import Data
from pyro_vi.diagnostics import evidence_of_pair
from pyro_vi.elbo import Evaluation, evaluate
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators.table import named
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.fitting import Options, Run, fit_pair, names_of, plan_of
from pyro_vi.programs import Source
from pyro_vi.support import check_options, slug

AUDITED = (0.0, 0.5, 1.0)
"""Fractions of the first fit at which the audits are made."""


@dataclass(frozen=True)
class Result:
    """The fit under one estimator, and its numbers on held-out data.

    Attributes:
        run: the fit.
        cls: name of the estimator's class.
        target: the bound that it estimates, such as ``"elbo"`` or ``"iwae(5)"``.
        kl_source: for each latent site, how its KL is computed: analytic, or sampled and why.
        evaluation: ELBO, reconstruction and KL of each held-out datum.
        evidence: see `pyro_vi.evidence`; None if the evidence is not a sum over data.
        note: the reason why there is no evidence.
    """

    run: Run
    cls: str
    target: str
    kl_source: dict[str, str]
    evaluation: Evaluation
    evidence: xr.Dataset | None
    note: str = ""

    @property
    def elbo_mean(self) -> float:
        """Mean held-out ELBO, in nats per datum."""
        return self.evaluation.elbo_mean

    @property
    def gap(self) -> float | None:
        """Evidence − ELBO, in nats per datum."""
        return None if self.evidence is None else float(self.evidence.attrs["value"]) - self.elbo_mean


@dataclass(frozen=True)
class Comparison:
    """Fits and audits of one pair under several estimators; the keys of ``audits`` are steps of the first fit."""

    model: str
    guide: str
    data: Data
    seed: int
    results: Mapping[str, Result]
    audits: Mapping[int, xr.Dataset]
    out: Path | None = None

    def audit_dataset(self) -> xr.Dataset:
        """Return all audits in one dataset, with ``step`` as the first dimension."""
        steps = xr.Variable("step", list(self.audits))
        return xr.concat(list(self.audits.values()), steps, combine_attrs="override")


def compare(
    model: Source,
    guide: Source,
    data: Any,
    *,
    elbos: Iterable[str | ELBO] = ("trace", "mean_field"),
    steps: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    audit_draws: int = 1000,
    audit_batch: int = 128,
    draws: int = 100,
    particles: int = 1000,
    out: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Comparison:
    """Fit one pair under several ELBO estimators; compare the cost of the estimators and the quality of the fits.

    Args:
        model: a name, class, module or function: see `pyro_vi.fit`.
        guide: the same for the guide.
        data: the name of a data set, a file, an array or tensor, or a `Data`; some of the data must be held out.
        elbos: estimators, by name or as `pyro.infer.ELBO`; the audits use parameters of the first one's fit.
        steps: optimisation steps of each fit; or give ``epochs``; see `pyro_vi.fit`.
        epochs: passes over the data in each fit, in place of ``steps``.
        seed: seed of all draws, initial values and batches.
        audit_draws: draws of an audit; 0 for no audits.
        audit_batch: number of training data in the batch of the audits.
        draws: draws for the ELBO of each held-out datum.
        particles: draws for the evidence of each held-out datum if it is not exact; a useful bound needs at least 500.
        out: folder for the run folders of the fits, which have the names of the estimators.
        resume: continue the comparison in ``out``.
        options: passed on to `pyro_vi.fit`: ``batch_size``, ``lr``, ``schedule``, ``clip_norm``, ``beta``, ``compile``, …

    Raises:
        UsageError: an unknown name or option, or a setting out of range.
        InputError: the data or the pair cannot be fitted, or no data are held out.
        FitError: a loss is not finite.

    Example:
        >>> result = compare("vae", "diag_normal", "digits", steps=10, audit_draws=20, particles=50, progress=False)
        >>> list(result.results)
        ['trace', 'mean_field']
    """
    own = [p.name for p in inspect.signature(compare).parameters.values() if p.kind is p.KEYWORD_ONLY]
    check_options("compare", options, dict.fromkeys([*own, *(option.name for option in dataclasses.fields(Options))]))
    asked = Options(steps=steps, epochs=epochs, seed=seed, out=out, resume=resume, **options)
    estimators = named(elbos)
    targets = {name: estimator_of(estimator).traits.target for name, estimator in estimators.items()}
    for what, value, least in (("draws", draws, 1), ("particles", particles, 2), ("audit_batch", audit_batch, 1)):
        if value < least:
            raise UsageError(f"{what} must be at least {least}, not {value}")
    if audit_draws and audit_draws < 20:
        raise UsageError(f"audit_draws must be at least 20, or 0 for no audits, not {audit_draws}")
    folder = None if out is None else Path(out)
    planned = plan_of(model, guide, data, asked)
    loaded, names = planned.data, names_of(model, guide, data, planned.data)
    if not loaded.num_heldout:
        raise InputError(f"'{loaded.spec.name}' has no held-out data to compare on; give heldout=0.1")
    runs: dict[str, Run] = {}
    for name, estimator in estimators.items():
        runs[name] = fit_pair(
            dataclasses.replace(planned, pair=copy.deepcopy(planned.pair)),
            name,
            copy.deepcopy(estimator),  # an estimator stores facts about its pair, and the audits use other pairs
            names,
            dataclasses.replace(asked, out=None if folder is None else folder / slug(name)),
            snapshots=AUDITED if not runs else (),
        )
    first = next(iter(runs.values()))
    batch = loaded.example(min(audit_batch, loaded.spec.num_data))
    audits = {
        step: audit_pair(first.at(step), batch, copy.deepcopy(estimators), draws=audit_draws, seed=seed)
        for step in (first.snapshots if audit_draws else ())
    }
    results = {
        name: _result(run, type(estimators[name]).__name__, targets[name], draws, particles, seed)
        for name, run in runs.items()
    }
    return Comparison(names["model"], names["guide"], loaded, seed, results, audits, folder)


def _result(run: Run, cls: str, target: str, draws: int, particles: int, seed: int) -> Result:
    data, pair = run.data, run.pair
    evaluation = evaluate(pair, data.heldout, draws=draws, seed=seed)
    note, found = "", None
    try:
        found = evidence_of_pair(pair, data.heldout, particles=particles, seed=seed)
    except InputError as error:
        note = str(error)
    return Result(run, cls, target, run.kl_source, evaluation, found, note)
