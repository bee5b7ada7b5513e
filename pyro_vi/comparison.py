"""The main job: one pair, several ELBO estimators, side by side.

For each estimator the same pair is fitted from the same start on the same batches; all estimators are audited at the same
parameters, those of the first one's fit at its start, middle and end; each fit is evaluated on held-out data.
"""

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from pyro.infer import ELBO

from pyro_vi.auditing import audit_pair
from pyro_vi.data import Data, load
from pyro_vi.diagnostics import evidence_of_pair
from pyro_vi.elbo import Evaluation, evaluate
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators.table import named
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.fitting import Options, Run, fit_pair, names_of
from pyro_vi.programs import Source, build_pair
from pyro_vi.support import slug

AUDITED = (0.0, 0.5, 1.0)
"""Fractions of the first fit at which the audits are made."""


@dataclass(frozen=True)
class Result:
    """One estimator's fit, and its numbers on held-out data.

    Attributes:
        run: the fit.
        cls: name of the estimator's class.
        target: the bound that it estimates: ``"elbo"``, ``"iwae(5)"``.
        kl_source: where each latent site's KL comes from.
        evaluation: ELBO, reconstruction and KL of each held-out datum.
        evidence: see `pyro_vi.evidence`; None where the evidence is no sum over data, and ``note`` says why.
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
    """Fits and audits of one pair under several estimators; ``audits`` by the step of the first one's fit."""

    model: str
    guide: str
    data: Data
    seed: int
    results: Mapping[str, Result]
    audits: Mapping[int, xr.Dataset]
    out: Path | None = None

    def audit_dataset(self) -> xr.Dataset:
        """All audits in one dataset, with the dimension ``step`` before the others."""
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
    """Fit one pair under several ELBO estimators, and compare what they cost and how good the fits are.

    Args:
        model: a name, class, module or function: see `pyro_vi.fit`.
        guide: the same.
        data: a data set's name, a file, an array or tensor, or a `Data`; some of it is held out.
        elbos: estimators, by name or as `pyro.infer.ELBO`; the audits follow the fit of the first.
        steps: optimisation steps of each fit; or ``epochs``; see `pyro_vi.fit`.
        epochs: see ``steps``.
        seed: of everything.
        audit_draws: draws of an audit; 0 for no audits.
        audit_batch: training data in the batch that the audits are made on.
        draws: draws for each held-out datum's ELBO.
        particles: draws for each held-out datum's evidence, where it is not exact; at least 500 for a bound worth reading.
        out: folder; each fit's run folder is made in it, named as its estimator.
        resume: go on with the comparison in ``out``.
        options: passed on to `pyro_vi.fit`: ``batch_size``, ``lr``, ``schedule``, ``clip_norm``, ``beta``, ``compile``, …

    Raises:
        UsageError: an unknown name or option, or a setting out of range.
        InputError: data or a pair that cannot be fitted, or no held-out data.
        FitError: a loss that is not finite.

    Example:
        >>> result = compare("vae", "diag_normal", "digits", steps=10, audit_draws=20, particles=50, progress=False)
        >>> list(result.results)
        ['trace', 'mean_field']
    """
    loaded = load(data, seed=seed)
    asked = Options.of({"steps": steps, "epochs": epochs, "seed": seed, "out": out, "resume": resume, **options})
    estimators = named(elbos)
    targets = {name: estimator_of(estimator).traits.target for name, estimator in estimators.items()}
    if not len(loaded.heldout[0]):
        raise InputError(f"'{loaded.spec.name}' has no held-out data to compare on; load it with heldout=0.1")
    for what, value, least in (("draws", draws, 1), ("particles", particles, 2), ("audit_batch", audit_batch, 1)):
        if value < least:
            raise UsageError(f"{what} must be at least {least}, not {value}")
    if audit_draws and audit_draws < 20:
        raise UsageError(f"audit_draws must be at least 20, or 0 for no audits, not {audit_draws}")
    folder = None if out is None else Path(out)
    pair, names = build_pair(model, guide, loaded, seed=seed), names_of(model, guide, data, loaded)
    runs: dict[str, Run] = {}
    for name, estimator in estimators.items():
        runs[name] = fit_pair(
            copy.deepcopy(pair),
            loaded,
            name,
            copy.deepcopy(estimator),  # a fit teaches it about one pair, and the audits are of several
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
