"""The entry point of the command line: it parses, runs and prints.

`main` runs one command; `COMMANDS` maps each class of `pyro_vi.cli.commands` to the function that runs it.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 an error in the data, the pair or the run,
2 wrong usage, 130 interrupted by Ctrl-C, 143 by SIGTERM.
"""

import dataclasses
import functools
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro

from pyro_vi.cli.commands import (
    Audit,
    Check,
    Compare,
    Diagnose,
    Evidence,
    Fit,
    FittingCommand,
    Gaps,
    List,
    Plot,
    Report,
    Resume,
    Show,
)
from pyro_vi.cli.judging import diagnose, gaps, report
from pyro_vi.cli.measuring import audit, check, evidence, show
from pyro_vi.cli.printing import console, print_json, print_parts, say, table_of
from pyro_vi.cli.stopping import stopped, terminable
from pyro_vi.errors import FitError, InputError, UsageError, first_line, kind_and_line
from pyro_vi.support import slug


def _compare(command: Compare, made: Any = None) -> int:
    from pyro_vi.afterwards import export_comparison
    from pyro_vi.comparing import compare
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
    written = export_comparison(result, out, format=command.format)
    say(written.remarks)
    pages = []
    if command.report:
        from pyro_vi.afterwards import report

        pages = [report(result, out=out)]
    if command.json:
        print_json(written.document)
        return 0
    shown = console()
    shown.print(table(result))
    for sentence in written.document["conclusion"]:
        shown.print(sentence)
    shown.print()
    for path in [*written.plots, out / "result.json", *written.trees, *pages]:
        shown.print(str(path), soft_wrap=True)
    return 0


def _fit(command: Fit, made: Any = None) -> int:
    from pyro_vi.afterwards import export_fit
    from pyro_vi.fitting import fit, left_out, said_of_best

    out = Path(command.out or "")
    asked = {"elbo": command.elbo, "out": out, **command.options()}
    run = made or fit(command.model, command.guide, command.source, **asked)
    names = (command.model, command.guide)
    written = export_fit(run, out, names=names, seed=command.seed, format=command.format)
    say(written.remarks)
    last, shown_of = run.history[-1], run.record
    steps = {} if run.choice is None else {"compiled": run.compiled, "note": run.choice.note, "seconds": run.seconds}
    document = {"elbo": run.elbo, "kl_source": run.kl_source, "out": str(out), "steps": steps, "last": last}
    document |= {"converged": run.converged, "evidence": run.evidence}
    document |= {"skipped": run.skipped, "restored": run.restored}
    document |= {
        "best": None if run.best is None else dict(zip(("step", "value", "quantity"), run.best, strict=True)),
        "chosen": run.chosen,
    }
    document |= {"starts": run.starts} if run.starts else {}
    document["plots"] = [str(path) for path in written.plots]
    if command.json:
        print_json(document)
        return 0
    shown = table_of(
        f"{command.model} with guide {command.guide} on {command.source}, {run.elbo}", "", "nats per datum"
    )
    for label, key in (
        ("held-out ELBO", "heldout_elbo"),
        ("held-out log predictive density", "heldout_lpd"),
        ("training ELBO", "elbo"),
        ("training log p(x, z) (MAP: no ELBO)", "log_joint"),
        ("  reconstruction", "reconstruction"),
        ("  KL", "kl"),
    ):
        if key in shown_of and not math.isnan(shown_of[key]):
            shown.add_row(label, f"{shown_of[key]:.2f}")
        beside = last.get(f"last_{key}", math.nan)
        if not math.isnan(beside):
            shown.add_row("  of the last iterate, not the average", f"{beside:.2f}")
    for one in run.starts:
        shown.add_row(f"  start of seed {one['seed']}: {one['measure']}", f"{one['elbo']:.2f} ± {one['error']:.2f}")
    shown.add_row("converged", {True: "yes", False: "no", None: "cannot be told"}[run.converged])
    note = f" ({run.choice.note})" if run.choice else ""
    console().print(shown, f"{run.steps} steps in {run.seconds:.1f} s{note}", sep="\n", soft_wrap=True)
    if run.skipped or run.restored:
        console().print(f"left out: {left_out(run)}", soft_wrap=True)
    console().print(*filter(None, (run.evidence, said_of_best(run))), sep="\n", soft_wrap=True)
    for path in [*written.plots, out]:
        console().print(str(path), soft_wrap=True)
    return 0


def _resume(command: Resume) -> int:
    from pyro_vi.comparing import resume
    from pyro_vi.fitting import Run, given_of

    given = given_of(Path(command.folder).expanduser())["arguments"]
    options: dict[str, Any] = {"lr": command.lr, "nonfinite": command.nonfinite, "allow": command.allow}
    found = resume(command.folder, **options, trust=command.trust)
    shown: dict[str, Any] = {"out": command.folder, "format": command.format, "json": command.json}
    if not isinstance(found, Run):
        return _compare(Compare(**shown), found)
    return _fit(Fit(given["model"], given["guide"], given["data"], seed=given["seed"], **shown), found)


def _plot(command: Plot) -> int:
    from pyro_vi.afterwards import open
    from pyro_vi.reporting.pictures.plotting import drawn

    run = open(command.folder, trust=command.trust).run
    _, paths = drawn(run, out=command.out or command.folder, format=command.format, only=command.only)
    if command.json:
        print_json({"plots": [str(path) for path in paths]})
        return 0
    for path in paths:
        console().print(str(path), soft_wrap=True)
    return 0


def _list(command: List) -> int:
    from pyro_vi import overview
    from pyro_vi.overview.tabular import name_tables

    if command.name is not None:
        from pyro_vi.overview.tables import described_tables

        entries = overview.described(command.name)
        if command.json:
            print_json([dataclasses.asdict(entry) for entry in entries])
        for entry in () if command.json else entries:
            print_parts(described_tables(entry))
        return 0
    names = overview.names()
    if not command.pairs:
        if command.json:
            print_json(names)
        else:
            print_parts(name_tables(names))
        return 0
    from pyro_vi.overview.tables import match_tables

    if command.json:
        print_json({**names, "pairs": [dataclasses.asdict(match) for match in overview.matches()]})
    else:
        print_parts((*name_tables(names), *match_tables(overview.matches())))
    return 0


COMMANDS: dict[type, Callable[[Any], int]] = {
    Compare: _compare,
    Fit: _fit,
    Resume: _resume,
    Audit: audit,
    Check: check,
    Evidence: evidence,
    Show: show,
    Gaps: gaps,
    Diagnose: diagnose,
    Report: report,
    Plot: _plot,
    List: _list,
}


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
