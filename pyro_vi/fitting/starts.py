"""Several starts of a fit, from other initial parameters each, of which the best is the result.

* `best_of_starts` fits them one after the other, measures them, and keeps the best.
* `measured` measures one.

The data, their split and order, and the draws are those of the seed of the fit; start i has the initial parameters of
seed + i. So the first start is the fit without further ones. In a run folder, each start is a run of its own, in ``start-1``,
``start-2`` and so on. At the end, the best is copied into the folder itself, which is then an ordinary run; the others stay.
An interrupted fit goes on in the start that it was in.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.errors import FitError, UsageError, first_line
from pyro_vi.estimators.objective import Objective
from pyro_vi.fitting.callbacks import CallbackFailed
from pyro_vi.fitting.folder import RunFolder
from pyro_vi.fitting.plan import Plan
from pyro_vi.fitting.progress import Progress
from pyro_vi.fitting.reading import (
    BEST,
    CHECKPOINT,
    METRICS,
    PREVIOUS,
    SEALS,
    STARTS,
    holds_run,
    newest,
    read_best,
    read_starts,
    signed,
)
from pyro_vi.fitting.records import Records
from pyro_vi.fitting.runs import Run, spread
from pyro_vi.fitting.settings import Options
from pyro_vi.support import write_json

DRAWS = 50
"""Draws for each datum by which a start is measured."""
MEASURES = (
    ("heldout", "elbo", "held-out ELBO"),
    ("heldout", "log_joint", "held-out log p(x, z)"),
    ("train", "elbo", "training ELBO"),
    ("train", "log_joint", "training log p(x, z)"),
)
"""Numbers by which starts are compared, in nats per datum: the first of them that the pair has decides."""

Fit = Callable[[Plan, Mapping[str, Any], Options, str], Run]
"""Fits a plan: with further entries of its configuration, the options, and a title."""


def best_of_starts(first: Plan, other: Callable[[int], Plan], fit: Fit, estimator: ELBO, options: Options) -> Run:
    """Fit a pair from several starts, and return the best run, with the numbers of all in ``starts``.

    Args:
        first: the plan of the first start.
        other: returns the plan with the initial parameters of another seed.
        fit: fits a plan.
        estimator: the estimator; each fit has a copy.
        options: the options of the fit, with their number of starts.

    Raises:
        UsageError: the initial parameters do not depend on the seed, or the folder holds a run, or none to resume.
        FitError: all starts fail; the error is that of the first. Or a callback fails.
    """
    out = None if options.out is None else Path(options.out).expanduser()
    more = {"starts": options.starts}
    if out is not None and any((out / name).exists() for name in (CHECKPOINT, PREVIOUS)):  # all starts are done
        run = fit(first, more, options, "")
        return dataclasses.replace(run, starts=read_starts(out))
    folders = [None if out is None else out / f"start-{i + 1}" for i in range(options.starts)]
    _refuse(out, folders, options)
    seeds = [options.seed + i for i in range(options.starts)]
    begun = {seeds[1]: other(seeds[1])}
    if _same(first.pair.state_dict(), begun[seeds[1]].pair.state_dict()):
        raise UsageError(
            "the initial parameters of this pair do not depend on the seed, so that all starts would be the same fit; leave "
            "starts out, or give the parameters random initial values"
        )
    starts: list[dict[str, Any]] = []
    best, kind, failure = None, "", None
    for i, (seed, folder) in enumerate(zip(seeds, folders, strict=True)):
        planned = first if i == 0 else begun.pop(seed) if seed in begun else other(seed)
        planned = dataclasses.replace(planned, data=first.data, batch_size=first.batch_size)
        resume = folder is not None and holds_run(folder)
        own = dataclasses.replace(options, out=folder, resume=resume, check=options.check and i == 0)
        try:
            run = fit(planned, {"start": seed}, own, f"start {i + 1} of {options.starts}")
        except CallbackFailed:
            raise  # the start itself has not failed
        except FitError as error:
            failure = failure or error
            why = first_line(error).partition("; the state before it")[0]  # its folder and how to go on with it alone
            starts.append({"seed": seed, "elbo": math.nan, "error": math.nan, "failed": why})
            _say(f"start {i + 1} (seed {seed}) fails and is left out: {why}", options)
            continue
        kind, value, error_of = measured(run, estimator, kind)
        if best is None or value > max(one["elbo"] for one in starts if "failed" not in one):
            best = run
        starts.append({"seed": seed, "elbo": value, "error": error_of})
    if best is None:
        assert failure is not None
        raise failure
    starts = [{**one, "measure": kind} for one in starts]
    best = dataclasses.replace(best, starts=starts)
    if out is not None:
        best = _keep(best, out, more, options)
    _say(spread(starts), options)
    return best


def measured(run: Run, estimator: ELBO, kind: str = "") -> tuple[str, float, float]:
    """Return what a start is measured by, its value in nats per datum, and the standard error from its draws.

    All starts are measured on the same rows and draws: those of a record, with `DRAWS` draws for each datum. ``kind`` is what
    the others were measured by; a start that has no such number is below all others.
    """
    data = run.data
    records = Records(Objective(run.pair, copy.deepcopy(estimator)), data, data.example(run.config["batch_size"]))
    shared = records.facts is not None and records.facts.shared
    rows = {"heldout": None if shared else records.heldout, "train": records.train}
    for where, name, text in MEASURES:
        args = rows[where]
        found = {} if args is None else records.elbo_of(args, 0)
        if args is None or kind not in ("", text) or not math.isfinite(found.get(name, math.nan)):
            continue
        point = name == "log_joint"  # which has no draws
        values = torch.tensor([found[name]] if point else [records.elbo_of(args, s)[name] for s in range(DRAWS)])
        return text, float(values.mean()), 0.0 if point else float(values.std()) / math.sqrt(DRAWS)
    return kind or MEASURES[2][2], -math.inf, 0.0


def _refuse(out: Path | None, folders: Sequence[Path | None], options: Options) -> None:
    there = [folder for folder in folders if folder is not None and holds_run(folder)]
    if options.resume and not there:
        raise UsageError(f"'{out}' holds no run to resume; leave out resume to start one")
    if out is not None and not options.resume and (there or holds_run(out)):
        raise UsageError(f"'{out}' holds a run already; continue it with --resume, or choose another folder")


def _same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def _keep(run: Run, out: Path, more: Mapping[str, Any], options: Options) -> Run:
    """Write the best run into the folder of all; the checkpoint comes last, by which a finished fit is known."""
    assert run.out is not None
    state, name, _ = newest(run.out, run.config["run"])
    assert state is not None, name
    config = {key: value for key, value in run.config.items() if key not in ("run", *SEALS, "start")}
    folder = RunFolder(out, {**config, **more}, resume=holds_run(out), allow=options.allow if holds_run(out) else ())
    try:
        (folder.path / METRICS).unlink(missing_ok=True)  # of an end that was interrupted
        for record in run.history:
            folder.log(record)
        for step, parameters in run.snapshots.items():
            folder.save(parameters, f"snapshot-{step}.pt")
        kept, _ = read_best(run.out, run.config["run"])
        if kept is not None:
            folder.save({"pair": kept["pair"], "step": kept["step"]}, BEST)
        write_json(folder.path / STARTS, signed({"run": folder.run, "starts": run.starts}))
        folder.save({key: value for key, value in state.items() if key not in ("config", "history")})
    finally:
        folder.close()
    return dataclasses.replace(run, out=folder.path, config=folder.config)


def _say(line: str, options: Options) -> None:
    Progress("", 1, options.progress).say(line)
