"""The entry of all comparisons: `compare` checks what was asked for, and repeats the comparison under each seed."""

import dataclasses
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyro.infer import ELBO

from pyro_vi.comparing.asked import Asked
from pyro_vi.comparing.of_estimators import compare_estimators
from pyro_vi.comparing.of_guides import compare_guides, labelled
from pyro_vi.comparing.results import Comparison
from pyro_vi.errors import UsageError
from pyro_vi.estimators.table import named
from pyro_vi.fitting import Options, given, holds_run
from pyro_vi.programs import Source
from pyro_vi.support import Whole, check_options, whole

ELBOS = ("trace", "mean_field")
"""The estimators that are compared on one pair if none are named."""


def compare(
    model: Source,
    guide: Source | list[Source] | tuple[Source, ...],
    data: Any,
    *,
    elbos: Iterable[str | ELBO] | str | ELBO | None = None,
    steps: Whole | None = None,
    epochs: Whole | None = None,
    seed: Whole = 0,
    seeds: Whole = 1,
    audit_draws: Whole = 1000,
    audit_batch: Whole = 128,
    draws: Whole = 100,
    particles: Whole = 1000,
    out: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Comparison:
    """Fit one pair under several ELBO estimators, or one model with several guides, and compare the fits.

    Estimators are compared by the cost of their gradients, in audits at the same parameters, and by the fits. Guides are
    compared by their fits under one estimator: by bound, evidence, gap, number of parameters and time. All fits start from the
    same parameters of the model, and see the same batches in the same order. If one guide needs all rows in each step, all get
    them. A guide that the model cannot have, or whose fit fails, is in ``refused`` of the result, with the reason.

    Args:
        model: a name, class, module or function: see `pyro_vi.fit`.
        guide: the same for the guide; or a list of guides.
        data: the name of a data set, a file, an array or tensor, or a `Data`. The fits are compared on the data that are held
            out; on training data if none are, or if latents are shared by all data.
        elbos: estimators, by name or as `pyro.infer.ELBO`; the audits use parameters of the first one's fit. By default trace
            and mean_field. For several guides one estimator; by default the first of mean_field, enum, mixed and trace that
            serves the most guides.
        steps: optimisation steps of each fit; or give ``epochs``; see `pyro_vi.fit`.
        epochs: passes over the data in each fit, in place of ``steps``.
        seed: seed of all draws, initial values and batches.
        seeds: number of seeds: the comparison is made under ``seed``, ``seed`` + 1, … and is in ``repeats`` of the result.
        audit_draws: draws of an audit; 0 for no audits. There are none with several guides.
        audit_batch: number of training data in the batch of the audits; a pair that needs all data in each step gets them.
        draws: draws for the ELBO of each datum.
        particles: draws for the evidence of each datum if it is not exact; a useful bound needs at least 500.
        out: folder for the run folders of the fits, which have the names of the estimators or guides; with several seeds, they
            are in a folder for each seed.
        resume: continue the comparison in ``out``.
        options: passed on to `pyro_vi.fit`: ``batch_size``, ``lr``, ``schedule``, ``clip_norm``, ``beta``, ``compile``, …

    Raises:
        UsageError: an unknown name or option, or a setting out of range.
        InputError: the data or the pair cannot be fitted or evaluated, which is found before the first fit; of several guides,
            all of them.
        FitError: a loss is not finite; of several guides, in all fits.

    Example:
        >>> result = compare("vae", "diag_normal", "digits", steps=10, audit_draws=20, particles=50, progress=False)
        >>> list(result.results)
        ['trace', 'mean_field']
        >>> guides = ["diag_normal", "diag_normal(hidden=(8,))", "exact"]
        >>> result = compare("vae", guides, "digits", steps=10, particles=50, progress=False)
        >>> list(result.results), list(result.refused)
        (['diag_normal', 'diag_normal(hidden=(8,))'], ['exact'])
    """
    own = [p.name for p in inspect.signature(compare).parameters.values() if p.kind is p.KEYWORD_ONLY]
    check_options("compare", options, dict.fromkeys([*own, *(option.name for option in dataclasses.fields(Options))]))
    wanted = Options(steps=steps, epochs=epochs, seed=seed, out=out, resume=resume, **options)
    folder = None if out is None else Path(out)
    asked = Asked(wanted, draws, particles, audit_draws, audit_batch, folder).checked()
    count = whole("seeds", seeds, 1)
    elbos = elbos if elbos is None or isinstance(elbos, (str, ELBO)) else list(elbos)
    plain = {"model": model, "guide": guide, "data": data, "elbos": elbos, "seeds": count}
    plain.update({name: getattr(asked, name) for name in ("audit_draws", "audit_batch", "draws", "particles")})
    asked = dataclasses.replace(asked, given=given("compare", plain, wanted))
    several = labelled(guide if isinstance(guide, (list, tuple)) else [guide])
    if len(several) == 1:
        (single,) = several.values()
        estimators = named(ELBOS if elbos is None else elbos)
        names: list[str] = list(estimators)
        made = [compare_estimators(model, single, data, estimators, one) for one in _ready(asked, count, names)]
    else:
        chosen = None if elbos is None else named(elbos)
        if chosen is not None and len(chosen) > 1:
            raise UsageError(
                f"several guides are compared under one estimator, not under {', '.join(chosen)}; "
                "name one estimator, or one guide"
            )
        made = [compare_guides(model, several, data, chosen, one) for one in _ready(asked, count, list(several))]
    first, *repeats = made
    return dataclasses.replace(first, repeats=tuple(repeats), out=folder)


def _ready(asked: Asked, count: int, names: list[str]) -> list[Asked]:
    """Return the settings for each seed; refuse to resume a comparison that has not begun."""
    each = asked.seeded(count)
    paths = [path for one in each for path in one.folders(names).values()]
    if asked.options.resume and asked.folder is not None and not any(holds_run(path) for path in paths if path):
        raise UsageError(f"'{asked.folder}' holds no comparison to resume; leave out resume to start one")
    return each
