"""The commands that say if a posterior can be used: gaps, diagnose and report."""

import dataclasses
from typing import Any

from pyro_vi.cli.asking import asked_of
from pyro_vi.cli.commands import Diagnose, Gaps, Report
from pyro_vi.cli.printing import console, print_json, print_parts
from pyro_vi.support import whole


def gaps(command: Gaps) -> int:
    """Split the gap between evidence and ELBO, and print the parts, of training and of held-out data."""
    from pathlib import Path

    from pyro_vi.diagnostics import gaps_of_pair
    from pyro_vi.reporting.plots_of_gaps import gap_table, plot_gaps
    from pyro_vi.support import make_folder

    asked = asked_of(command, command.run)
    pair, data = asked.plan.pair, asked.plan.data
    rows = whole("rows", command.rows, 1)
    sets = {asked.on: asked.rows}
    if asked.on == "held-out":
        sets = {"training": data.example(data.spec.num_data), **sets}
    found = {}
    for name, args in sets.items():
        # Where latents are shared, the gap is that of all data.
        taken, numbers = pair.evenly(args, rows)
        found[name] = gaps_of_pair(pair, taken, seed=command.seed, numbers=numbers)
    if command.out:
        folder = Path(command.out)
        make_folder(folder)
        plot_gaps(found).savefig(folder / "gaps.png", dpi=150)
    if command.json:
        print_json({name: _document(part) for name, part in found.items()})
        return 0
    print_parts([gap_table(found, f"nats per datum, {asked.title}")])
    for name, part in found.items():
        print_parts([f"{name}: {part.attrs['verdict']}", *(f"  {text}" for text in part.attrs["sentences"])])
    return 0


def _document(found: Any) -> dict[str, Any]:
    """The means and attributes of gaps as plain values."""
    means = {str(name): value for name, value in found.data_vars.items() if str(name).startswith("mean_")}
    families = [str(family) for family in found.family.values]
    return {
        **found.attrs,
        **{
            name.removeprefix("mean_"): dict(zip(families, value.values.tolist(), strict=True))
            if value.dims
            else float(value)
            for name, value in means.items()
        },
    }


def diagnose(command: Diagnose) -> int:
    """Diagnose a pair, and print what was found."""
    from pyro_vi.data import length_of
    from pyro_vi.diagnostics import chosen, diagnose_pair

    only = chosen(command.only)
    rows = whole("rows", command.rows, 1)
    asked = asked_of(command, command.run)
    pair, args = asked.plan.pair, asked.rows
    # Where latents are shared, the posterior is that of all data.
    taken, _ = pair.evenly(args, rows)
    tree = diagnose_pair(pair, taken, only=only, seed=command.seed)
    if command.json:
        print_json({name: dict(part.attrs) for name, part in tree.children.items()})
        return 0
    part = ", evenly spaced; sentences count rows within these, from 0" if length_of(taken) < length_of(args) else ""
    print_parts([f"{asked.title}: {length_of(taken)} of {length_of(args)} {asked.on} rows{part}"])
    for name, found in tree.children.items():
        print_parts(["", f"{name}: {found.attrs['verdict']}", *(f"  {text}" for text in found.attrs["sentences"])])
    return 0


def report(command: Report) -> int:
    """Write the report of a run, and print its path."""
    from pyro_vi.afterwards import write_report

    options: dict[str, Any] = {"out": command.out, "rows": command.rows, "seed": command.seed, "trust": command.trust}
    path, judgement = write_report(command.folder, **options)
    if command.json:
        print_json({"report": str(path), **dataclasses.asdict(judgement)})
        return 0
    shown = console()
    for line in (judgement.headline, *(f"{reason.title}: {reason.sentence}" for reason in judgement.reasons)):
        shown.print(line, markup=False, soft_wrap=True)
    shown.print(str(path), soft_wrap=True)
    return 0
