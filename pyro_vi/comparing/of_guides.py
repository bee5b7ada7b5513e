"""The comparison of several guides with one model, under one estimator.

All guides are fitted from the same parameters of the model, and on the same batches in the same order. `joint` makes the
plans of the fits, so that this is so. A guide that cannot be fitted is refused, and the others are compared without it.

* `labelled` names the guides; `compare_guides` fits and evaluates them.
"""

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from pyro.infer import ELBO

from pyro_vi.comparing.asked import Asked, into
from pyro_vi.comparing.evaluating import evaluated, measured, result_of
from pyro_vi.comparing.joint import Joint, joint_plans
from pyro_vi.comparing.results import Comparison, Result
from pyro_vi.elbo import Facts, facts_of
from pyro_vi.errors import FitError, InputError, UsageError, first_line, kind_and_line
from pyro_vi.estimators.table import named
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.fitting import Options, Plan, Run, findings_of, fit_pair, names_of, refuse_unscored, scored
from pyro_vi.programs import Source, isolated, name_of

CANDIDATES = ("mean_field", "enum", "mixed", "trace")
"""Estimators that are tried if none is named: closed forms first, then what serves discrete sites."""


def labelled(guides: Iterable[Source]) -> dict[str, Source]:
    """Return guides by the name to report them under; functions and modules of one name are numbered.

    Raises:
        UsageError: there is none, or a name is given twice.
    """
    found: dict[str, Source] = {}
    for guide in guides:
        name = base = name_of(guide)
        if isinstance(guide, str) and name in found:
            raise UsageError(f"guide '{name}' is named twice; name each one once")
        number = 1
        while name in found:
            number += 1
            name = f"{base} ({number})"
        found[name] = guide
    if not found:
        raise UsageError("name at least one guide")
    return found


def compare_guides(
    model: Source, guides: Mapping[str, Source], data: Any, chosen: Mapping[str, ELBO] | None, asked: Asked
) -> Comparison:
    """Fit a model with each of several guides, under one seed; see `pyro_vi.compare`.

    Args:
        model: the model.
        guides: by name.
        data: the data.
        chosen: the estimator, by its name; None for the first of `CANDIDATES` that serves the most guides.
        asked: what else was asked for.

    Raises:
        InputError: no guide can be fitted.
        FitError: all fits fail.
    """
    found = joint_plans(model, guides, data, asked.options)
    plans = dict(found.plans)
    errors: dict[str, Exception] = dict(found.refused)
    estimator, unserved = _estimator(found, chosen, asked.options)
    facts: dict[str, Facts] = {}
    for name, plan in found.plans.items():
        example = plan.data.example(plan.batch_size)
        try:
            if name in unserved:
                raise unserved[name]
            facts[name] = facts_of(plan.pair, example)
            args = evaluated(plan.data, facts[name], example)[1]
            measured(plan.pair, args, facts[name], plan.data, draws=1, seed=asked.options.seed)
            refuse_unscored(asked.options.stop, plan.data.num_heldout, scored(facts[name]))
        except InputError as error:
            errors[name] = error
        except Exception as error:
            what = "the pair fails on the data on which the fits are compared; if they are held out, try heldout=0"
            errors[name] = InputError(f"{what}: {kind_and_line(error)}")
        if name in errors:
            del plans[name]
    if not plans:
        raise _all_failed({name: errors[name] for name in guides})
    results: dict[str, Result] = {}
    for name, folder in asked.folders(guides).items():
        if name not in plans:
            continue
        options = dataclasses.replace(asked.options, heldout=found.heldout[name])
        run_names = asked.names(names_of(model, guides[name], data, plans[name].data))
        example = plans[name].data.example(plans[name].batch_size)
        (label, elbo), *_ = estimator.items()
        try:
            run = _run(plans[name], label, copy.deepcopy(elbo), run_names, into(options, folder), name)
        except FitError as error:
            errors[name] = error
            continue
        target = estimator_of(elbo).traits.target
        try:
            results[name] = result_of(run, type(run.guide).__name__, target, example, facts[name], asked)
        except Exception as error:  # the other fits are not lost
            errors[name] = InputError(f"it was fitted, but its evaluation fails: {kind_and_line(error)}")
    if not results:
        raise _all_failed({name: errors[name] for name in guides})
    some, kept = next(iter(plans)), next(iter(plans.values()))
    return Comparison(
        run_names["model"],
        ", ".join(guides),
        kept.data,
        asked.options.seed,
        results,
        {},
        asked.folder,
        evaluated(kept.data, facts[some], kept.data.example(kept.batch_size))[0],
        across="guides",
        estimator=next(iter(estimator)),
        refused={name: first_line(errors[name]) for name in guides if name in errors},
        note=found.note,
    )


def _estimator(
    found: Joint, chosen: Mapping[str, ELBO] | None, options: Options
) -> tuple[Mapping[str, ELBO], dict[str, InputError]]:
    """Return the estimator by its name, and the guides that it does not serve, each with the error of the check."""
    tried = [chosen] if chosen is not None else [named(name) for name in CANDIDATES[: None if options.check else 1]]
    best: tuple[Mapping[str, ELBO], dict[str, InputError]] | None = None
    for elbos in tried:
        (elbo,) = elbos.values()
        errors: dict[str, InputError] = {}
        for name, plan in found.plans.items() if options.check else ():
            found_in = [f for f in findings_of(plan, copy.deepcopy(elbo), options) if f.severity == "error"]
            if found_in:
                errors[name] = InputError(str(found_in[0]))
        if best is None or len(errors) < len(best[1]):
            best = elbos, errors
        if not errors:
            break
    assert best is not None
    return best


def _run(plan: Plan, name: str, elbo: ELBO, names: Mapping[str, Any], options: Any, title: str) -> Run:
    """Fit a pair; a pair without parameters is its own fit, of no steps."""
    if plan.pair.owned():
        return fit_pair(plan, name, elbo, names, options, title=title)
    with isolated(validation=False):
        sources = estimator_of(elbo).sources_of_pair(plan.pair, plan.data.example(plan.batch_size))
    pair, data = plan.pair.to(options.device), plan.data.to(device=options.device)
    return Run(pair, name, data, [], {}, 0, 0.0, {site: str(source) for site, source in sources.items()})


def _all_failed(errors: Mapping[str, Exception]) -> Exception:
    """Return the error of all guides: the one that they share, or one that lists them."""
    kind = FitError if any(isinstance(error, FitError) for error in errors.values()) else InputError
    said = {name: first_line(error) for name, error in errors.items()}
    if len(set(said.values())) == 1:
        return kind(next(iter(said.values())))
    return kind("no guide can be fitted: " + "; ".join(f"{name}: {text}" for name, text in said.items()))
