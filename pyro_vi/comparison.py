"""The comparison of several ELBO estimators on one pair.

Each estimator fits the same pair, from the same start and on the same batches. All estimators are audited at the same
parameters: those at the start, middle and end of the first fit. Each fit is evaluated on held-out data; on training data if
there are none, or if latents are shared by all data, so that ELBO and evidence are those of the data that were fitted.
"""

import copy
import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xarray as xr
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.auditing import audit_pair
from pyro_vi.data import Batch, Data
from pyro_vi.diagnostics import evidence_of_pair
from pyro_vi.elbo import Evaluation, Facts, facts_of, length_of, log_predictive, measure
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators.table import named
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.fitting import Options, Run, check_pair, fit_pair, holds_run, names_of, plan_of, recipe_of, refuse
from pyro_vi.programs import Pair, Source
from pyro_vi.support import Whole, check_options, slug, whole

AUDITED = (0.0, 0.5, 1.0)
"""Fractions of the first fit at which the audits are made."""

ROWS = 1000
"""Most data that are evaluated at a time, and most training data on which fits are compared where rows can be left out."""


@dataclass(frozen=True)
class Result:
    """The fit under one estimator, and its numbers on the data of `Comparison.on`.

    Attributes:
        run: the fit.
        cls: name of the estimator's class.
        target: the bound that it estimates, such as ``"elbo"`` or ``"iwae(5)"``.
        kl_source: for each latent site, how its KL is computed: analytic, or sampled and why.
        evaluation: ELBO, reconstruction and KL of each datum.
        evidence: see `pyro_vi.evidence`; None if there is none.
        note: the reason why there is no evidence.
        lpd: log predictive density of each held-out datum, where latents are shared by all data; else None.
        objective: what the fit maximises: ``"ELBO"``, or ``"log p(x, z)"`` where the guide is a point estimate.
    """

    run: Run
    cls: str
    target: str
    kl_source: dict[str, str]
    evaluation: Evaluation
    evidence: xr.Dataset | None
    note: str = ""
    lpd: Tensor | None = None
    objective: str = "ELBO"

    @property
    def elbo_mean(self) -> float:
        """Mean ELBO, in nats per datum; NaN for a point estimate."""
        return self.evaluation.elbo_mean

    @property
    def gap(self) -> float | None:
        """Evidence − ELBO, in nats per datum."""
        return None if self.evidence is None else float(self.evidence.attrs["value"]) - self.elbo_mean


@dataclass(frozen=True)
class Comparison:
    """Fits and audits of one pair under several estimators.

    Attributes:
        audits: the audits by step of the first fit.
        on: the data that the results are of: ``"held-out"`` or ``"training"``.
    """

    model: str
    guide: str
    data: Data
    seed: int
    results: Mapping[str, Result]
    audits: Mapping[int, xr.Dataset]
    out: Path | None = None
    on: Literal["held-out", "training"] = "held-out"

    def pictured(self) -> tuple[str, Batch]:
        """The data that pictures show, and their name: held-out data, or training data if there are none."""
        if self.data.num_heldout:
            return "held-out", self.data.heldout
        return "training", self.data.example(min(ROWS, self.data.spec.num_data))

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
    steps: Whole | None = None,
    epochs: Whole | None = None,
    seed: Whole = 0,
    audit_draws: Whole = 1000,
    audit_batch: Whole = 128,
    draws: Whole = 100,
    particles: Whole = 1000,
    out: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Comparison:
    """Fit one pair under several ELBO estimators; compare the cost of the estimators and the quality of the fits.

    Args:
        model: a name, class, module or function: see `pyro_vi.fit`.
        guide: the same for the guide.
        data: the name of a data set, a file, an array or tensor, or a `Data`. The fits are compared on the data that are held
            out; on training data if none are, or if latents are shared by all data.
        elbos: estimators, by name or as `pyro.infer.ELBO`; the audits use parameters of the first one's fit.
        steps: optimisation steps of each fit; or give ``epochs``; see `pyro_vi.fit`.
        epochs: passes over the data in each fit, in place of ``steps``.
        seed: seed of all draws, initial values and batches.
        audit_draws: draws of an audit; 0 for no audits.
        audit_batch: number of training data in the batch of the audits; a pair that needs all data in each step gets them.
        draws: draws for the ELBO of each datum.
        particles: draws for the evidence of each datum if it is not exact; a useful bound needs at least 500.
        out: folder for the run folders of the fits, which have the names of the estimators.
        resume: continue the comparison in ``out``.
        options: passed on to `pyro_vi.fit`: ``batch_size``, ``lr``, ``schedule``, ``clip_norm``, ``beta``, ``compile``, …

    Raises:
        UsageError: an unknown name or option, or a setting out of range.
        InputError: the data or the pair cannot be fitted or evaluated, which is found before the first fit.
        FitError: a loss is not finite.

    Example:
        >>> result = compare("vae", "diag_normal", "digits", steps=10, audit_draws=20, particles=50, progress=False)
        >>> list(result.results)
        ['trace', 'mean_field']
    """
    own = [p.name for p in inspect.signature(compare).parameters.values() if p.kind is p.KEYWORD_ONLY]
    check_options("compare", options, dict.fromkeys([*own, *(option.name for option in dataclasses.fields(Options))]))
    asked = Options(steps=steps, epochs=epochs, seed=seed, out=out, resume=resume, **options)
    recipe_of(asked.optimizer, asked.lr, asked.schedule)  # refuses before anything is read
    seed, draws, particles = asked.seed, whole("draws", draws, 1), whole("particles", particles, 2)
    audit_batch, audit_draws = whole("audit_batch", audit_batch, 1), whole("audit_draws", audit_draws, 0)
    if audit_draws and audit_draws < 20:
        raise UsageError(f"audit_draws must be at least 20, or 0 for no audits, not {audit_draws}")
    estimators = named(elbos)
    targets = {name: estimator_of(estimator).traits.target for name, estimator in estimators.items()}
    folder = None if out is None else Path(out)
    if resume and folder is not None and not any(holds_run(folder / slug(name)) for name in estimators):
        raise UsageError(f"'{out}' holds no comparison to resume; leave out resume to start one")
    planned = plan_of(model, guide, data, asked)
    pair, loaded, names = planned.pair, planned.data, names_of(model, guide, data, planned.data)
    example = loaded.example(planned.batch_size)
    if asked.check:
        for estimator in estimators.values():
            refuse(check_pair(pair, example, elbo=copy.deepcopy(estimator), num_data=loaded.spec.num_data))
    facts = facts_of(pair, example)
    on, args = _evaluated(loaded, facts, example)
    _measured(pair, args, facts, loaded, draws=1, seed=seed)  # what cannot be evaluated fails before the fits
    runs: dict[str, Run] = {}
    for name, estimator in estimators.items():
        runs[name] = fit_pair(
            dataclasses.replace(planned, pair=copy.deepcopy(planned.pair)),
            name,
            copy.deepcopy(estimator),  # an estimator stores facts about its pair, and the audits use other pairs
            names,
            _into(asked, None if folder is None else folder / slug(name)),
            snapshots=AUDITED if not runs else (),
        )
    first = next(iter(runs.values()))
    batch = example if planned.reason else loaded.example(min(audit_batch, loaded.spec.num_data))
    audits = {
        step: audit_pair(first.at(step), batch, copy.deepcopy(estimators), draws=audit_draws, seed=seed)
        for step in (first.snapshots if audit_draws else ())
    }
    results = {
        name: _result(run, type(estimators[name]).__name__, targets[name], example, facts, draws, particles, seed)
        for name, run in runs.items()
    }
    return Comparison(names["model"], names["guide"], loaded, seed, results, audits, folder, on)


def _into(options: Options, folder: Path | None) -> Options:
    # Of a comparison that was interrupted, only the first fits have a folder.
    resume = options.resume and folder is not None and holds_run(folder)
    return dataclasses.replace(options, out=folder, resume=resume)


def _evaluated(data: Data, facts: Facts, example: Batch) -> tuple[Literal["held-out", "training"], Batch]:
    """The data on which the fits are compared, and their name."""
    every = bool(facts.shared) or facts.plate is None
    if data.num_heldout and not every:
        return "held-out", data.heldout
    rows = data.spec.num_data
    return "training", data.example(rows if every or length_of(example) >= rows else min(ROWS, rows))


def _measured(pair: Pair, args: Batch, facts: Facts, data: Data, *, draws: int, seed: int) -> Evaluation:
    size, rows = pair.rows(args)[1], data.spec.num_data
    num_data = size if length_of(args) == rows else max(size, rows)
    return measure(pair, args, facts, num_data=num_data, draws=draws, seed=seed, rows=ROWS)


def _result(
    run: Run, cls: str, target: str, example: Batch, facts: Facts, draws: int, particles: int, seed: int
) -> Result:
    data, pair = run.data, run.pair
    args = _evaluated(data, facts, example)[1]  # on the device of the fit
    evaluation = _measured(pair, args, facts, data, draws=draws, seed=seed)
    lpd = log_predictive(pair, data.heldout, facts, draws=draws, seed=seed) if data.num_heldout else None
    note, found = facts.remark, None
    if not facts.points:
        try:
            found = evidence_of_pair(pair, args, particles=particles, seed=seed)
        except InputError as error:
            note = str(error)
    return Result(run, cls, target, run.kl_source, evaluation, found, note, lpd, facts.objective)
