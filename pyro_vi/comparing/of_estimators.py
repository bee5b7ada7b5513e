"""The comparison of several ELBO estimators on one pair.

Each estimator fits the same pair, from the same start and on the same batches. All estimators are audited at the same
parameters: those at the start, middle and end of the first fit.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from pyro.infer import ELBO

from pyro_vi.auditing import audit_pair
from pyro_vi.checking import merged, refuse
from pyro_vi.comparing.asked import Asked, into
from pyro_vi.comparing.evaluating import evaluated, measured, result_of
from pyro_vi.comparing.results import Comparison
from pyro_vi.elbo import facts_of
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.fitting import Run, findings_of, fit_pair, names_of, plan_of, refuse_options
from pyro_vi.programs import Source

AUDITED = (0.0, 0.5, 1.0)
"""Fractions of the first fit at which the audits are made."""


def compare_estimators(
    model: Source, guide: Source, data: Any, estimators: Mapping[str, ELBO], asked: Asked
) -> Comparison:
    """Fit one pair under several estimators, under one seed; see `pyro_vi.compare`.

    Args:
        model: the model.
        guide: the guide.
        data: the data.
        estimators: by name; they are copied, as an estimator stores facts about its pair.
        asked: what else was asked for.
    """
    options, seed = asked.options, asked.options.seed
    targets = {name: estimator_of(estimator).traits.target for name, estimator in estimators.items()}
    planned = plan_of(model, guide, data, options)
    for estimator in estimators.values():
        refuse_options(planned, estimator, options)
    pair, loaded, names = planned.pair, planned.data, asked.names(names_of(model, guide, data, planned.data))
    example = loaded.example(planned.batch_size)
    if options.check:
        found = [findings_of(planned, copy.deepcopy(estimator), options) for estimator in estimators.values()]
        refuse(merged(dict.fromkeys(finding for findings in found for finding in findings)))
        options = dataclasses.replace(options, check=False)  # once for all fits
    facts = facts_of(pair, example)
    on, args = evaluated(loaded, facts, example)
    measured(pair, args, facts, loaded, draws=1, seed=seed)  # what cannot be evaluated fails before the fits
    runs: dict[str, Run] = {}
    for name, folder in asked.folders(estimators).items():
        runs[name] = fit_pair(
            dataclasses.replace(planned, pair=copy.deepcopy(planned.pair)),
            name,
            copy.deepcopy(estimators[name]),  # the audits use other pairs
            names,
            into(options, folder),
            snapshots=AUDITED if not runs else (),
        )
    first = next(iter(runs.values()))
    batch = example if planned.reason else loaded.example(min(asked.audit_batch, loaded.spec.num_data))
    audits = {
        step: audit_pair(first.at(step), batch, copy.deepcopy(dict(estimators)), draws=asked.audit_draws, seed=seed)
        for step in (first.snapshots if asked.audit_draws else ())
    }
    results = {
        name: result_of(run, type(estimators[name]).__name__, targets[name], example, facts, asked)
        for name, run in runs.items()
    }
    return Comparison(names["model"], names["guide"], loaded, seed, results, audits, asked.folder, on)
