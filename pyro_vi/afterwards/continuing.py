"""A new run that starts from the parameters of another one: `continued`."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from pyro_vi.afterwards.storing import keep_data
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators.table import named
from pyro_vi.fitting import Options, Plan, Run, fit_pair, fractions, given, holds_run, names_of, parent_of
from pyro_vi.support import check_options

KEPT = ("seed", "heldout", "batch_size", "shuffle", "drop_last", "device")
"""Options that decide which rows are in which step: the new run takes those of its parent."""
OWN = ("out", "resume", "allow", "callbacks")


def continued(run: Run, plan: Plan, asked: Mapping[str, Any]) -> Run:
    """Continue a fit from the parameters of a run; see `pyro_vi.OpenedRun.more`.

    Args:
        run: the parent.
        plan: the plan of the parent: its data and batch size.
        asked: options of `pyro_vi.fit` that differ from the parent's.
    """
    names = [option.name for option in dataclasses.fields(Options)]
    kept = [name for name in KEPT if asked.get(name) is not None]
    if kept:
        raise UsageError(f"more keeps the rows and their order; leave {kept[0]} out, or start a new fit")
    check_options(
        "more",
        asked,
        [*(name for name in names if name not in (*KEPT, "starts", "resume", "allow")), "elbo", "snapshots"],
    )
    if asked.get("epochs") is None and asked.get("steps") is None:
        raise UsageError("say how long to go on: give epochs=... or steps=...")
    called = run.config.get("given", {})
    before = called.get("arguments", {})
    options = {name: value for name, value in before.items() if name in names and name not in OWN}
    options |= {"epochs": None, "steps": None, "warmup": 0, "cycles": None, "starts": 1}
    fitted = called.get("command", "fit") == "fit"
    elbo = asked.get("elbo", before.get("elbo", run.elbo) if fitted else run.elbo)
    needed = {name for name in names if name not in (*OWN, *KEPT)} | ({"elbo"} if fitted else set())
    objects = {*called.get("objects", ())}
    lacking = sorted((objects & needed) - {*asked})
    if lacking:
        raise InputError(
            f"the run was made with {', '.join(lacking)} as Python objects, which its configuration does not hold; give them "
            f"again: more({', '.join(f'{name}=...' for name in lacking)}, ...)"
        )
    options |= {name: value for name, value in asked.items() if name not in ("elbo", "snapshots")}
    if options.get("stop") != "heldout" and "patience" not in asked:
        options.pop("patience", None)
    wanted = Options(**options)
    (label, estimator), *rest = named(elbo).items()
    if rest:
        raise UsageError("more takes one estimator")
    config = run.config
    folder = run.out.absolute() if run.out is not None and holds_run(run.out) else None
    parent = {"run": config.get("run"), "folder": None, "steps": run.steps} if folder is None else parent_of(folder)
    sources = {kind: before.get(kind, config.get(kind)) for kind in ("model", "guide", "data")}
    if called.get("command") == "compare":
        sources["guide"] = config.get("guide")
    arguments = {**sources, "elbo": elbo, "snapshots": fractions(asked.get("snapshots", ()))}
    arguments["parent"] = folder or run
    record = given("fit", arguments, wanted)
    record["objects"] = sorted({*record["objects"], *(objects & {"model", "guide", "data"})})
    record["folder"] = called.get("folder", record["folder"])
    own = {kind: config[kind] for kind in ("model", "guide", "data", "code") if kind in config}
    own = own or names_of(run.model, run.guide, run.data, run.data)
    start = dataclasses.replace(plan, pair=copy.deepcopy(run.pair))
    found = fit_pair(
        start, label, estimator, {**own, "parent": parent, "given": record}, wanted, arguments["snapshots"]
    )
    if found.out is not None:
        keep_data(found, found.out)
    return found
