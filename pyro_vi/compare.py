"""The main job: one pair, several ELBO estimators, side by side.

For each estimator the same pair is fitted from the same start on the same batches; all estimators are audited at the same
parameters, those of the first one's fit at its start, middle and end; each fit is evaluated on held-out data.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from pyro.infer import ELBO

from pyro_vi.audit import audit
from pyro_vi.data import Data, load
from pyro_vi.draws import Evaluation, evaluate
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators import named, refuse_without_loss, target
from pyro_vi.evidence import evidence
from pyro_vi.fit import Run, fit
from pyro_vi.programs import name_of
from pyro_vi.runs import slug
from pyro_vi.versions import versions

AUDITED = (0.0, 0.5, 1.0)
"""Fractions of the first fit at which the audits are made."""


@dataclass(frozen=True)
class Result:
    """What one estimator's fit came to on held-out data.

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
    def elbo(self) -> float:
        return float(self.evaluation.elbo.mean())

    @property
    def gap(self) -> float | None:
        """Evidence − ELBO, in nats per datum."""
        return None if self.evidence is None else float(self.evidence.attrs["value"]) - self.elbo


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

    def to_dict(self, plots: Iterable[Path] = ()) -> dict[str, Any]:
        """The comparison as plain numbers and words: the JSON document of the command line."""
        from pyro_vi.summary import conclude

        return {
            "model": self.model,
            "guide": self.guide,
            "data": self.data.spec.name,
            "num_data": self.data.spec.num_data,
            "seed": self.seed,
            "versions": versions(),
            "estimators": {name: self._estimator(name, result) for name, result in self.results.items()},
            "conclusion": conclude(self),
            "plots": [str(path) for path in plots],
            "out": None if self.out is None else str(self.out),
        }

    def _estimator(self, name: str, result: Result) -> dict[str, Any]:
        found = result.evidence
        return {
            "class": result.cls,
            "elbo": result.elbo,
            "elbo_se": result.evaluation.se,
            "reconstruction": float(result.evaluation.reconstruction.mean()),
            "kl": float(result.evaluation.kl.mean()),
            "evidence": None if found is None else {key: found.attrs[key] for key in ("method", "value", "se")},
            "gap": result.gap,
            "train_seconds": result.run.seconds,
            "compiled": result.run.compiled,
            "kl_source": result.kl_source,
            "audits": [_audit(step, dataset.sel(elbo=name)) for step, dataset in self.audits.items()],
        }

    def audit_dataset(self) -> xr.Dataset:
        """All audits in one dataset, with the dimension ``step`` before the others."""
        steps = xr.Variable("step", list(self.audits))
        return xr.concat(list(self.audits.values()), steps, combine_attrs="override")


def _audit(step: int, one: xr.Dataset) -> dict[str, Any]:
    return {
        "step": step,
        "value_sd": float(one.value_sd),
        "grad_var": {str(part): float(one.part_grad_var.sel(part=part)) for part in one.part.values},
        "grad_snr": {str(part): float(one.part_grad_snr.sel(part=part)) for part in one.part.values},
        "seconds": float(one.seconds),
    }


def compare(
    model: Any,
    guide: Any,
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
    """Fit one pair under several ELBO estimators, and say what each of them costs and buys.

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
    source, data = data, load(data, seed=seed)
    source = source if isinstance(source, (str, Path)) else data  # a run's configuration keeps the name that was given
    given = (elbos,) if isinstance(elbos, (str, ELBO)) else tuple(elbos)
    estimators = named(given)
    for estimator in estimators.values():
        refuse_without_loss(estimator)
    if not len(data.heldout[0]):
        raise InputError(f"'{data.spec.name}' has no held-out data to compare on; load it with heldout=0.1")
    for what, value, least in (("draws", draws, 1), ("particles", particles, 2), ("audit_batch", audit_batch, 1)):
        if value < least:
            raise UsageError(f"{what} must be at least {least}, not {value}")
    if audit_draws and audit_draws < 20:
        raise UsageError(f"audit_draws must be at least 20, or 0 for no audits, not {audit_draws}")
    folder = None if out is None else Path(out)
    runs: dict[str, Run] = {}
    for name, elbo in zip(estimators, given, strict=True):
        runs[name] = fit(
            model,
            guide,
            source,
            elbo=elbo,
            steps=steps,
            epochs=epochs,
            seed=seed,
            out=None if folder is None else folder / slug(name),
            resume=resume,
            snapshots=AUDITED if not runs else (),
            **options,
        )
    first = next(iter(runs.values()))
    batch = data.example(min(audit_batch, data.spec.num_data))
    audits = {}
    for step in first.snapshots if audit_draws else ():
        pair = first.at(step)
        audits[step] = audit(pair.model, pair.guide, batch, elbos=given, draws=audit_draws, seed=seed)
    results = {name: _result(run, estimators[name], draws, particles, seed) for name, run in runs.items()}
    return Comparison(name_of(model), name_of(guide), data, seed, results, audits, folder)


def _result(run: Run, elbo: ELBO, draws: int, particles: int, seed: int) -> Result:
    data, pair = run.data, run.pair
    evaluation = evaluate(pair, data.heldout, draws=draws, seed=seed)
    note, found = "", None
    try:
        found = evidence(pair.model, pair.guide, data.heldout, particles=particles, seed=seed)
    except InputError as error:
        note = str(error)
    return Result(run, type(elbo).__name__, target(elbo), run.kl_source, evaluation, found, note)
