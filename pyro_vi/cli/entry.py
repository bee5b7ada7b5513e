"""The entry point of the command line: it parses, runs and prints.

`main` runs one command; `COMMANDS` maps each class of `pyro_vi.cli.commands` to the function that runs it.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 an error in the data, the pair or the run,
2 wrong usage, 130 interrupted by Ctrl-C, 143 by SIGTERM.
"""

import dataclasses
import functools
import json
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from pyro_vi.cli.commands import Audit, Check, Compare, Evidence, Fit, FittingCommand, List, PairCommand, Resume, Show
from pyro_vi.cli.stopping import stopped, terminable
from pyro_vi.errors import FitError, InputError, UsageError, first_line, kind_and_line
from pyro_vi.support import finite, make_folder, slug, write_json


def _compare(command: Compare, made: Any = None) -> int:
    from pyro_vi.comparing import compare
    from pyro_vi.reporting.datatree import datatree_of_pair, history_dataset, rows_within, write
    from pyro_vi.reporting.document import to_dict
    from pyro_vi.reporting.saving import save
    from pyro_vi.reporting.summary import table

    out = Path(command.out or "")
    result = made or compare(
        command.model,
        [command.guide, *command.more],
        command.source,
        elbos=command.elbos,
        seeds=command.seeds,
        audit_draws=command.audit_draws,
        particles=command.particles,
        out=out,
        progress=True,
        **command.options(),
    )
    written = []
    for comparison in result.every:
        audits = {"audit": comparison.audit_dataset()} if comparison.audits else {}
        for name, one in comparison.results.items():
            groups = {"fit": history_dataset(one.run.history), **audits}
            batch, folder = rows_within(one.run.pair, comparison.pictured()[1], 100), comparison.folder_of(name)
            try:
                tree = datatree_of_pair(
                    one.run.pair,
                    batch,
                    draws=100,
                    seed=comparison.seed,
                    groups=groups,
                    features=one.run.data.spec.features,
                )
            except Exception as error:
                if comparison.across == "estimators":
                    raise
                warnings.warn(f"no result.nc for guide {name}: {kind_and_line(error)}", stacklevel=2)
                continue
            # A pair without parameters has no run folder yet.
            written.append(write(tree, make_folder(folder or out) / "result.nc"))
    plots = save(result, out, command.format)
    document = finite(to_dict(result, plots))
    write_json(out / "result.json", document)
    if command.json:
        _print_json(document)
        return 0
    console = _console()
    console.print(table(result))
    for sentence in document["conclusion"]:
        console.print(sentence)
    console.print()
    for path in [*plots, out / "result.json", *written]:
        console.print(str(path), soft_wrap=True)
    return 0


def _fit(command: Fit, made: Any = None) -> int:
    from pyro_vi.fitting import fit
    from pyro_vi.reporting.datatree import datatree_of_pair, history_dataset, rows_within, write
    from pyro_vi.reporting.pictures.plotting import comparison_of
    from pyro_vi.reporting.saving import save

    out = Path(command.out or "")
    asked = {"elbo": command.elbo, "out": out, **command.options()}
    run = made or fit(command.model, command.guide, command.source, **asked)
    batch = run.data.heldout if run.data.num_heldout else run.data.example(run.data.spec.num_data)
    groups = {"fit": history_dataset(run.history)}
    features = run.data.spec.features
    batch = rows_within(run.pair, batch, 100)
    tree = datatree_of_pair(run.pair, batch, draws=100, seed=command.seed, groups=groups, features=features)
    write(tree, out / "result.nc")
    plots = save(comparison_of(run, command.model, command.guide, command.seed), out, command.format)
    last = run.history[-1]
    steps = {} if run.choice is None else {"compiled": run.compiled, "note": run.choice.note, "seconds": run.seconds}
    document = {"elbo": run.elbo, "kl_source": run.kl_source, "out": str(out), "steps": steps, "last": last}
    document["plots"] = [str(path) for path in plots]
    if command.json:
        _print_json(document)
        return 0
    shown = _table(f"{command.model} with guide {command.guide} on {command.source}, {run.elbo}", "", "nats per datum")
    for label, key in (
        ("held-out ELBO", "heldout_elbo"),
        ("held-out log predictive density", "heldout_lpd"),
        ("training ELBO", "elbo"),
        ("training log p(x, z) (MAP: no ELBO)", "log_joint"),
        ("  reconstruction", "reconstruction"),
        ("  KL", "kl"),
    ):
        if key in last and not math.isnan(last[key]):
            shown.add_row(label, f"{last[key]:.2f}")
    note = f" ({run.choice.note})" if run.choice else ""
    _console().print(shown, f"{run.steps} steps in {run.seconds:.1f} s{note}", sep="\n", soft_wrap=True)
    for path in [*plots, out]:
        _console().print(str(path), soft_wrap=True)
    return 0


def _resume(command: Resume) -> int:
    from pyro_vi.comparing import resume
    from pyro_vi.fitting import Run, given_of

    given = given_of(Path(command.folder).expanduser())["arguments"]
    found = resume(command.folder, allow=command.allow)
    shown: dict[str, Any] = {"out": command.folder, "format": command.format, "json": command.json}
    if not isinstance(found, Run):
        return _compare(Compare(**shown), found)
    return _fit(Fit(given["model"], given["guide"], given["data"], seed=given["seed"], **shown), found)


def _audit(command: Audit) -> int:
    from pyro_vi.auditing import advise, audit_pair
    from pyro_vi.estimators.table import named
    from pyro_vi.reporting.summary import audit_table

    planned = _planned(command, command.run)
    batch = _batch(planned, command.batch_size)
    found = audit_pair(planned.pair, batch, named(command.elbos), draws=command.draws, seed=command.seed)
    if command.json:
        _print_json({**found.to_dict(), "advice": [advice.text for advice in advise(found)]})
        return 0
    console = _console()
    console.print(audit_table(found, f"{command.model} with guide {command.guide} on {command.source}"))
    for advice in advise(found):
        console.print(advice.text)
    return 0


def _check(command: Check) -> int:
    from pyro_vi.data import length_of
    from pyro_vi.estimators.table import named
    from pyro_vi.fitting import Options, findings_of

    planned = _planned(command, None)
    size = length_of(_batch(planned, command.batch_size))
    estimator = None if command.elbo is None else named(command.elbo)[command.elbo]
    findings = findings_of(dataclasses.replace(planned, batch_size=size), estimator, Options())
    if command.json:
        _print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            print(f"{finding.severity}: {finding} [{finding.code}]")
        if not findings:
            print(f"nothing found: {command.model} with guide {command.guide} on {command.source}")
    return int(any(finding.severity == "error" for finding in findings))


def _evidence(command: Evidence) -> int:
    from pyro_vi.data import length_of
    from pyro_vi.diagnostics import evidence_of_pair

    planned = _planned(command, command.run)
    data = planned.data
    # The evidence of latents that all data share is that of the data that they were fitted to.
    on, args = ("held-out", data.heldout) if data.num_heldout else ("training", data.example(data.spec.num_data))
    options: Any = {"method": command.method, "particles": command.particles, "seed": command.seed}
    found = evidence_of_pair(planned.pair, args, **options)
    if command.json:
        _print_json({key: found.attrs[key] for key in ("method", "particles", "value", "se", "total", "per")})
        return 0
    sampled = f"importance sampling, K = {command.particles}"
    how = {"exact": "exact", "enum": "exact, by enumeration"}.get(found.attrs["method"], sampled)
    if found.attrs["per"] == "data set":
        error, rows = float(found.mc_se.max()), length_of(args)
        print(f"log p(x) = {found.attrs['total']:.3f} ± {error:.3f} nats for all {rows} {on} data ({how})")
    else:
        print(f"log p(x) = {found.attrs['value']:.3f} ± {found.attrs['se']:.3f} nats per {on} datum ({how})")
    if found.attrs["method"] == "iw":
        print(f"effective draws: median {float(found.ess.median()):.0f}, least {float(found.ess.min()):.1f}")
        print(found.attrs["note"])
    return 0


def _show(command: Show) -> int:
    from pyro_vi.estimators.table import named
    from pyro_vi.fitting import config_of
    from pyro_vi.overview import show_pair
    from pyro_vi.overview.tables import layout_tables

    config = {} if command.run is None else config_of(Path(command.run))
    rows = {"batch_size": command.batch_size}
    if command.batch_size is None and config:
        rows = {key: config[key] for key in ("batch_size", "shuffle", "drop_last")}
    planned = _planned(command, command.run, **rows)
    (name, estimator), *_ = named(command.elbo or config.get("elbo", "mean_field")).items()
    found = show_pair(planned, (command.model, command.guide, command.source), name, estimator, out=command.out)
    if command.json:
        _print_json(found.to_dict())
    else:
        _print(layout_tables(found))
    return 0


def _list(command: List) -> int:
    from pyro_vi import overview
    from pyro_vi.overview.tables import described_tables, shelf_tables

    if command.name is not None:
        entries = overview.described(command.name)
        if command.json:
            _print_json([dataclasses.asdict(entry) for entry in entries])
        for entry in () if command.json else entries:
            _print(described_tables(entry))
        return 0
    if command.json:
        _print_json({**overview.names(), "pairs": [dataclasses.asdict(match) for match in overview.matches()]})
    else:
        _print(shelf_tables(overview.names(), overview.matches()))
    return 0


COMMANDS: dict[type, Callable[[Any], int]] = {
    Compare: _compare,
    Fit: _fit,
    Resume: _resume,
    Audit: _audit,
    Check: _check,
    Evidence: _evidence,
    Show: _show,
    List: _list,
}


def _planned(command: PairCommand, run: str | None, **rows: Any) -> Any:
    from pyro_vi.fitting import Options, config_of, load_parameters, plan_of

    # A run is evaluated on the data that it held out: another seed would split them differently.
    config = {"seed": command.seed} if run is None else config_of(Path(run))
    options = Options(seed=config["seed"], heldout=config.get("heldout"), **rows)
    planned = plan_of(command.model, command.guide, command.source, options)
    if run is not None:
        load_parameters(planned.pair, Path(run))
    return planned


def _batch(planned: Any, size: int | None) -> Any:
    """Return the first batch of a fit; or one of another size, if the pair takes part of the data."""
    whole = planned.data.spec.num_data
    return planned.data.example(planned.batch_size if planned.reason or size is None else min(size, whole))


def _folder(command: FittingCommand) -> Path:
    if command.out is not None:
        return Path(command.out)
    if command.resume:
        raise UsageError("--resume needs the folder of a run; give it with --out FOLDER")
    guides = [command.guide, *getattr(command, "more", ())]
    named = guides if len(guides) <= 3 else [f"{len(guides)}guides"]
    count = getattr(command, "seeds", 1)
    seeds = f"seed{command.seed}" if count < 2 else f"seeds{command.seed}to{command.seed + count - 1}"
    parts = (command.model, *named, command.source, seeds)
    stem = "-".join(slug(part) for part in parts)
    numbered = (Path("runs") / (stem if i == 1 else f"{stem}-{i}") for i in range(1, 10_000))
    return next(path for path in numbered if not path.exists())


def _table(title: str, *columns: str) -> Table:
    shown = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="right" if i and column != "what it is" else "left")
    return shown


def _console() -> Console:
    # A file or a pipe has no width of its own; the tables need about 100.
    return Console(width=None if sys.stdout.isatty() else 110, highlight=False)


def _print(parts: Iterable[Any]) -> None:
    console = _console()
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


def _print_json(value: Any) -> None:
    print(json.dumps(finite(value), indent=2, allow_nan=False, default=str))


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {first_line(message)}", file=sys.stderr)
        yield


def main(args: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["--version"]:  # tyro has no option that does without a subcommand
        print(f"pyro-vi {version('pyro-vi')}")
        return 0
    commands: list[Any] = [Annotated[c, tyro.conf.subcommand(name=c.__name__.lower())] for c in COMMANDS]
    every: Any = functools.reduce(operator.or_, commands)  # the annotated classes as one union
    command: Any = tyro.cli(
        every,
        prog="pyro-vi",
        description="A workbench for variational inference in Pyro. --version prints its version.",
        args=args,
    )
    try:
        if isinstance(command, FittingCommand):
            # The folder is chosen here, so that the message after an interruption can name it.
            command = dataclasses.replace(command, out=str(_folder(command)))
        with _one_line_warnings(), terminable():
            return COMMANDS[type(command)](command)
    except KeyboardInterrupt as error:
        fitting = isinstance(command, FittingCommand)
        return stopped(error, command.out if fitting else getattr(command, "folder", None))
    except Exception as error:
        if getattr(command, "debug", False):
            raise
        known = isinstance(error, (InputError, FitError))
        said = first_line(error) if known else f"{kind_and_line(error)} (--debug shows where)"
        print(f"error: {said}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
