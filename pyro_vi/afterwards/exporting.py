"""The files of a fit or a comparison: pictures, ``result.nc`` and, for a comparison, ``result.json``.

* `export_fit` and `export_comparison` write them. A file that fails gives a warning of one line; the others are still written.
* `capped_tree` makes the DataTree of ``result.nc``, with as many rows and draws as fit into `BYTES`.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

from pyro_vi.afterwards.opened import bytes_of
from pyro_vi.comparing import Comparison
from pyro_vi.data import Batch, length_of, part
from pyro_vi.errors import kind_and_line
from pyro_vi.fitting import Run
from pyro_vi.programs import Pair
from pyro_vi.reporting.datatree import datatree_of_pair, history_dataset, write
from pyro_vi.reporting.document import to_dict
from pyro_vi.reporting.pictures.plotting import comparison_of
from pyro_vi.reporting.saving import save
from pyro_vi.support import finite, make_folder, write_json

BYTES = 8 * 10**6
"""Most bytes of draws in an export, before compression."""
DRAWS, FEW_DRAWS, FEW_ROWS = 100, 10, 20
"""Draws in an export; the fewest draws, and the fewest rows, that are kept to save space."""


@dataclass
class Written:
    """Paths of the pictures and of each ``result.nc``, the document of a comparison, and remarks of one line each."""

    plots: list[Path] = field(default_factory=list)
    trees: list[Path] = field(default_factory=list)
    document: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def export_fit(
    run: Run, out: Path, *, names: tuple[str, str] = ("", ""), seed: int = 0, format: str = "png"
) -> Written:
    """Write ``result.nc`` and the pictures of a fit.

    Args:
        run: the fit.
        out: the folder.
        names: names of model and guide for the headings.
        seed: seed of the draws.
        format: ``"png"``, ``"svg"`` or ``"pdf"``.
    """
    found = Written()
    on = "held-out" if run.data.num_heldout else "training"
    batch = run.data.heldout if run.data.num_heldout else run.data.example(run.data.spec.num_data)
    _tree(found, run, batch, on, out, seed, {"fit": history_dataset(run.history)}, "")
    _pictures(found, lambda: comparison_of(run, *names, seed), out, format)
    return found


def export_comparison(comparison: Comparison, out: Path, *, format: str = "png") -> Written:
    """Write ``result.json``, the pictures, and ``result.nc`` of each fit.

    Args:
        comparison: the comparison, with its repeats under other seeds.
        out: the folder.
        format: ``"png"``, ``"svg"`` or ``"pdf"``.
    """
    found = Written()
    for one in comparison.every:
        audits = {"audit": one.audit_dataset()} if one.audits else {}
        on, batch = one.pictured()
        for name, result in one.results.items():
            groups = {"fit": history_dataset(result.run.history), **audits}
            # A pair without parameters has no run folder yet.
            _tree(found, result.run, batch, on, one.folder_of(name) or out, one.seed, groups, f" for {name}")
    _pictures(found, lambda: comparison, out, format)
    found.document = finite(to_dict(comparison, found.plots))
    try:
        write_json(out / "result.json", found.document)
    except Exception as error:
        warnings.warn(f"no result.json: {kind_and_line(error)}", stacklevel=2)
    return found


def capped_tree(
    pair: Pair,
    args: Batch,
    *,
    on: str = "given",
    draws: int = DRAWS,
    seed: int = 0,
    groups: Mapping[str, xr.Dataset] | None = None,
    features: tuple[str, ...] = (),
) -> tuple[xr.DataTree, str]:
    """Return the DataTree of a pair, and a remark. The tree has as many of the first rows, and draws, as fit into `BYTES`.

    Its attribute ``rows`` tells the number of rows. The remark is empty if the tree has all rows and draws.
    """
    whole, asked = length_of(args), draws
    some = part(args, 0, 1000) if whole > 1000 and pair.separable(args, 1000) else args
    each = bytes_of(pair, some) / length_of(some)
    rows = max(FEW_ROWS, int(BYTES / (each * draws)))
    if rows < whole and pair.separable(args, rows):
        args = part(args, 0, rows)
    draws = max(FEW_DRAWS, min(draws, int(BYTES / (each * length_of(args)))))
    tree = datatree_of_pair(pair, args, draws=draws, seed=seed, groups=groups, features=features)
    rows, remark = length_of(args), ""
    held = f"all {rows} {on} rows" if rows == whole else f"the first {rows} of {whole} {on} rows"
    if rows < whole or draws < asked:
        remark = (
            f"holds {held}, with {draws} draws each, to stay small; pyro_vi.open(FOLDER).posterior() gives the others"
        )
    tree.attrs["rows"] = held
    return tree, remark


def _tree(
    found: Written,
    run: Run,
    batch: Batch,
    on: str,
    folder: Path,
    seed: int,
    groups: Mapping[str, xr.Dataset],
    whose: str,
) -> None:
    try:
        tree, remark = capped_tree(run.pair, batch, on=on, seed=seed, groups=groups, features=run.data.spec.features)
        found.trees.append(write(tree, make_folder(folder) / "result.nc"))
    except Exception as error:  # an export is never a reason to lose a fit
        warnings.warn(f"no result.nc{whose}: {kind_and_line(error)}", stacklevel=3)
        return
    if remark:
        found.remarks.append(f"{found.trees[-1]} {remark}")


def _pictures(found: Written, made: Any, out: Path, format: str) -> None:
    try:
        found.plots = save(made(), out, format)
    except Exception as error:
        warnings.warn(f"no pictures: {kind_and_line(error)}", stacklevel=3)
